"""Limits by the type of a tenant: each is exceeded through the engine and over HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import httpx
import pytest
from support.engines import TABLES, ask, known_as_quick, make_tenant, may_travel, opened
from support.http_api import MakeApi
from support.install import SERVER
from support.watching import tiers, until, until_it_is, watched

from tenancy.data_isolation.core.errors import (
    RateLimitedError,
    ResultTooLargeError,
    StatementTimeoutError,
)
from tenancy.data_isolation.core.tier_limits import TierLimits, TierTable
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    TenantContext,
    TenantType,
)
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.watch_rules import Offence

pytestmark = pytest.mark.migrated("0001_users", TABLES)

SLOW = "select count(*) from generate_series(1, 3000000000) n"
ROWS = "select n from generate_series(1, $1::integer) n"
BYTES = "select repeat('x', $1::integer)"
#: Some are refused what others may.
TYPES = TierTable(
    free=TierLimits(
        statement_timeout_ms=300,
        result_rows_max=10,
        result_bytes_max=1_000,
        statement_memory_bytes=128 * 1024,
    )
)


def under_way(engine: Engine, tenant: str) -> int:
    """Operations of a tenant that its engine has let in and that have not ended."""
    route = engine._routes._known.get(tenant)
    return 0 if route is None else route.allowance.under_way


async def make(engine: Engine, name: str, kind: TenantType, level: IsolationLevel) -> None:
    await engine.create_tenant(TenantContext(tenant_id=name, tenant_type=kind), level=level)


@pytest.mark.parametrize("level", [IsolationLevel.ROW, IsolationLevel.SCHEMA])
async def test_the_type_of_a_tenant_decides_what_a_statement_may_take(install, level):
    async with opened(install, tiers=TYPES) as engine:
        await make(engine, "small", TenantType.FREE, level)
        await make(engine, "large", TenantType.ENTERPRISE, level)

        assert (await ask(engine, "small", ROWS, 10)).row_count == 10
        assert (await ask(engine, "large", ROWS, 11)).row_count == 11
        with pytest.raises(ResultTooLargeError, match="more than 10 rows or 1000 bytes"):
            await ask(engine, "small", ROWS, 11)
        assert len((await ask(engine, "small", BYTES, 900)).rows[0][0]) == 900
        assert len((await ask(engine, "large", BYTES, 1_100)).rows[0][0]) == 1_100
        with pytest.raises(ResultTooLargeError):
            await ask(engine, "small", BYTES, 1_100)
        with pytest.raises(StatementTimeoutError, match=r"its limit \(300 ms"):
            await ask(engine, "small", SLOW)


async def test_tenants_that_travel_together_each_have_their_own_limits(install):
    async with opened(install, tiers=TYPES, server_connections_max=1) as engine:
        names = []
        for index in range(6):
            kind = TenantType.FREE if index % 2 else TenantType.ENTERPRISE
            names.append((f"t{index}", kind))
            await make(engine, f"t{index}", kind, IsolationLevel.ROW)
        for _ in range(3):
            outcomes = await asyncio.gather(
                *(ask(engine, name, ROWS, 11) for name, _ in names), return_exceptions=True
            )
            for (_, kind), outcome in zip(names, outcomes, strict=True):
                if kind is TenantType.FREE:
                    assert isinstance(outcome, ResultTooLargeError)
                else:
                    assert outcome.row_count == 11  # type: ignore[union-attr]


async def test_results_that_travel_with_those_of_others_are_counted_by_their_size(install):
    limits = tiers(operations_per_s=0.1, operations_burst=150)
    async with opened(install, tiers=limits, server_connections_max=1) as engine:
        await make_tenant(engine, "greedy")
        await make_tenant(engine, "modest")
        for name in ("greedy", "modest"):
            await ask(engine, name, BYTES, 10)
        await known_as_quick(engine, "modest", BYTES, 10)

        # Four of 50 kB are nearly 200 operations, more than the tenant may have at a time.
        await asyncio.gather(
            *(
                ask(engine, name, BYTES, size)
                for name, size in 4 * [("greedy", 50_000), ("modest", 10)]
            )
        )

        with pytest.raises(RateLimitedError):
            await ask(engine, "greedy", BYTES, 10)
        assert len((await ask(engine, "modest", BYTES, 10)).rows[0][0]) == 10


async def test_a_statement_whose_result_was_large_travels_alone_next_time(install):
    async with opened(install, server_connections_max=1) as engine:
        await make_tenant(engine, "acme")
        await make_tenant(engine, "other")
        await known_as_quick(engine, "acme", BYTES, 10)
        await asyncio.gather(*(ask(engine, "acme", BYTES, 100_000) for _ in range(4)))
        assert not await may_travel(engine, "acme", BYTES, 10)
        assert await may_travel(engine, "other", BYTES, 10)
        await known_as_quick(engine, "acme", BYTES, 10)


async def test_the_memory_of_a_session_changes_hands_with_it(install):
    """Seen from beside: whether the same sort fits into memory or goes to temporary files."""
    files = "select temp_files from pg_stat_database where datname = current_database()"
    flush = "select pg_stat_clear_snapshot()"
    sort = "select max(x) from (select n as x from generate_series(1, 60000) n order by n desc) y"
    async with (
        opened(install, tiers=TYPES, server_connections_max=1) as engine,
        install.connected() as admin,
    ):
        await make(engine, "small", TenantType.FREE, IsolationLevel.ROW)
        await make(engine, "large", TenantType.ENTERPRISE, IsolationLevel.ROW)

        async def spilled() -> int:
            # The session tells of its files when it is idle, at most once a second.
            await admin.execute(flush)
            return int(await admin.fetchval(files))

        async def spilled_beyond(count: int) -> int:
            async def told() -> bool:
                await ask(engine, "small", "select 1")
                return await spilled() > count

            await until_it_is(told)
            return await spilled()

        before = await spilled()
        await ask(engine, "small", sort)
        once = await spilled_beyond(before) - before
        await ask(engine, "large", sort)
        await ask(engine, "small", sort)
        assert await spilled_beyond(before + once) == before + 2 * once, "none is the large one's"


async def test_a_tenant_has_so_many_sessions_of_the_pool_and_its_login_no_more(install):
    limits = tiers(connections_max=2, long_statements_max=8)
    async with (
        opened(install, tiers=limits, server_long_statements_max=8) as engine,
        install.connected() as admin,
    ):
        tenant = await make_tenant(engine, "acme", IsolationLevel.SCHEMA)
        role = tenant.placement.role
        active = "select count(*) from pg_stat_activity where usename = $1 and state = 'active'"
        running = [asyncio.create_task(ask(engine, "acme", SLOW)) for _ in range(4)]

        async def at_work() -> bool:
            return bool(await admin.fetchval(active, role) == 2)

        await until_it_is(at_work)
        # The others wait for a session, and there is none for them.
        await until(lambda: engine._executor.statistics()[SERVER] == (2, 2))
        assert await at_work()
        limit = "select rolconnlimit from pg_roles where rolname = $1"
        assert await admin.fetchval(limit, role) == 4
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_tenant_of_long_statements_does_not_take_the_sessions_of_others(install):
    """Whatever it sends, so many of them run, and others find room at once."""
    async with (
        opened(
            install,
            tiers=tiers(long_statements_max=1),
            long_statement_ms=50,
            server_connections_max=8,
            connection_wait_ms=1_500,
        ) as engine,
        install.connected() as admin,
    ):
        await make_tenant(engine, "heavy")
        await make_tenant(engine, "light")
        running = [
            asyncio.create_task(ask(engine, "heavy", f"{SLOW} where n <> -{n}", deadline_s=3))
            for n in range(12)
        ]
        long = (
            "select count(*) from pg_stat_activity where usename = 'tenancy_rows' "
            "and state = 'active' and query like '%3000000000%' "
            "and clock_timestamp() - query_start > interval '400 ms'"
        )
        seen = []
        while not all(task.done() for task in running):
            assert (await ask(engine, "light", "select count(*) from users")).rows == [[3]]
            seen.append(await admin.fetchval(long))
        assert max(seen) == 1
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds == {StatementTimeoutError, RateLimitedError}
        waited = next(item for item in outcomes if isinstance(item, RateLimitedError))
        assert "take long" in waited.detail
        assert waited.retryable


async def test_statements_that_were_quick_before_count_when_they_take_long(install):
    text = "select count(*) from generate_series(1, $1::bigint) n"
    async with (
        opened(
            install,
            tiers=tiers(long_statements_max=1),
            long_statement_ms=50,
            tenant_connections_max=4,
        ) as engine,
        install.connected() as admin,
    ):
        await make_tenant(engine, "heavy")
        await known_as_quick(engine, "heavy", text, 1)
        at_work = (
            "select count(*) from pg_stat_activity where usename = 'tenancy_rows' "
            "and state = 'active' and query like '%generate_series(1, $1::bigint)%' "
        )
        running: list[asyncio.Task[Any]] = []
        for n in range(3):
            # Each flies by itself: those before it have left.
            assert await may_travel(engine, "heavy", text, 1)
            running.append(
                asyncio.create_task(ask(engine, "heavy", text, 3_000_000_000 + n, deadline_s=3))
            )
            await until(lambda: not engine._executor.statistics()[SERVER][1])
        seen = []
        while not all(task.done() for task in running):
            long = f"{at_work} and clock_timestamp() - query_start > interval '400 ms'"
            seen.append(await admin.fetchval(long))
        assert max(seen) == 1
        assert not await may_travel(engine, "heavy", text, 1)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert {type(item) for item in outcomes} <= {StatementTimeoutError, RateLimitedError}


async def test_so_many_operations_per_second_and_at_the_same_time(install):
    # One more in 100 s: no machine is slow enough for it to come before the end.
    async with opened(
        install, tiers=tiers(operations_per_s=0.01, operations_burst=3, operations_in_flight_max=2)
    ) as engine:
        await make_tenant(engine, "acme", users=0)
        await make_tenant(engine, "other", users=0)
        running = [asyncio.create_task(ask(engine, "acme", SLOW)) for _ in range(2)]
        await until(lambda: under_way(engine, "acme") == 2)
        with pytest.raises(RateLimitedError, match="operations under way") as caught:
            await ask(engine, "acme", "select 1")
        assert caught.value.retry_after_s == 1.0
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

        assert (await ask(engine, "acme", "select 1")).rows == [[1]]
        with pytest.raises(RateLimitedError, match=r"0\.01 operations per second") as caught:
            await ask(engine, "acme", "select 1")
        assert 0 < caught.value.retry_after_s <= 100.0
        with pytest.raises(RateLimitedError, match=r"0\.01 operations per second"):
            await engine.execute_batch("acme", [Operation(query="select 1")])
        assert (await ask(engine, "other", "select 1")).rows == [[1]]


async def test_a_transaction_of_a_batch_has_so_much_time_in_all(install):
    limits = tiers(transaction_timeout_ms=600)
    half = "select count(*) from generate_series(1, 1000000) n"
    async with opened(install, tiers=limits) as engine:
        await make_tenant(engine, "acme", users=0)
        add = Operation(query="insert into users (id, email) values (1, 'x')")
        batch = [add, *(Operation(query=half) for _ in range(200))]
        with pytest.raises(StatementTimeoutError, match="its transaction's time"):
            await engine.execute_batch("acme", batch, atomic=True)
        assert (await ask(engine, "acme", "select count(*) from users")).rows == [[0]]


async def test_locks_of_a_statement_through_the_engine_are_seen_to_by_the_watchdog(install):
    query = "select count(*) from users, plans, late, generate_series(1, 3000000000) n"
    limits = tiers(locks_max=3)
    async with opened(install, tiers=limits) as engine:
        await make_tenant(engine, "acme")
        await ask(engine, "acme", "insert into plans values (1, 'x')")
        await ask(engine, "acme", "insert into late values (1, 1)")
        async with watched(install, tiers=limits) as watchdog:
            with pytest.raises(StatementTimeoutError, match="cancelled from outside") as caught:
                await ask(engine, "acme", query)
            assert caught.value.sqlstate == "57014"
            await until(lambda: watchdog.report.actions[Offence.LOCKS] == 1)
            assert (await ask(engine, "acme", "select 1")).rows == [[1]]


# Over HTTP


async def _answer(client: httpx.AsyncClient, query: str, params: Any = ()) -> httpx.Response:
    body = {"query": query, "params": list(params)}
    return await client.post("/v1/tenants/acme/query", json=body)


OVER_HTTP = [
    ({"statement_timeout_ms": 200}, SLOW, [], 504, "statement-timeout", False),
    ({"result_rows_max": 10}, ROWS, [11], 413, "result-too-large", False),
    ({"result_bytes_max": 1_000}, BYTES, [1_100], 413, "result-too-large", False),
    ({"operations_per_s": 0.1, "operations_burst": 1}, "select 1", [], 429, "rate-limited", True),
]


async def test_a_limit_that_is_exceeded_has_its_status_over_http(make_api: MakeApi, subtests):
    for limits, query, params, status, slug, retryable in OVER_HTTP:
        with subtests.test(limits=limits):
            api = await make_api(tiers=tiers(**limits))
            acme = (
                await api.tenant("acme", "row")
                if query == SLOW
                else await api.client(await api.key("acme"))
            )
            if status == 429:
                assert (await _answer(acme, query)).status_code == 200

            answer = await _answer(acme, query, params)

            assert answer.status_code == status, answer.text
            problem = answer.json()
            assert problem["type"].endswith(slug)
            assert problem["retryable"] is retryable
            if retryable:
                assert 1 <= int(answer.headers["Retry-After"]) <= 10


async def test_operations_under_way_are_limited_over_http(make_api: MakeApi):
    api = await make_api(tiers=tiers(operations_in_flight_max=2))
    acme = await api.tenant("acme", "row")
    running = [asyncio.create_task(_answer(acme, SLOW)) for _ in range(2)]
    await until(lambda: under_way(api.engine, "acme") == 2)
    answer = await _answer(acme, "select 1")

    assert (answer.status_code, answer.json()["retryable"]) == (429, True)
    assert answer.headers["Retry-After"] == "1"
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_what_the_watchdog_does_is_told_in_figures(make_api: MakeApi):
    from tenancy.data_isolation.engine.watchdog import WatchdogReport
    from tenancy.data_isolation.serve.watchdog_report import report_path, write_reports

    api = await make_api()
    text = (await api.anonymous.get("/metrics")).text
    assert "tenancy_watchdog_acting 0.0" in text
    report = WatchdogReport(SERVER, state="acting", looks=7, look_ms=2.0)
    report.looked_at = time.monotonic()
    report.actions[Offence.TABLE_LOCK] = 3
    path = report_path(api.engine.settings.home)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_reports(path, [report.plain()])

    text = (await api.anonymous.get("/metrics")).text
    assert 'tenancy_watchdog_actions_total{offence="table_lock"} 3.0' in text
    assert 'tenancy_watchdog_actions_total{offence="stranger"} 0.0' in text
    assert "tenancy_watchdog_acting 1.0" in text

    # Nor does one act whose look is overdue, or that has not written for a while.
    report.looked_at -= 5
    write_reports(path, [report.plain()])
    assert "tenancy_watchdog_acting 0.0" in (await api.anonymous.get("/metrics")).text
    report.looked_at += 5
    write_reports(path, [report.plain()])
    assert "tenancy_watchdog_acting 1.0" in (await api.anonymous.get("/metrics")).text
    os.utime(path, (0, 0))
    assert "tenancy_watchdog_acting 0.0" in (await api.anonymous.get("/metrics")).text
    assert "tenancy_watchdog_look_seconds 0.002" in text
