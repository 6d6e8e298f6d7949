"""Tenants come and go as a whole, also when whoever works on them is killed at any step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ServerNotFoundError,
    TenantExistsError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.rules import STRATEGY_OF_LEVEL
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    TenantContext,
    TenantStatus,
    TenantType,
)
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.provisioner import Provisioner

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"
SLOW = "select count(*) from generate_series(1, 3000000000) n"


class Killed(BaseException):
    """The process is gone. Nothing in the code under test can handle it."""


class Fuse:
    """Blows when so many steps were done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class Fragile:
    """An object some of whose methods burn the fuse when they have done their work."""

    METHODS = frozenset(
        {
            *("execute", "fetch", "fetchrow", "fetchval"),
            *("add_tenant", "set_placement", "set_status", "remove_tenant"),
            *("record_namespace", "remove_namespace"),
        }
    )

    def __init__(self, inner: Any, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self.METHODS:
            return found

        async def and_burn(*args: Any, **kwargs: Any) -> Any:
            result = await found(*args, **kwargs)
            self._fuse.burn()
            return result

        return and_burn


class FragileAdmin(AdminConnections):
    """Admin connections that are lost with the process."""

    fuse: Fuse

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        return Fragile(await super().connect(*args, **kwargs), self.fuse)


def fragile(engine: Engine, install: Install, steps: int) -> Provisioner:
    """A provisioner that is killed after so many steps."""
    fuse = Fuse(steps)
    admin = FragileAdmin(settings=engine.settings, servers=engine.servers)
    admin.fuse = fuse
    catalog: Any = Fragile(engine.catalog, fuse)
    engine.fleet._catalog = catalog
    maker = PlacementMaker(
        settings=engine.settings,
        master_key=install.master_key,
        catalog=catalog,
        admin=admin,
        keys=engine.keys,
        namespaces=engine.fleet,
    )
    return Provisioner(settings=engine.settings, catalog=catalog, admin=admin, maker=maker)


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install) as made:
        yield made


async def leftovers(install: Install, engine: Engine) -> list[str]:
    """Roles, schemas and databases of this installation that belong to no tenant."""
    placements = [tenant.placement for tenant in await engine.tenants(limit=1000)]
    known = {
        name for p in placements if p for name in (p.database, p.schema, p.role, p.sensitive_schema)
    }
    async with install.connected() as admin:
        rows = await admin.fetch(
            "select nspname::text as name from pg_namespace where nspname ~ '^t_[0-9a-f]{20}$'"
        )
        found = {row["name"] for row in rows}
        noted = await admin.fetch(
            "select database, schema from catalog.namespace where kind = 'own'"
        )
        found |= {row["schema"] for row in noted} | {row["database"] for row in noted}
        fences = await admin.fetch(
            "select f.tenant_no from tenancy.fence f left join catalog.tenant t using (tenant_no) "
            "where t.tenant_no is null"
        )
    return sorted(found - known - {"app", install.database}) + [str(row[0]) for row in fences]


async def traces(install: Install, names: set[str]) -> list[str]:
    """What is left on the server of roles and databases of these names."""
    async with install.connected() as admin:
        return [
            *(
                r[0]
                for r in await admin.fetch(
                    "select rolname from pg_roles where rolname = any($1)", names
                )
            ),
            *(
                r[0]
                for r in await admin.fetch(
                    "select datname from pg_database where datname = any($1)", names
                )
            ),
        ]


@pytest.mark.parametrize("level", IsolationLevel)
async def test_a_tenant_is_made_once_and_lives_apart_from_others(engine, install, level):
    context = TenantContext(tenant_id="acme", tenant_type=TenantType.PREMIUM, metadata={"a": 1})
    made = await engine.create_tenant(context, level=level)
    again = await engine.create_tenant(context, level=level)
    assert made == again
    assert made.status is TenantStatus.ACTIVE
    assert made.placement.level is level
    for other_context, other_level in (
        (TenantContext(tenant_id="acme"), level),
        (context, next(item for item in IsolationLevel if item is not level)),
    ):
        with pytest.raises(TenantExistsError):
            await engine.create_tenant(other_context, level=other_level)

    await make_tenant(engine, "other", level, users=2)
    await ask(engine, "acme", "insert into users (id, email) values (1, 'x')")
    assert (await ask(engine, "acme", COUNT)).rows == [[1]]
    assert (await ask(engine, "other", COUNT)).rows == [[2]]
    assert (await engine.strategy_counts())[STRATEGY_OF_LEVEL[level]] == 2
    assert await leftovers(install, engine) == []


