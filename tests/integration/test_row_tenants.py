"""Many tenants of level ROW at a time, on a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    ServerNotFoundError,
    TenancyError,
    TenantExistsError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Tenant,
    TenantContext,
    TenantStatus,
    TenantType,
)
from tenancy.data_isolation.engine.engine import Engine

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"
TRIGGERED = """
create function note_plan() returns trigger language plpgsql as $$
begin insert into late (id) values (new.id); return new; end; $$;
create trigger note_plan after insert on plans for each row execute function note_plan();
"""


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, provisioning_tenants_max=4) as made:
        yield made


def contexts(*names: str, **properties: Any) -> list[TenantContext]:
    return [TenantContext(tenant_id=name, **properties) for name in names]


def made(outcomes: list[Tenant | TenancyError]) -> list[Tenant]:
    assert all(isinstance(item, Tenant) for item in outcomes), outcomes
    return [item for item in outcomes if isinstance(item, Tenant)]


async def test_they_work_and_are_like_those_that_are_made_singly(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    await engine.apply_migration("0002_plans", "insert into plans values (1, 'free'), (2, 'paid')")
    single = await make_tenant(engine, "single", users=1)
    # None of them is to be made by itself.
    monkeypatch.setattr(type(engine._provisioner), "create", None)

    tenants = made(await engine.create_row_tenants(contexts(*(f"t{n}" for n in range(10)))))

    assert [tenant.tenant_id for tenant in tenants] == [f"t{n}" for n in range(10)]
    assert {tenant.status for tenant in tenants} == {TenantStatus.ACTIVE}
    assert single.placement is not None
    assert {item.placement for item in tenants} == {single.placement}
    for tenant in tenants:
        name = tenant.tenant_id
        await ask(engine, name, "insert into users (id, email) values (1, $1)", f"{name}@x")
        seen = await ask(engine, name, "select email, (select count(*) from plans) from users")
        assert seen.rows == [[f"{name}@x", 2]]
    # A migration that gives rows gives them once to each, as it knows who has the first ones.
    await engine.apply_migration("0003_more", "insert into plans values (3, 'more')")
    assert (await ask(engine, "t7", "select count(*) from plans")).rows == [[3]]


async def test_repeated_they_stay_as_they_are_and_what_is_missing_comes(engine: Engine):
    first = made(await engine.create_row_tenants(contexts("a", "b", "c")))
    await ask(engine, "b", "insert into users (id, email) values (1, 'b')")

    again = made(await engine.create_row_tenants(contexts("a", "b", "c", "d", "e")))

    assert again[:3] == first
    assert (await ask(engine, "b", COUNT)).rows == [[1]]
    assert (await ask(engine, "e", COUNT)).rows == [[0]]


async def test_each_has_its_own_outcome(engine: Engine):
    await make_tenant(engine, "own", IsolationLevel.SCHEMA, users=0)
    await make_tenant(engine, "suspended", users=0)
    await engine.suspend_tenant("suspended")
    await engine.create_row_tenants(contexts("other", tenant_type=TenantType.FREE))

    outcomes = await engine.create_row_tenants(
        [
            *contexts("good", "own", "other", "suspended", "good"),
            TenantContext(tenant_id="wish", isolation_level=IsolationLevel.SCHEMA),
            TenantContext(tenant_id="far", region="nowhere"),
            *contexts("last"),
        ]
    )

    kinds = [type(item) for item in outcomes]
    assert kinds == [
        *(Tenant, TenantExistsError, TenantExistsError, Tenant, InvalidInputError),
        *(InvalidInputError, ServerNotFoundError, Tenant),
    ]
    assert {tenant.tenant_id for tenant in await engine.tenants()} == {
        *("own", "suspended", "other", "good", "last")
    }
    assert (await engine.tenant("suspended")).status is TenantStatus.SUSPENDED


async def test_one_that_cannot_be_made_takes_no_other_along(engine: Engine):
    names = [f"t{n}" for n in range(6)]
    one = dataclasses.replace(contexts("t2")[0], metadata={"number": math.inf})
    wanted = [one if item.tenant_id == "t2" else item for item in contexts(*names)]

    outcomes = await engine.create_row_tenants(wanted)

    assert [type(item) for item in outcomes] == [
        InvalidInputError if name == "t2" else Tenant for name in names
    ]
    assert [tenant.tenant_id for tenant in await engine.tenants()] == [
        name for name in names if name != "t2"
    ]


async def test_first_rows_with_triggers_come_singly(engine: Engine):
    await engine.apply_migration("0002_plans", "insert into plans values (1, 'free')")
    await engine.apply_migration("0003_triggers", TRIGGERED)

    made(await engine.create_row_tenants(contexts("a", "b", "c", "d", "e")))

    seen = await ask(
        engine, "e", "select (select count(*) from plans), (select count(*) from late)"
    )
    assert seen.rows == [[1, 0]]


async def test_many_who_make_the_same_ones_find_each_other(engine: Engine, install: Install):
    names = [f"t{n:02}" for n in range(24)]
    async with opened(install, tables=False, provisioning_tenants_max=5) as second:
        outcomes = await asyncio.gather(
            engine.create_row_tenants(contexts(*names)),
            second.create_row_tenants(contexts(*reversed(names))),
            *(
                engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
                for name in names[::5]
            ),
        )

    one, other = outcomes[:2]
    assert isinstance(one, list)
    assert isinstance(other, list)
    assert made(one) == made(other)[::-1]
    assert len(await engine.tenants()) == len(names)


async def test_what_was_cut_off_is_finished_and_what_was_erased_is_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    async def lost(tenants: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(engine.catalog, "set_active", lost)
        with pytest.raises(asyncio.CancelledError):
            await engine.create_row_tenants(contexts("a", "b"))
    assert {tenant.status for tenant in await engine.tenants()} == {TenantStatus.CREATING}
    set_active = engine.catalog.set_active

    async def erased_before(tenants: Any) -> Any:
        b = await engine.tenant("b")
        await engine.catalog.set_status(
            b.tenant_no, TenantStatus.DELETING, expected=TenantStatus.CREATING
        )
        return await set_active(tenants)

    monkeypatch.setattr(engine.catalog, "set_active", erased_before)
    a, b = await engine.create_row_tenants(contexts("a", "b"))

    assert isinstance(a, Tenant)
    assert (await ask(engine, "a", COUNT)).rows == [[0]]
    assert isinstance(b, Tenant | TenantSuspendedError)
    with pytest.raises(TenantSuspendedError):
        await ask(engine, "b", COUNT)
