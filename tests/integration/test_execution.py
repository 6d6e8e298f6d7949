"""Statements of tenants: results, errors, limits, and that sessions go from hand to hand clean."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import (
    ConstraintError,
    OutcomeUnknownError,
    ParameterError,
    RequestTooLargeError,
    ResultTooLargeError,
    ServerUnavailableError,
    StatementError,
    StatementForbiddenError,
    StatementSyntaxError,
    StatementTimeoutError,
    TenancyError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.types import Column, IsolationLevel, Operation
from tenancy.data_isolation.engine.connection import Connection, Description
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.ticket import Ticket

#: Runs for minutes, and does so in functions that tenants may call.
pytestmark = pytest.mark.migrated("0001_users", TABLES)

SLOW = "select count(*) from generate_series(1, 3000000000) n"


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install) as made:
        yield made


@pytest.mark.parametrize("level", IsolationLevel)
async def test_the_same_statements_give_the_same_results_at_every_level(engine, level):
    await make_tenant(engine, "acme", level)
    await make_tenant(engine, "other", level, users=5)

    result = await ask(engine, "acme", "select id, email from users where id > $1 order by id", 1)
    assert result.columns == (Column(name="id", type="integer"), Column(name="email", type="text"))
    assert result.rows == [[2, "2@acme"], [3, "3@acme"]]
    assert result.row_count == 2

    changed = await ask(engine, "acme", "update users set plan = null")
    assert (changed.columns, changed.rows, changed.row_count) == ((), [], 3)
    upserted = await ask(
        engine,
        "acme",
        "insert into users (id, email) values (1, 'x') on conflict (id) do update "
        "set email = excluded.email returning *",
    )
    assert [column.name for column in upserted.columns] == ["id", "email", "plan", "joined"]
    assert upserted.rows[0][:3] == [1, "x", None]
    named = await engine.execute(
        "acme", Operation(query="select :word::text || 's'", params={"word": "plan"})
    )
    assert named.rows == [["plans"]]
    assert (await ask(engine, "other", "select count(*) from users")).rows == [[5]]


REFUSED = [
    ("selec 1", StatementSyntaxError, "42601", "syntax error"),
    ("drop table users", StatementForbiddenError, None, ""),
    ("select * from nothing", StatementError, "42P01", 'relation "nothing" does not exist'),
    ("select nothing from users", StatementError, "42703", '"nothing" does not exist'),
    ("insert into users values (1, 'new')", ConstraintError, "23505", "users_pkey"),
    ("insert into users (id) values (9)", ConstraintError, "23502", '"email"'),
    ("insert into users values (9, 'x', 5)", ConstraintError, "23503", "plan"),
    ("insert into late values (1, 99)", ConstraintError, "23503", "late"),
    ("select 1 / 0", StatementError, "22012", "division by zero"),
    ("select $1::integer", ParameterError, None, "1 placeholder"),
    ("select 'x'::integer", ParameterError, "22P02", "integer"),
]


@pytest.mark.parametrize("level", [IsolationLevel.ROW, IsolationLevel.SCHEMA])
async def test_errors_are_ours_and_speak_of_a_plain_database(engine, level):
    tenant = await make_tenant(engine, "acme", level)

    for query, kind, sqlstate, words in REFUSED:
        with pytest.raises(TenancyError) as caught:
            await ask(engine, "acme", query)

        assert type(caught.value) is kind, query
        assert caught.value.sqlstate == sqlstate or sqlstate is None, query
        assert words in caught.value.detail
        assert "tenant_id" not in caught.value.detail
        schema = tenant.placement.schema
        assert schema == "app" or schema not in caught.value.detail
        assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]


async def test_an_unknown_tenant_is_not_found(engine):
    with pytest.raises(TenantNotFoundError):
        await ask(engine, "nobody", "select 1")


async def test_a_result_may_have_so_many_rows_and_no_more(install):
    async with opened(install, result_rows_max=100) as engine:
        await make_tenant(engine)
        query = "select n from generate_series(1, $1::integer) n"
        assert len((await ask(engine, "acme", query, 100)).rows) == 100

        for rows in (101, 10_000_000):
            with pytest.raises(ResultTooLargeError, match="more than 100 rows"):
                await ask(engine, "acme", query, rows)
        assert (await ask(engine, "acme", "select 1")).rows == [[1]]


async def test_a_result_may_have_so_many_bytes_and_no_more(install):
    async with opened(install, result_bytes_max=200_000) as engine:
        await make_tenant(engine)
        one = "select repeat('x', $1::integer)"
        assert len((await ask(engine, "acme", one, 190_000)).rows[0][0]) == 190_000

        for query, size in ((one, 300_000), (one, 50_000_000), (_MANY, 1_000_000)):
            with pytest.raises(ResultTooLargeError):
                await ask(engine, "acme", query, size)
            assert (await ask(engine, "acme", "select 1")).rows == [[1]]


_MANY = "select repeat('y', 1000) from generate_series(1, $1::integer)"


async def test_a_write_whose_result_is_too_large_changes_nothing(install):
    async with opened(install, result_rows_max=10) as engine:
        await make_tenant(engine, users=10)
        await ask(engine, "acme", "insert into users (id, email) values (11, 'eleven')")

        with pytest.raises(ResultTooLargeError):
            await ask(
                engine, "acme", "update users set plan = null, email = email || '!' returning id"
            )

        changed = await ask(engine, "acme", "select count(*) from users where email like '%!'")
        assert changed.rows == [[0]]


async def test_a_statement_is_cancelled_when_its_time_is_over(install):
    async with opened(install, statement_timeout_ms=200) as engine:
        await make_tenant(engine)

        with pytest.raises(StatementTimeoutError, match="nothing was done"):
            await ask(engine, "acme", SLOW)

        assert (await ask(engine, "acme", "select 1")).rows == [[1]]
        async with install.connected() as admin:
            assert await _at_work(admin) == 0


async def test_the_callers_deadline_counts_when_it_is_sooner(engine):
    await make_tenant(engine)

    with pytest.raises(StatementTimeoutError):
        await ask(engine, "acme", SLOW, deadline_s=0.2)


async def test_what_nobody_waits_for_any_more_when_it_is_known_does_not_run(install, monkeypatch):
    async with opened(install, server_connections_max=1) as engine:
        await make_tenant(engine)
        flights = engine._executor.flights
        describe, leaving = flights._describe, []

        async def described(connection: Connection, ticket: Ticket) -> Description:
            found = await describe(connection, ticket)
            # Its cancellation comes between two exchanges, when there is nothing to end.
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            return found

        monkeypatch.setattr(flights, "_describe", described)
        leaving.append(asyncio.create_task(ask(engine, "acme", SLOW)))
        await asyncio.wait(leaving)
        monkeypatch.undo()

        assert (await ask(engine, "acme", "select 1")).rows == [[1]]


async def test_a_slow_statement_does_not_change_what_others_get(install):
    """They travel together once the text is known to be quick; then it turns out slow once."""
    async with opened(install, server_connections_max=2, tenant_connections_max=2) as engine:
        await make_tenant(engine, "slow", users=1)
        await make_tenant(engine, "quick", users=1)
        text = "select count(*) from generate_series(1, $1::bigint) n"
        await ask(engine, "quick", text, 10)

        work = asyncio.create_task(ask(engine, "slow", text, 2_000_000))
        results = await asyncio.gather(*(ask(engine, "quick", text, n) for n in range(100)))

        assert [result.rows for result in results] == [[[n]] for n in range(100)]
        assert (await work).rows == [[2_000_000]]


async def test_many_tenants_at_once_each_get_their_own(engine):
    names = [f"tenant-{n}" for n in range(12)]
    for index, name in enumerate(names):
        level = (IsolationLevel.ROW, IsolationLevel.SCHEMA)[index % 4 == 3]
        await make_tenant(engine, name, level, users=index + 1)

    async def check(index: int, turn: int) -> None:
        name = names[index]
        if turn % 7 == 5:
            with pytest.raises(ConstraintError):
                await ask(engine, name, "insert into users (id, email) values (1, 'again')")
            return
        if turn % 7 == 6:
            query = "update users set email = id || '@' || $1::text returning email"
            result = await ask(engine, name, query, name)
        else:
            result = await ask(engine, name, "select email from users")
        assert sorted(result.rows) == sorted([f"{n}@{name}"] for n in range(1, index + 2))

    await asyncio.gather(*(check(n % 12, n) for n in range(600)))


async def test_parameters_and_texts_are_bounded(engine):
    await make_tenant(engine)

    with pytest.raises(RequestTooLargeError):
        await ask(engine, "acme", "select " + "1," * 200_000 + "1")
    with pytest.raises(TenancyError):
        await ask(
            engine,
            "acme",
            "select " + ",".join(f"${n}::int" for n in range(1, 1_100)),
            *range(1_099),
        )


async def test_a_statement_that_runs_code_leaves_nothing_in_the_session(bare_install):
    """The function changes a setting; the next statement on the only session must not see it."""
    async with opened(bare_install, tables=False, server_connections_max=1) as engine:
        await engine.apply_migration(
            "0001_code",
            "create table users (id integer primary key, email text);"
            "create function leave_a_trace(value text) returns text language plpgsql as $$ begin "
            "perform pg_catalog.set_config('datestyle', 'SQL, DMY', false); return value; end; $$;",
        )
        await make_tenant(engine, "one", users=0)
        await make_tenant(engine, "two", users=0)

        assert (await ask(engine, "one", "select leave_a_trace('x')")).rows == [["x"]]

        for name in ("one", "two"):
            result = await ask(engine, name, "select date '2013-01-31'")
            assert result.rows == [["2013-01-31"]]


async def test_a_change_of_the_schema_is_noticed_in_prepared_statements(engine):
    await make_tenant(engine)
    for _ in range(8):
        await ask(engine, "acme", "select * from plans")
        await ask(engine, "acme", "select id, name from plans")
    await ask(engine, "acme", "insert into plans values (1, '5')")

    await engine.apply_migration(
        "0002_types",
        "alter table plans alter column name type bigint using name::bigint;"
        "alter table plans add column extra text default 'e';",
    )

    assert (await ask(engine, "acme", "select id, name from plans")).rows == [[1, 5]]
    assert (await ask(engine, "acme", "select * from plans")).rows == [[1, 5, "e"]]
    result = await ask(engine, "acme", "update plans set name = $1 returning name", 7)
    assert result.rows == [[7]]


@pytest.mark.parametrize("level", IsolationLevel)
async def test_a_read_survives_the_loss_of_its_session(engine, install, level):
    await make_tenant(engine, "acme", level)
    await ask(engine, "acme", "select 1")

    async with install.connected() as admin:
        assert await _end_sessions(admin) > 0
    results = await asyncio.gather(
        *(ask(engine, "acme", "select count(*) from users") for _ in range(20))
    )

    assert all(result.rows == [[3]] for result in results)


async def test_a_read_is_repeated_when_its_session_is_ended_under_it(engine, install):
    await make_tenant(engine)
    work = asyncio.create_task(ask(engine, "acme", SLOW))

    async with install.connected() as admin:
        await _until_at_work(admin)
        await _end_sessions(admin)
        await _until_at_work(admin)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_write_that_the_server_ended_is_known_to_be_undone_or_unknown(engine, install):
    await make_tenant(engine)
    query = (
        "insert into users (id, email) select 100, 'x' "
        "from generate_series(1, 3000000000) n having count(*) > 0"
    )
    work = asyncio.create_task(ask(engine, "acme", query))

    async with install.connected() as admin:
        while not work.done():
            await _until_at_work(admin, lambda: work.done())
            await _end_sessions(admin)
    with pytest.raises((ServerUnavailableError, OutcomeUnknownError)):
        await work
    assert (await ask(engine, "acme", "select count(*) from users where id = 100")).rows == [[0]]


async def test_a_caller_that_stops_waiting_stops_the_statement(engine, install):
    await make_tenant(engine)
    work = asyncio.create_task(ask(engine, "acme", SLOW))
    async with install.connected() as admin:
        await _until_at_work(admin)

        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

        await _until(lambda: _at_work(admin), 0)
    assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]


async def test_sessions_stay_clean_wherever_a_caller_stops_waiting(install):
    """Cancelled after every number of turns of the event loop, on a single session."""
    async with opened(install, server_connections_max=1) as engine:
        await make_tenant(engine, "one", users=1)
        await make_tenant(engine, "two", users=2)
        write = Operation(query="update users set email = email returning id")
        atomic = [write, Operation(query="select count(*) from users")]

        async def pieces(turn: int) -> Any:
            match turn % 4:
                case 0:
                    return await ask(engine, "one", "select count(*) from users")
                case 1:
                    return await engine.execute("one", write)
                case 2:
                    return await engine.execute_batch("one", atomic, atomic=True)
                case _:
                    return await ask(
                        engine, "one", "update users set plan = null", idempotency_key=f"k{turn}"
                    )

        for turn in range(120):
            work = asyncio.create_task(pieces(turn))
            for _ in range(turn // 4):
                await asyncio.sleep(0)
            work.cancel()
            await asyncio.wait([work])
            counted = await ask(engine, "two", "select count(*) from users")
            assert counted.rows == [[2]]
        async with install.connected() as admin:
            assert (
                await admin.fetchval(
                    "select count(*) from pg_stat_activity where state like 'idle in transaction%'"
                    " and application_name like 'tenancy%.%' and datname = current_database()"
                )
                == 0
            )


async def _at_work(admin: Any) -> int:
    found: int = await admin.fetchval(
        "select count(*) from pg_stat_activity where application_name like 'tenancy%.%' "
        "and state = 'active' and query like '%3000000000%'"
    )
    return found


async def _end_sessions(admin: Any) -> int:
    found: int = await admin.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where application_name like 'tenancy%.%'"
    )
    return found


async def _until_at_work(admin: Any, stop: Any = lambda: False) -> None:
    async with asyncio.timeout(30):
        while not stop() and not await _at_work(admin):
            await asyncio.sleep(0.02)


async def _until(ask_for: Any, expected: int) -> None:
    async with asyncio.timeout(30):
        while await ask_for() != expected:
            await asyncio.sleep(0.02)


async def test_results_that_are_large_only_together_all_arrive(install):
    """Reads of several tenants travel together; one flight may not hold all of their rows."""
    async with opened(
        install, result_bytes_max=100_000, server_connections_max=1, tenant_connections_max=1
    ) as engine:
        names = [f"tenant-{n}" for n in range(4)]
        for name in names:
            await make_tenant(engine, name, users=1)
        text = "select repeat(email, $1::integer) from users"
        await ask(engine, names[0], text, 1)

        results = await asyncio.gather(
            *(ask(engine, names[n % 4], text, 3_000) for n in range(32)),
            ask(engine, names[0], text, 30_000),
            return_exceptions=True,
        )

        for n, result in enumerate(results[:32]):
            assert not isinstance(result, BaseException)
            assert result.rows == [[f"1@{names[n % 4]}" * 3_000]]
        assert isinstance(results[32], ResultTooLargeError)


async def test_the_results_of_a_batch_fit_together_or_the_last_ones_are_refused(install):
    async with opened(install, batch_result_bytes_max=100_000) as engine:
        await make_tenant(engine, users=1)
        large = Operation(query="select repeat('x', 40000)")
        write = Operation(query="insert into plans select coalesce(max(id), 0) + 1, 'p' from plans")
        wrong = Operation(query="select 1 / 0")

        outcomes = await engine.execute_batch(
            "acme", [write, large, wrong, large, write, large, write, large]
        )

        kinds = [type(item).__name__ for item in outcomes]
        assert kinds == [
            "QueryResult",
            "QueryResult",
            "StatementError",
            "QueryResult",
            "QueryResult",
            "ResultTooLargeError",
            "QueryResult",
            "ResultTooLargeError",
        ]
        assert (await ask(engine, "acme", "select max(id) from plans")).rows == [[3]]


async def test_a_composite_type_that_a_migration_changed_is_read_as_it_is_now(bare_install):
    async with opened(bare_install, tables=False) as engine:
        await engine.apply_migration(
            "0001_pair",
            "create type pair as (a integer, b text);"
            "create table users (id integer primary key, email pair);",
        )
        await make_tenant(engine, users=0)
        text = "insert into users values ($1, $2) returning email"
        assert (await ask(engine, "acme", text, 1, [5, "x"])).rows == [[[5, "x"]]]

        await engine.apply_migration("0002_pair", "alter type pair add attribute c boolean")

        assert (await ask(engine, "acme", "select email from users")).rows == [[[5, "x", None]]]
        assert (await ask(engine, "acme", text, 2, [6, "y", True])).rows == [[[6, "y", True]]]
