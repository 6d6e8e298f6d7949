"""Operations without a task: each ends once, as it would when it is awaited, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from typing import Any

import pytest
from support.engines import TABLES, ask, known_as_quick, make_tenant, opened
from support.watching import tiers, until, until_it_is

from tenancy.data_isolation.core.errors import (
    PlacementChangedError,
    RateLimitedError,
    StatementError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, Tenant
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.operations import Begun

pytestmark = pytest.mark.migrated("0001_users", TABLES)

ACME = TenantId("acme")
COUNT = "select count(*) from users"
LONG = "select count(*) from generate_series(1, 1000000000)"


class Ends:
    """How operations ended, in the order in which they did."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def begin(self, engine: Engine, query: str, *params: Any, **options: Any) -> Begun:
        begun = engine.begin(
            ACME, Operation(query=query, params=params, **options), self.outcomes.append
        )
        assert begun is not None
        return begun

    async def all(self, number: int) -> list[Any]:
        await until(lambda: len(self.outcomes) >= number)
        await asyncio.sleep(0)
        assert len(self.outcomes) == number
        return self.outcomes


@pytest.fixture
def ends() -> Ends:
    return Ends()


async def make_acme(engine: Engine, users: int = 3) -> Tenant:
    """The tenant, so well known that its operations need not wait for the catalog."""
    tenant = await make_tenant(engine, users=users)
    await know_acme(engine)
    return tenant


async def know_acme(engine: Engine) -> None:
    """That is believed for half a second, and not longer."""
    while engine._routes.known("acme") is None:
        await engine._routes.route(ACME)
        await asyncio.sleep(0.001)


def under_way(engine: Engine) -> int:
    route = engine._routes.known("acme")
    assert route is not None
    return route.allowance.under_way


async def test_operations_have_their_own_results(install, ends):
    async with opened(install) as engine:
        await make_acme(engine)
        await known_as_quick(engine, "acme", "select email from users where id = $1", 1)
        await know_acme(engine)
        for number in (1, 2, 3, 4):
            ends.begin(engine, "select email from users where id = $1", number)

        rows = [result.rows for result in await ends.all(4)]
        assert sorted(rows) == [[], [["1@acme"]], [["2@acme"]], [["3@acme"]]]
        await know_acme(engine)
        ends.begin(engine, "update users set plan = null")
        assert (await ends.all(5))[-1].row_count == 3
        assert under_way(engine) == 0


async def test_an_error_is_told_and_not_raised(install, ends):
    async with opened(install) as engine:
        await make_acme(engine)
        for query in ("drop table users", "select 1/0", "select * from nothing"):
            ends.begin(engine, query)

        outcomes = await ends.all(3)
        assert all(isinstance(item, StatementError) for item in outcomes)
        assert under_way(engine) == 0


async def test_a_table_that_another_process_made_is_looked_for(install, ends):
    async with opened(install) as one, opened(install, tables=False) as two:
        await make_acme(one)
        await know_acme(two)
        await one.apply_migration("0002_more", "create table more (id integer primary key)")
        await know_acme(two)

        ends.begin(two, "select * from more")
        assert (await ends.all(1))[0].rows == []
        assert under_way(two) == 0


async def test_what_is_cancelled_stops_in_postgresql_and_ends_once(install, ends):
    async with opened(install) as engine, install.connected() as admin:
        await make_acme(engine)
        begun = ends.begin(engine, LONG)
        found = "select count(*) from pg_stat_activity where query = $1 and state = 'active'"

        async def at_work() -> bool:
            return bool(await admin.fetchval(found, LONG))

        async def idle() -> bool:
            return not await at_work()

        await until_it_is(at_work)
        begun.cancel()
        begun.cancel()

        assert ends.outcomes == [None]
        await until_it_is(idle)
        assert under_way(engine) == 0
        assert (await ask(engine, "acme", COUNT)).rows == [[3]]
        assert ends.outcomes == [None]


async def test_who_is_cancelled_while_it_waits_is_not_run(install, ends):
    async with opened(install) as engine:
        await make_acme(engine)
        ends.begin(engine, "delete from users").cancel()

        assert ends.outcomes == [None]
        assert (await ask(engine, "acme", COUNT)).rows == [[3]]
        assert under_way(engine) == 0


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_tenant_on_its_way_is_waited_for(install, ends, arrives):
    async with opened(install) as engine, install.connected() as admin:
        no = (await make_acme(engine)).tenant_no
        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", no)
        await know_acme(engine)
        for _ in range(3):
            ends.begin(engine, COUNT)
        if arrives:
            while not engine._routes._asking:
                await asyncio.sleep(0)
            await admin.execute("update catalog.placement set epoch = 2 where tenant_no = $1", no)
            await admin.execute(
                "update tenancy.fence set epoch = 2, open = true where tenant_no = $1", no
            )
            assert [item.rows for item in await ends.all(3)] == [[[3]]] * 3
        else:
            assert all(isinstance(item, PlacementChangedError) for item in await ends.all(3))
        # What is done by then is known by another number.
        route = engine._routes._known.get("acme")
        assert route is None or route.allowance.under_way == 0