async def test_many_requests_for_one_tenant_make_one(engine, install):
    for level in IsolationLevel:
        context = TenantContext(tenant_id=f"at-{level}")
        made = await asyncio.gather(
            *(engine.create_tenant(context, level=level) for _ in range(5)), return_exceptions=True
        )
        tenants = [item for item in made if not isinstance(item, OverloadedError)]
        assert len({tenant.tenant_no for tenant in tenants}) == 1
        assert tenants
    assert await leftovers(install, engine) == []


async def test_servers_and_regions_that_are_not_there_are_named(engine):
    with pytest.raises(ServerNotFoundError, match="main"):
        await engine.create_tenant(
            TenantContext(tenant_id="a"), level=IsolationLevel.ROW, server=ServerName("nowhere")
        )
    with pytest.raises(ServerNotFoundError, match="region"):
        await engine.create_tenant(
            TenantContext(tenant_id="a", region="moon"), level=IsolationLevel.ROW
        )
    assert await engine.tenants() == []


@pytest.mark.parametrize(
    ("level", "hybrid", "stride"),
    [
        (IsolationLevel.ROW, False, 1),
        (IsolationLevel.ROW, True, 2),
        (IsolationLevel.SCHEMA, False, 2),
        (IsolationLevel.DATABASE, False, 5),
    ],
)
async def test_a_creation_that_was_killed_at_any_step_can_be_finished(
    engine, install, level, hybrid, stride
):
    step = 0
    while True:
        step += stride
        name = f"tenant-{step}"
        context = TenantContext(tenant_id=name)
        whole = engine.fleet._catalog
        try:
            await fragile(engine, install, step).create(context, level=level, hybrid=hybrid)
            break
        except Killed:
            pass
        finally:
            engine.fleet._catalog = whole
        if step // stride % 2:  # One half is finished, the other half is given up.
            tenant = await engine.create_tenant(context, level=level, hybrid=hybrid)
            assert tenant.status is TenantStatus.ACTIVE
            await ask(engine, name, "insert into users (id, email) values (1, 'x')")
            assert (await ask(engine, name, COUNT)).rows == [[1]]
        else:
            if (await engine.tenant(name)).status is not TenantStatus.ACTIVE:
                with pytest.raises(TenantSuspendedError):
                    await ask(engine, name, COUNT)
            await engine.delete_tenant(name)
        assert await leftovers(install, engine) == []
    assert step > 5


@pytest.mark.parametrize(
    ("level", "hybrid", "stride"),
    [
        (IsolationLevel.ROW, False, 1),
        (IsolationLevel.ROW, True, 1),
        (IsolationLevel.SCHEMA, False, 1),
        (IsolationLevel.DATABASE, False, 2),
    ],
)
async def test_a_deletion_that_was_killed_at_any_step_can_be_finished(
    engine, install, level, hybrid, stride
):
    await make_tenant(engine, "stays", level, users=2, hybrid=hybrid)
    step = 0
    names: set[str] = set()
    while True:
        step += stride
        name = f"tenant-{step}"
        tenant = await make_tenant(engine, name, level, users=3, hybrid=hybrid)
        if hybrid or level is not IsolationLevel.ROW:
            names |= {tenant.placement.role, tenant.placement.database} - {install.database}
        await engine._let_go(tenant)
        whole = engine.fleet._catalog
        try:
            await fragile(engine, install, step).delete(tenant)
            break
        except Killed:
            pass
        finally:
            engine.fleet._catalog = whole
        try:
            left = await engine.tenant(name)
        except TenantNotFoundError:
            pass  # It was killed after the last step.
        else:
            assert left.status is TenantStatus.DELETING
            with pytest.raises(TenantSuspendedError):
                await ask(engine, name, COUNT)
            await engine.delete_tenant(name)
        with pytest.raises(TenantNotFoundError):
            await engine.tenant(name)
        assert await leftovers(install, engine) == []
    assert step > 5
    assert await traces(install, names) == []
    assert (await ask(engine, "stays", COUNT)).rows == [[2]]
    if level is IsolationLevel.ROW:
        async with install.connected() as admin:
            shared = await admin.fetchval("select count(*) from app.users")
            assert shared == (0 if hybrid else 2)
            assert await admin.fetchval("select count(*) from tenancy.overlay") == hybrid


