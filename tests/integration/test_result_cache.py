"""Results that are kept: given while they are current, and by whom, and what else happens."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from redis.asyncio import Redis
from support.caching import SETTINGS, OwnRedis, again, caching, kept, settled
from support.engines import TABLES, ask, make_tenant

from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import (
    ParameterError,
    PlacementChangedError,
    StatementError,
    TenancyError,
    TenantNotFoundError,
    TenantSuspendedError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import Epoch, TenantId
from tenancy.data_isolation.core.move import MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, Operation, QueryResult
from tenancy.data_isolation.engine.cache_periods import heard_s
from tenancy.data_isolation.engine.cache_store import CacheStore
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.measured_windows import UNREAD, MeasuredWindows
from tenancy.data_isolation.engine.sql_files import SqlFile

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"
INSERT = "insert into users (id, email) values ($1::integer, 'a' || $1::integer)"
PLANS = "select id, name from plans order by id"


async def how(engine: Engine, query: str, *params: Any) -> str:
    return (await again(engine, "acme", query, *params))[1]


async def rows(engine: Engine, query: str, *params: Any) -> list[list[Any]]:
    return (await ask(engine, "acme", query, *params)).rows


@pytest.mark.parametrize(
    ("level", "hybrid"),
    [
        (IsolationLevel.ROW, False),
        (IsolationLevel.ROW, True),
        (IsolationLevel.DATABASE, False),
    ],
)
async def test_a_result_is_given_again_until_its_tables_are_written(
    install, a_redis, level, hybrid
):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine, level=level, hybrid=hybrid)
        await kept(engine)
        assert await how(engine, COUNT) == "misses"
        assert await how(engine, COUNT) == "hits_memory"
        await ask(engine, "acme", "insert into users (id, email) values (9, 'x')")
        assert await again(engine, "acme", COUNT) == (
            QueryResult(
                columns=(await ask(engine, "acme", COUNT)).columns, rows=[[4]], row_count=1
            ),
            "misses stale_avoided",
        )
        # Another table's results stay.
        await how(engine, PLANS)
        await ask(engine, "acme", "insert into users (id, email) values (10, 'y')")
        assert await how(engine, PLANS) == "hits_memory"


async def test_what_is_given_again_is_measured_as_a_hit(install, a_redis):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        windows = MeasuredWindows(engine.settings, SystemClock())
        engine.observe(windows, None)
        for _ in range(4):
            assert await rows(engine, COUNT) == [[3]]
        await asyncio.gather(*(rows(engine, PLANS) for _ in range(5)))
        with pytest.raises(StatementError):
            await rows(engine, "select nothing from nowhere")
        with pytest.raises(ParameterError):
            await rows(engine, "select id from users where id = $1")
        counted = {}
        for tenant, cell in windows.cut().cells():
            assert tenant.tenant_id == "acme"
            found = (cell.operations, cell.cache_hits, cell.rows, cell.refused)
            counted[cell.fingerprint if not cell.tables else cell.tables[0]] = found
        assert counted == {"users": (4, 3, 4, 0), "plans": (5, 4, 0, 0), UNREAD: (2, 0, 0, 2)}


async def test_nobody_is_cached_who_did_not_ask_for_it(install, a_redis):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        for _ in range(3):
            assert await how(engine, COUNT) == ""
        await kept(engine)
        assert await how(engine, COUNT) == "misses"
        await engine.keep_results("acme", False)
        for _ in range(3):
            assert await how(engine, COUNT) == ""


async def test_processes_share_results_and_see_each_others_writes(install, a_redis):
    async with caching(install, a_redis) as one, caching(install, a_redis) as two:
        await make_tenant(one)
        await kept(one)
        await settled(two)
        assert await how(one, COUNT) == "misses"
        assert await how(two, COUNT) == "hits_shared"
        assert await how(two, COUNT) == "hits_memory"
        for number, (writer, reader) in enumerate(((one, two), (two, one)), start=4):
            await ask(writer, "acme", INSERT, number)
            result, what = await again(reader, "acme", COUNT)
            assert result.rows == [[number]]
            assert "hits" not in what
            assert await rows(writer, COUNT) == [[number]]


async def test_batches_and_writes_with_a_key_are_announced(install, a_redis):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        assert await rows(engine, COUNT) == [[3]]
        for number, atomic in ((4, True), (5, False)):
            batch = [Operation(query=INSERT, params=[number]), Operation(query=COUNT)]
            outcomes = await engine.execute_batch("acme", batch, atomic=atomic)
            assert isinstance(outcomes[1], QueryResult)
            assert outcomes[1].rows == [[number]]
            assert await rows(engine, COUNT) == [[number]]
        for _ in range(2):
            await ask(engine, "acme", INSERT, 6, idempotency_key="once")
            assert await rows(engine, COUNT) == [[6]]


async def test_what_foreign_keys_and_triggers_change_counts_as_written(install, a_redis):
    async with caching(install, a_redis) as engine:
        await engine.apply_migration(
            "0002_log",
            """
            create table log (id integer primary key, what text);
            create table noisy (id integer primary key);
            create function note() returns trigger language plpgsql as $$
            begin insert into log (id, what) values (new.id, 'made'); return new; end; $$;
            create trigger noted after insert on noisy for each row execute function note();
            """,
        )
        await make_tenant(engine)
        await ask(engine, "acme", "insert into plans values (1, 'a')")
        await ask(engine, "acme", "update users set plan = 1 where id = 1")
        await kept(engine)
        assert await rows(engine, COUNT) == [[3]]
        await ask(engine, "acme", "delete from plans where id = 1")
        assert await rows(engine, COUNT) == [[2]]

        log = "select count(*) from log"
        assert await rows(engine, log) == [[0]]
        assert await how(engine, log) == "hits_memory"
        await ask(engine, "acme", "insert into noisy values (1)")
        assert await rows(engine, log) == [[1]]


async def test_a_read_that_began_before_a_write_is_not_kept_after_it(install, a_redis, monkeypatch):
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        execute = engine._executor.execute

        async def slow(*arguments: Any) -> QueryResult:
            result = await execute(*arguments)
            await ask(other, "acme", "insert into users (id, email) values (4, 'x')")
            return result

        with monkeypatch.context() as patch:
            patch.setattr(engine._executor, "execute", slow)
            assert await rows(engine, COUNT) == [[3]]
        assert engine.results.statistics.kept
        assert await rows(engine, COUNT) == [[4]]
        assert await rows(other, COUNT) == [[4]]


async def test_one_asks_for_what_many_want(install, a_redis):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        before = engine.results.statistics.misses
        found = await asyncio.gather(*(rows(engine, COUNT) for _ in range(50)))
        assert found == [[[3]]] * 50
        assert engine.results.statistics.misses == before + 1
        assert engine.results.statistics.joined == 49


async def test_values_come_back_as_they_were_whoever_changes_them(install, a_redis):
    query = (
        "select id, 1.50::numeric, 0.1::float8, -0.0::float8, 'NaN'::float8, 1e300::float8, "
        "'{\"a\": [1, 2.50, 1e400]}'::jsonb, array[true, null], null, 9223372036854775807, "
        "'\\x00ff'::bytea, 'é\"\n', 1.0::float8 from users order by id"
    )
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        fresh = await ask(engine, "acme", query)
        await kept(engine)
        assert await how(engine, query) == "misses"
        given, what = await again(engine, "acme", query)
        assert what == "hits_memory"
        assert repr(given) == repr(fresh)
        given.rows.clear()
        assert repr(await ask(engine, "acme", query)) == repr(fresh)


async def test_a_result_that_is_too_large_or_too_old_is_not_given(install, a_redis):
    """And memory is bounded."""
    wide = "select repeat('x', $1) from plans"
    settings = {"cache_result_bytes_max": 2_000, "cache_age_s": 0.001, "cache_shared_bytes_max": 1}
    settings["cache_tenant_bytes_max"] = 4_000
    async with caching(install, a_redis, **settings) as engine:
        await make_tenant(engine)
        await ask(engine, "acme", "insert into plans values (1, 'a')")
        await kept(engine)
        assert len((await rows(engine, wide, 3_000))[0][0]) == 3_000
        assert await how(engine, wide, 3_000) == "misses too_large"
        assert await how(engine, PLANS) == "misses"
        while "hits" in await how(engine, PLANS):
            pass
        for number in range(40):
            await rows(engine, "select id, $1::integer from users", number)
        assert 0 < engine.results.document()["bytes"] <= 4_000
        assert engine.results.document()["evicted"] > 0


async def test_who_waits_for_another_reader_has_its_time_once(install, a_redis, monkeypatch):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        left: list[float | None] = []
        execute = engine._executor.execute

        async def noting(route: Any, operation: Operation, schema: Any) -> QueryResult:
            left.append(operation.deadline_s)
            return await execute(route, operation, schema)

        monkeypatch.setattr(engine._executor, "execute", noting)
        async with install.connected() as admin, admin.transaction():
            await admin.execute("lock table app.plans in access exclusive mode")
            first = asyncio.create_task(ask(engine, "acme", PLANS))
            while not left:
                await asyncio.sleep(0.01)
            with pytest.raises(TenancyError):
                await ask(engine, "acme", PLANS, deadline_s=0.2)
        await first
        # The time was over when it had waited; what is left then is what a moment is.
        assert left == [None, 0.001]


async def test_what_is_in_use_does_not_end_in_redis(install, own_redis: OwnRedis):
    async with caching(install, own_redis) as engine:
        await make_tenant(engine)
        tenant = await kept(engine)
        client = Redis.from_url(own_redis.url)
        try:
            for query, params in ((COUNT, ()), (INSERT, (9,))):
                (state,) = [
                    key
                    async for key in client.scan_iter(match=f"*{tenant.cache.nonce}")
                    if await client.type(key) == b"hash"
                ]
                await client.pexpire(state, 600_000)
                await ask(engine, "acme", query, *params)
                assert await client.pttl(state) > 3 * 24 * 3_600_000
        finally:
            await client.aclose()


# Redis goes


async def test_without_redis_nothing_is_stale_and_nothing_fails(install, own_redis: OwnRedis):
    async with caching(install, own_redis) as engine, caching(install, own_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        assert await rows(engine, COUNT) == await rows(other, COUNT) == [[3]]
        await own_redis.server.stop()
        assert await rows(engine, COUNT) == [[3]]
        await ask(other, "acme", "insert into users (id, email) values (4, 'x')")
        assert await rows(engine, COUNT) == await rows(other, COUNT) == [[4]]
        assert (await engine.tenant("acme")).cache.nonce is None
        with pytest.raises(UnavailableError, match="Redis"):
            await engine.keep_results("acme", True)

        await own_redis.server.start()
        await settled(engine)
        await rows(engine, COUNT)
        assert await how(engine, COUNT) == "hits_memory"


async def test_a_redis_that_was_started_again_is_not_believed(install, own_redis: OwnRedis):
    """What it brings back from its disk may be older than it was."""
    async with caching(install, own_redis) as engine:
        await make_tenant(engine)
        first = (await kept(engine)).cache.nonce
        assert await rows(engine, COUNT) == [[3]]
        await own_redis.server.stop()
        await own_redis.server.start()
        await ask(engine, "acme", "insert into users (id, email) values (4, 'x')")
        assert await rows(engine, COUNT) == [[4]]
        await settled(engine)
        assert (await engine.tenant("acme")).cache.nonce not in (None, first)


async def test_who_cannot_reach_redis_ends_the_keeping_for_those_who_can(install, a_redis):
    nowhere = dataclasses.replace(a_redis, url="redis://127.0.0.1:1/0")
    async with caching(install, a_redis) as engine, caching(install, nowhere) as lonely:
        await make_tenant(engine)
        await kept(engine)
        assert await rows(engine, COUNT) == [[3]]
        assert await how(engine, COUNT) == "hits_memory"
        for number in (4, 5):
            await ask(lonely, "acme", INSERT, number)
            assert await rows(engine, COUNT) == [[number]]


# Processes die


async def test_a_write_that_was_announced_and_never_ended(install, a_redis):
    async with caching(install, a_redis, cache_lost_write_s=0.2) as engine:
        await make_tenant(engine)
        tenant = await kept(engine)
        assert await rows(engine, COUNT) == [[3]]
        dead = CacheStore(engine.settings, engine.results.redis.url)
        assert await dead.begin(tenant.cache.nonce, ["users"])
        await dead.close()
        assert await how(engine, COUNT) == "stale_avoided under_way"
        while (await engine.tenant("acme")).cache.nonce == tenant.cache.nonce:
            assert "hits" not in await how(engine, COUNT)
        await settled(engine)
        await rows(engine, COUNT)
        assert await how(engine, COUNT) == "hits_memory"


async def test_a_write_that_was_given_up_counts_as_under_way(install, a_redis):
    async with caching(install, a_redis) as engine, install.connected() as admin:
        await make_tenant(engine)
        await kept(engine)
        assert await rows(engine, COUNT) == [[3]]
        async with admin.transaction():
            await admin.execute("lock table app.users in share mode")
            write = asyncio.create_task(
                ask(engine, "acme", "insert into users (id, email) values (4, 'x')")
            )
            while not await admin.fetchval("select count(*) from pg_locks where not granted"):
                pass
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
        assert engine.results.statistics.unknown == 1
        assert await how(engine, COUNT) == "stale_avoided under_way"


async def test_a_period_that_was_begun_by_half_is_finished(install, a_redis):
    """The process died after the catalog had the new epoch, and before the fence had it."""
    async with caching(install, a_redis) as engine:
        tenant = await make_tenant(engine)
        await engine.catalog.pool.write(
            SqlFile("result_cache.sql").statement("want_cache"), tenant.tenant_no
        )
        await ask(engine, "acme", COUNT)
        nonce = "half"
        await engine.results._store.open(nonce)
        epoch = (await engine.tenant("acme")).placement.epoch
        assert (
            await engine.catalog.pool.write(
                SqlFile("result_cache.sql").statement("begin_period"),
                tenant.tenant_no,
                epoch,
                Epoch(epoch + 1),
                nonce,
                heard_s(install.settings),
            )
            == 1
        )
        engine.passivate(TenantId("acme"))
        await ask(engine, "acme", "insert into users (id, email) values (4, 'x')")
        assert await rows(engine, COUNT) == [[4]]
        await settled(engine)
        assert (await engine.tenant("acme")).cache.nonce == nonce
        assert await rows(engine, COUNT) == [[4]]
        assert await how(engine, COUNT) == "hits_memory"


# The tenant's life goes on


async def test_a_suspended_tenant_gets_no_result_anywhere(install, a_redis):
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        await rows(other, COUNT)
        assert await how(other, COUNT) == "hits_memory"
        await engine.suspend_tenant("acme")
        with pytest.raises(TenantSuspendedError):
            await ask(other, "acme", COUNT)
        await engine.resume_tenant("acme")
        await settled(other)
        await rows(other, COUNT)
        assert await how(other, COUNT) == "hits_memory"
        await engine.delete_tenant("acme")
        with pytest.raises((TenantNotFoundError, TenantSuspendedError)):
            await ask(other, "acme", COUNT)


ADD = "insert into users (id, email) values ($1, 'x')"


@pytest.mark.parametrize("end", ["suspended", "forgone", "deleted"])
async def test_who_reads_and_writes_all_the_time_gets_nothing_after_the_end(install, a_redis, end):
    """Another process that is busy with the tenant begins no period again meanwhile."""
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        over, refused = asyncio.Event(), asyncio.Event()

        async def busy() -> None:
            number = 100
            while not over.is_set():
                number += 1
                try:
                    await ask(other, "acme", ADD, number)
                    await rows(other, COUNT)
                except TenancyError:
                    refused.set()

        at_work = asyncio.create_task(busy())
        match end:
            case "suspended":
                await engine.suspend_tenant("acme")
            case "forgone":
                assert (await engine.keep_results("acme", False)).cache is None
            case _:
                await engine.delete_tenant("acme")
        before = other.results.document()
        if end == "forgone":
            await ask(other, "acme", COUNT)
        else:
            with pytest.raises((TenantNotFoundError, TenantSuspendedError)):
                await ask(other, "acme", COUNT)
            await refused.wait()
        after = other.results.document()
        given = ("hits_memory", "hits_shared", "joined")
        assert [after[name] for name in given] == [before[name] for name in given]
        over.set()
        await at_work


async def test_no_period_begins_before_everybody_has_heard_of_the_end_of_the_last(install, a_redis):
    statement = SqlFile("result_cache.sql").statement
    async with caching(install, a_redis) as engine:
        tenant = await make_tenant(engine)
        await kept(engine)
        nonce = (await engine.tenant("acme")).cache.nonce
        write, begin = engine.catalog.pool.write, engine.results._switch._begin
        await write(statement("end_period"), tenant.tenant_no, nonce)
        await begin(TenantId("acme"))
        assert (await engine.tenant("acme")).cache.nonce is None
        await engine.results._switch.settled((await engine.tenant("acme")).cache)
        while (await engine.tenant("acme")).cache.nonce is None:
            await begin(TenantId("acme"))
        # And none at all while it is being switched off.
        await write(statement("unwant_cache"), tenant.tenant_no)
        await engine.results._switch.settled((await engine.tenant("acme")).cache)
        await begin(TenantId("acme"))
        assert (await engine.tenant("acme")).cache.nonce is None


async def test_nothing_is_written_unannounced_before_everybody_has_heard(install, a_redis):
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        tenant = await make_tenant(engine)
        await kept(engine)
        await settled(other)
        await rows(other, COUNT)
        nonce = (await engine.tenant("acme")).cache.nonce
        await engine.catalog.pool.write(
            SqlFile("result_cache.sql").statement("end_period"), tenant.tenant_no, nonce
        )
        # This process hears at once, and could write before the other one has heard.
        engine.passivate(TenantId("acme"))
        began = asyncio.get_running_loop().time()
        await ask(engine, "acme", "insert into users (id, email) values (50, 'x')")
        assert asyncio.get_running_loop().time() - began >= heard_s(engine.settings) * 0.9
        assert await rows(other, COUNT) == [[4]]


async def test_a_migration_that_changes_rows_leaves_no_old_result(install, a_redis):
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        await rows(other, COUNT)
        assert await how(other, COUNT) == "hits_memory"
        # With a foreign key's action that only the newest version has.
        await engine.apply_migration(
            "0002_fewer",
            "delete from users where id = 1; create table pets (id integer primary key, "
            "owner integer references users on delete cascade)",
        )
        assert await rows(other, COUNT) == [[2]]
        await settled(other)
        assert await rows(other, COUNT) == [[2]]
        assert (await engine.tenant("acme")).cache.version == 2
        await ask(other, "acme", "insert into pets values (1, 2)")
        assert await rows(other, "select count(*) from pets") == [[1]]
        await ask(engine, "acme", "delete from users where id = 2")
        assert await rows(other, "select count(*) from pets") == [[0]]


async def test_a_tenant_that_is_moved_takes_its_switch_along(install, a_redis):
    async with caching(install, a_redis) as engine, caching(install, a_redis) as other:
        await make_tenant(engine)
        await kept(engine)
        await settled(other)
        await other.pin_tenant("acme", True)
        assert await rows(other, COUNT) == [[3]]
        engine.moves.work()
        move = await engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
        number = 3
        while (await engine.moves.move(move.move_id)).state not in ("open", "failed"):
            number += 1
            await ask(engine, "acme", INSERT, number)
            assert await rows(other, COUNT) == [[number]]
        assert (await engine.moves.move(move.move_id)).state == "open"
        await settled(other)
        # It is pinned, so that this was read ahead at the new place.
        while not other.results.statistics.filled_ahead:
            assert await other.results.pins.look() is not None
        await rows(other, COUNT)
        assert await how(other, COUNT) == "hits_memory"
        await ask(engine, "acme", "insert into users (id, email) values (0, 'z')")
        assert await rows(other, COUNT) == [[number + 1]]


async def test_what_is_not_repeatable_is_asked_each_time(install, a_redis):
    async with caching(install, a_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        for query, params in (
            ("select random() from users", []),
            ("select now() from users", []),
            ("select current_timestamp from users", []),
            ("select id from users where joined < 'today'", []),
            ("select id from users where joined < $1", ["now"]),
            ("select email::date from users where id < 0", []),
            ("select id from users for update", []),
            ("select 1", []),
        ):
            for _ in range(2):
                assert "hits" not in await how(engine, query, *params), query
        assert SETTINGS["cache_statement_min_us"] == 0


async def test_refused_while_the_tenant_is_on_its_way(install, a_redis):
    """An operation that is refused for an old epoch has announced itself in vain, and ends."""
    async with caching(install, a_redis) as engine:
        tenant = await make_tenant(engine)
        await kept(engine)
        async with install.connected() as admin:
            await admin.execute(
                "update tenancy.fence set open = false where tenant_no = $1", tenant.tenant_no
            )
            with pytest.raises(PlacementChangedError):
                await ask(engine, "acme", "insert into users (id, email) values (4, 'x')")
            await admin.execute(
                "update tenancy.fence set open = true where tenant_no = $1", tenant.tenant_no
            )
        assert await how(engine, COUNT) == "misses"