async def test_who_is_cancelled_on_the_way_ends_once(install, ends):
    async with opened(install) as engine, install.connected() as admin:
        no = (await make_acme(engine)).tenant_no
        allowance = engine._routes._known["acme"].allowance
        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", no)
        await know_acme(engine)
        begun = ends.begin(engine, COUNT)
        await until(lambda: begun._again is not None)
        begun.cancel()

        assert await ends.all(1) == [None]
        assert allowance.under_way == 0


async def test_limits_of_the_type_hold(install, ends):
    limited = tiers(operations_per_s=0.01, operations_burst=500, operations_in_flight_max=2)
    async with opened(install, tiers=limited) as engine:
        await make_acme(engine, users=0)
        first, second, third = (ends.begin(engine, LONG) for _ in range(3))
        assert "operations under way" in str(ends.outcomes[0])
        assert isinstance(ends.outcomes[0], RateLimitedError)
        for begun in (first, second, third):
            begun.cancel()
        assert ends.outcomes[1:] == [None, None]

        for _ in range(500):
            ends.begin(engine, LONG).cancel()
        assert any("operations per second" in str(item) for item in ends.outcomes)
        assert under_way(engine) == 0


async def test_who_finds_the_queue_full_hears_so_at_once(install, ends):
    async with opened(install, tenant_waiting_operations_max=1) as engine:
        await make_acme(engine)
        for _ in range(40):
            ends.begin(engine, COUNT)

        outcomes = await ends.all(40)
        assert {getattr(item, "slug", None) for item in outcomes} == {None, "overloaded"}
        assert under_way(engine) == 0


async def test_what_cannot_be_begun_at_once_is_left_to_be_executed(install, ends):
    async with opened(install) as engine:
        operation = Operation(query=COUNT)
        assert engine.begin(ACME, operation, ends.outcomes.append) is None
        await make_acme(engine)
        engine.passivate("acme")
        assert engine.begin(ACME, operation, ends.outcomes.append) is None
        await know_acme(engine)
        assert engine.begin(ACME, operation, ends.outcomes.append) is not None
        await ends.all(1)


async def test_what_is_not_foreseen_is_an_error_of_ours(install, ends, caplog, monkeypatch):
    async with opened(install) as engine:
        await make_acme(engine)
        monkeypatch.setattr(engine._executor, "start", lambda *_: 1 / 0)
        ends.begin(engine, COUNT)

        assert type(ends.outcomes[0]) is TenancyError
        assert "not foreseen" in caplog.text
        assert under_way(engine) == 0


async def test_nothing_is_left_for_the_collector(install, ends):
    async with opened(install) as engine:
        await make_acme(engine)
        await known_as_quick(engine, "acme", COUNT)
        gc.collect()
        gc.disable()
        await know_acme(engine)
        try:
            for _ in range(20):
                ends.begin(engine, COUNT)
            await ends.all(20)
            left = [item for item in gc.get_objects() if type(item) is Begun]
            assert len(left) == 0
        finally:
            gc.enable()


async def test_who_cannot_be_told_spoils_nothing_for_others(install, ends, caplog):
    async with opened(install) as engine:
        await make_acme(engine)
        await known_as_quick(engine, "acme", COUNT)
        await know_acme(engine)

        def broken(outcome: Any) -> None:
            raise ZeroDivisionError

        ends.begin(engine, COUNT)
        assert engine.begin(ACME, Operation(query=COUNT), broken) is not None
        ends.begin(engine, COUNT)

        assert [item.rows for item in await ends.all(2)] == [[[3]]] * 2
        assert "could not be told" in caplog.text


async def test_what_is_done_again_is_no_part_of_anothers_trace(install, ends):
    """The flight's task has the context of whoever called the line."""
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen = []
    async with opened(install) as engine, install.connected() as admin:
        no = (await make_acme(engine)).tenant_no
        run = engine.operations.executor.execute

        async def execute(*arguments: Any) -> Any:
            seen.append(whose.get())
            return await run(*arguments)

        engine.operations.executor.execute = execute  # type: ignore[method-assign]
        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", no)
        await know_acme(engine)
        whose.set("somebody's")
        begun = ends.begin(engine, COUNT)
        await until(lambda: bool(seen))
        begun.cancel()
        await ends.all(1)

    assert set(seen) == {"nobody's"}