async def test_rows_that_point_to_each_other_are_deleted_in_batches(bare_install):
    async with opened(bare_install, tables=False, removal_batch_rows_max=7) as engine:
        await engine.apply_migration(
            "0001_ring",
            "create table a (id integer primary key, b integer);"
            "create table b (id integer primary key, a integer references a);"
            "create table c (id integer primary key, up integer references c,"
            " a integer references a);"
            "alter table a add foreign key (b) references b;",
        )
        for name in ("one", "two"):
            await make_tenant(engine, name, users=0)
            for statement in (
                "insert into a select n from generate_series(1, 30) n",
                "insert into b select n, n from generate_series(1, 30) n",
                "update a set b = id",
                "insert into c select n, nullif(n - 1, 0), n from generate_series(1, 30) n",
            ):
                await ask(engine, name, statement)

        await engine.delete_tenant("one")

        async with bare_install.connected() as admin:
            for table in ("a", "b", "c"):
                assert await admin.fetchval(f"select count(*) from app.{table}") == 30
        assert (await ask(engine, "two", "select count(*) from c")).rows == [[30]]


@pytest.mark.parametrize("level", IsolationLevel)
async def test_a_suspended_tenant_takes_nothing_until_it_is_resumed(engine, install, level):
    made = await make_tenant(engine, "acme", level)
    async with opened(install, tables=False) as other_process:
        assert (await ask(other_process, "acme", COUNT)).rows == [[3]]

        suspended = await engine.suspend_tenant("acme")
        assert suspended.status is TenantStatus.SUSPENDED
        assert (await engine.suspend_tenant("acme")).status is TenantStatus.SUSPENDED
        for place in (engine, other_process):
            with pytest.raises(TenantSuspendedError):
                await ask(place, "acme", COUNT)

        resumed = await engine.resume_tenant("acme")
        assert resumed.status is TenantStatus.ACTIVE
        assert resumed.placement.epoch > made.placement.epoch
        for place in (engine, other_process):
            assert (await ask(place, "acme", COUNT)).rows == [[3]]


async def test_suspending_waits_for_what_is_at_work(install):
    async with opened(install, statement_timeout_ms=600) as engine:
        await make_tenant(engine)
        work = asyncio.create_task(ask(engine, "acme", SLOW))
        async with install.connected() as admin, asyncio.timeout(20):
            while not await admin.fetchval(
                "select count(*) from pg_stat_activity where state = 'active' "
                "and query like '%3000000000%' and application_name like 'tenancy%.%'"
            ):
                await asyncio.sleep(0.02)

        await engine.suspend_tenant("acme")

        assert work.done() or (await asyncio.wait([work], timeout=5))[0]
        assert isinstance(work.exception(), Exception)
        with pytest.raises(TenantSuspendedError):
            await ask(engine, "acme", COUNT)


async def test_a_tenant_of_that_name_can_be_made_again_and_sees_nothing_of_the_first(engine):
    for level in IsolationLevel:
        first = await make_tenant(engine, "acme", level)
        await engine.delete_tenant("acme")
        with pytest.raises(TenantNotFoundError):
            await ask(engine, "acme", COUNT)
        second = await make_tenant(engine, "acme", level, users=0)

        assert second.tenant_no != first.tenant_no
        assert (await ask(engine, "acme", COUNT)).rows == [[0]]
        await engine.delete_tenant("acme")
