"""`tenancy.tenant()` and the policies that call it, attacked on the tenant's own connection.

No statement here passes the guard: the database has to hold on its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.install import Install

from tenancy.data_isolation.core.crypto import binding_key
from tenancy.data_isolation.engine.binding_keys import add_keys

NOT_BOUND, NOT_VALID, OUT_OF_DATE, CLOSED = "TN001", "TN002", "TN003", "TN004"
SERIALIZATION_FAILURE = "40001"
LOCK_BIT = 1 << 62

_TABLE = """
set role tenancy_owner;
create table app.note (
    tenant_id bigint not null default tenancy.bound_tenant(),
    id int not null,
    body text not null,
    primary key (tenant_id, id)
);
alter table app.note enable row level security, force row level security;
create policy tenant on app.note
    using (tenant_id = (select tenancy.tenant()))
    with check (tenant_id = (select tenancy.tenant()));
grant select, insert, update, delete on app.note to tenancy_rows;
reset role;
insert into tenancy.fence values (1, 1, true), (2, 1, true);
insert into app.note select t, i, 'note of ' || t
    from generate_series(1, 2) t, generate_series(1, 500) i;
analyze app.note;
"""


@pytest.fixture
async def admin(install: Install) -> AsyncIterator[asyncpg.Connection]:
    """The superuser in the shared database, where two tenants have 500 notes each."""
    async with install.connected() as connection:
        await connection.execute(_TABLE)
        yield connection


@pytest.fixture
async def rows(install: Install, admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A session of the shared login, bound to tenant 1."""
    async with install.connected("tenancy_rows") as connection:
        await install.bind(connection, 1)
        yield connection


async def refusal(connection: asyncpg.Connection, query: str = "select tenancy.tenant()") -> str:
    """The SQLSTATE that `query` fails with."""
    with pytest.raises(asyncpg.PostgresError) as raised:
        await connection.fetch(query)
    return str(raised.value.sqlstate)


async def set_binding(connection: asyncpg.Connection, text: str) -> None:
    await connection.execute("select set_config('tenancy.binding', $1, false)", text)


# What a bound session sees


async def test_a_bound_session_sees_and_makes_rows_of_its_tenant_only(rows: asyncpg.Connection):
    await rows.execute("insert into app.note (id, body) values (501, 'mine')")

    seen = await rows.fetch("select tenant_id, count(*) from app.note group by 1")

    assert [tuple(row) for row in seen] == [(1, 501)]


async def test_rows_of_another_tenant_cannot_be_made_or_changed(rows: asyncpg.Connection):
    for query in (
        "insert into app.note (tenant_id, id, body) values (2, 999, 'planted')",
        "update app.note set tenant_id = 2 where id = 1",
        "merge into app.note n using (select 1 as id) s on n.id = s.id "
        "when matched then update set tenant_id = 2",
        "insert into app.note (id, body) values (1, 'x') "
        "on conflict (tenant_id, id) do update set tenant_id = 2",
    ):
        assert await refusal(rows, query) == "42501", query
    for query in (
        "update app.note set body = 'x' where tenant_id = 2",
        "delete from app.note where tenant_id = 2",
    ):
        assert (await rows.execute(query)).endswith(" 0")


async def test_a_session_can_be_bound_to_one_tenant_after_another(
    install: Install, rows: asyncpg.Connection
):
    await install.bind(rows, 2)

    assert await rows.fetchval("select tenancy.tenant()") == 2


async def test_a_read_only_transaction_can_read(rows: asyncpg.Connection):
    async with rows.transaction(readonly=True):
        assert await rows.fetchval("select count(*) from app.note") == 500


async def test_a_default_of_the_bound_tenant_is_refused_without_a_binding(
    install: Install, admin: asyncpg.Connection
):
    async with install.connected("tenancy_rows") as unbound:
        query = "insert into app.note (id, body) values (1, 'x')"
        assert await refusal(unbound, query) == NOT_BOUND
        await set_binding(unbound, "")
        assert await refusal(unbound, query) == NOT_BOUND


# What is refused


async def test_no_binding_is_an_error_and_never_an_empty_result(
    install: Install, admin: asyncpg.Connection
):
    async with install.connected("tenancy_rows") as unbound:
        for query in (
            "select tenancy.tenant()",
            "select * from app.note",
            "select count(*) from app.note where id = 1",
            "update app.note set body = 'x'",
            "delete from app.note",
        ):
            assert await refusal(unbound, query) == NOT_BOUND, query


_GARBLED = [
    "1",
    "x",
    ".",
    "....",
    "...." + "0" * 64,
    "1.1.1.{pid}",
    "1.1.1.{pid}.",
    "1.1.1.{pid}." + "0" * 64,
    "1.1.1.{pid}." + "z" * 64,
    "1..1.{pid}." + "0" * 64,
    ".1.1.{pid}." + "0" * 64,
    "-1.-1.-1.{pid}." + "0" * 64,
    " 1.1.1.{pid}." + "0" * 64,
    "1.1e3.1.{pid}." + "0" * 64,
    "1.99999999999999999999.1.{pid}." + "0" * 64,
    "1.9223372036854775807.1.{pid}." + "0" * 64,
    "99999999999.1.1.{pid}." + "0" * 64,
    "2147483648.1.1.{pid}." + "0" * 64,
    "1.\N{FULLWIDTH DIGIT ONE}.1.{pid}." + "0" * 64,
    "1.1.1.{pid}.1." + "0" * 64,
    "1.1.99999999999999999999999.{pid}." + "0" * 64,
    "\\x00\\..\\" + "0" * 64,
    "';select 1--" + "0" * 64,
    "é" * 70,
    "1" * 1_000_000,
    "." * 100_000,
]


async def test_a_garbled_binding_is_refused_as_not_valid(rows: asyncpg.Connection):
    for text in _GARBLED:
        await set_binding(rows, text.replace("{pid}", str(rows.get_server_pid())))
        assert await refusal(rows) == NOT_VALID, text[:80]


async def test_every_changed_character_of_a_right_binding_makes_it_not_valid(
    install: Install, rows: asyncpg.Connection
):
    right = install.binding(1, 1, rows.get_server_pid())
    for place, old in enumerate(right):
        new = "0" if old != "0" else "1"
        await set_binding(rows, right[:place] + new + right[place + 1 :])
        assert await refusal(rows) == NOT_VALID, place
    for text in (right.upper(), right + "0", right[:-1], right + " ", "0" + right):
        if text != right:
            await set_binding(rows, text)
            assert await refusal(rows) == NOT_VALID, text
    await set_binding(rows, right)
    assert await rows.fetchval("select tenancy.tenant()") == 1


async def test_a_forged_number_is_refused(install: Install, rows: asyncpg.Connection):
    pid = rows.get_server_pid()
    signature = install.binding(1, 1, pid).rsplit(".", 1)[1]
    await set_binding(rows, f"1.2.1.{pid}.{signature}")

    assert await refusal(rows, "select * from app.note") == NOT_VALID


async def test_the_binding_of_another_backend_is_worth_nothing(
    install: Install, rows: asyncpg.Connection
):
    async with install.connected("tenancy_rows") as other:
        await install.bind(other, 2)
        stolen = await other.fetchval("select current_setting('tenancy.binding')")
        assert await other.fetchval("select tenancy.tenant()") == 2
        await set_binding(rows, stolen)

        assert await refusal(rows, "select * from app.note") == NOT_VALID


async def test_a_binding_of_another_database_is_worth_nothing(
    install: Install, rows: asyncpg.Connection
):
    await set_binding(rows, install.binding(1, 1, rows.get_server_pid(), database="other"))

    assert await refusal(rows) == NOT_VALID


@pytest.mark.parametrize("epoch", [2, 3])
async def test_an_epoch_that_is_not_the_fences_is_out_of_date(
    install: Install, admin: asyncpg.Connection, rows: asyncpg.Connection, epoch: int
):
    await admin.execute("update tenancy.fence set epoch = 5 where tenant_no = 1")
    for wrong in (1, 4, 6, epoch):
        await install.bind(rows, 1, wrong)
        assert await refusal(rows) == OUT_OF_DATE
    await install.bind(rows, 1, 5)
    assert await rows.fetchval("select tenancy.tenant()") == 1


async def test_a_tenant_without_a_fence_is_out_of_date(install: Install, rows: asyncpg.Connection):
    await install.bind(rows, 3)

    assert await refusal(rows) == OUT_OF_DATE


async def test_a_closed_fence_refuses(admin: asyncpg.Connection, rows: asyncpg.Connection):
    await admin.execute("update tenancy.fence set open = false where tenant_no = 1")

    assert await refusal(rows) == CLOSED


async def test_two_keys_are_valid_at_once_until_one_is_retired(
    install: Install, admin: asyncpg.Connection, rows: asyncpg.Connection
):
    await install.bind(rows, 1, key_id=2)
    assert await refusal(rows) == NOT_VALID
    await add_keys(admin, [binding_key(install.master_key, "main", install.database, 2)])
    for key_id in (1, 2):
        await install.bind(rows, 1, key_id=key_id)
        assert await rows.fetchval("select tenancy.tenant()") == 1

    await admin.execute(
        "update tenancy.binding_key set retired_at = now(), inner_pad = null, outer_pad = null "
        "where key_id = 1"
    )

    assert await rows.fetchval("select tenancy.tenant()") == 1
    await install.bind(rows, 1, key_id=1)
    assert await refusal(rows) == NOT_VALID


# The setting changed inside the statement


_AMID = [
    "select tenant_id from app.note where set_config('tenancy.binding', $1, false) is not null",
    "select n.tenant_id from (select set_config('tenancy.binding', $1, false)) s, app.note n",
    "with s as materialized (select set_config('tenancy.binding', $1, false) as x) "
    "select n.tenant_id from s, app.note n where s.x is not null",
    "select tenant_id, set_config('tenancy.binding', $1, false) from app.note",
    "select tenant_id from app.note where id in "
    "(select 1 from set_config('tenancy.binding', $1, false))",
    "update app.note set body = set_config('tenancy.binding', $1, false) returning tenant_id",
    "insert into app.note (id, body) "
    "select 1000 + id, set_config('tenancy.binding', $1, false) from app.note returning tenant_id",
    "select tenant_id from app.note union all select length(set_config("
    "'tenancy.binding', $1, true))::bigint * 0 + 1 union all select tenant_id from app.note",
]


async def test_a_binding_set_amid_a_statement_shows_no_other_tenants_row(
    install: Install, rows: asyncpg.Connection
):
    async with install.connected("tenancy_rows") as other:
        stolen = install.binding(2, 1, other.get_server_pid())
    forged = install.binding(1, 1, rows.get_server_pid()).replace("1.1.1.", "1.2.1.", 1)
    refusals = set()
    for text in (stolen, forged):
        for query in _AMID:
            await install.bind(rows, 1)
            try:
                seen = {row[0] for row in await rows.fetch(query, text)}
            except asyncpg.PostgresError as error:
                refusals.add(error.sqlstate)
            else:
                assert seen <= {1}, query
    assert refusals == {NOT_VALID}
    await install.bind(rows, 2)
    assert await rows.fetchval("select count(*) from app.note where body !~ '^note of 2$'") == 0


# Drains


async def test_a_statement_in_flight_holds_off_the_exclusive_lock(
    admin: asyncpg.Connection, rows: asyncpg.Connection
):
    query = "select pg_try_advisory_xact_lock(tenancy.lock_key(1))"
    async with rows.transaction():
        await rows.fetch("select * from app.note where id = 1")
        assert await admin.fetchval(query) is False
    assert await admin.fetchval(query) is True


async def test_a_refused_statement_leaves_no_lock_on_the_number_it_named(
    install: Install, admin: asyncpg.Connection, rows: asyncpg.Connection
):
    forged = install.binding(1, 1, rows.get_server_pid()).replace("1.1.1.", "1.2.1.", 1)
    async with rows.transaction():
        savepoint = rows.transaction()
        await savepoint.start()
        await rows.execute("select set_config('tenancy.binding', $1, true)", forged)
        assert await refusal(rows) == NOT_VALID
        await savepoint.rollback()
        assert await rows.fetchval("select tenancy.tenant()") == 1

        assert await admin.fetchval("select pg_try_advisory_xact_lock(tenancy.lock_key(2))")
        assert not await admin.fetchval("select pg_try_advisory_xact_lock(tenancy.lock_key(1))")


async def test_a_lock_that_went_with_a_cursor_is_taken_again(
    admin: asyncpg.Connection, rows: asyncpg.Connection
):
    """A lock that was taken inside a cursor is released when the cursor fails, not before the end
    of the transaction: whoever drains the tenant then must not be followed by another statement.
    """
    await rows.execute("begin")
    await rows.execute(
        "declare c cursor for select id, 1 / (2 - id) from app.note where id < 9 order by id"
    )
    assert len(await rows.fetch("fetch 1 from c")) == 1
    await rows.execute("savepoint s")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await rows.fetch("fetch 1 from c")
    await rows.execute("rollback to s")
    await admin.execute("update tenancy.fence set open = false where tenant_no = 1")
    assert await admin.fetchval("select pg_try_advisory_xact_lock(tenancy.lock_key(1))")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await rows.fetch("select count(*) from app.note")
    assert refused.value.sqlstate == "TN004"
    await rows.execute("rollback")


async def test_the_lock_of_a_tenant_is_where_python_expects_it(admin: asyncpg.Connection):
    assert await admin.fetchval("select tenancy.lock_key(7)") == LOCK_BIT | 7


async def waits_for_a_lock(admin: asyncpg.Connection, pid: int) -> None:
    """Return when the backend `pid` waits for a lock."""
    query = "select exists (select from pg_locks where pid = $1 and not granted)"
    while not await admin.fetchval(query, pid):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from app.note",
        "insert into app.note (id, body) values (600, 'late')",
        "update app.note set body = 'late'",
        "delete from app.note where id = 1",
    ],
)
@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_a_statement_that_waited_for_a_drain_meets_the_closed_fence(
    install: Install, admin: asyncpg.Connection, rows: asyncpg.Connection, query: str, isolation
):
    async with install.connected() as mover:
        transaction = mover.transaction()
        await transaction.start()
        await mover.execute("select pg_advisory_xact_lock(tenancy.lock_key(1))")

        async def late() -> None:
            async with rows.transaction(isolation=isolation):
                await rows.fetch(query)

        statement = asyncio.create_task(late())
        await waits_for_a_lock(admin, rows.get_server_pid())
        await mover.execute("update tenancy.fence set open = false, epoch = 2 where tenant_no = 1")
        await transaction.commit()

        with pytest.raises(asyncpg.PostgresError) as raised:
            await statement
        expected = OUT_OF_DATE if isolation == "read_committed" else SERIALIZATION_FAILURE
        assert raised.value.sqlstate == expected
    assert await admin.fetchval("select count(*) from app.note where body like 'note%'") == 1000


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_snapshot_older_than_the_fences_closing_gets_no_answer(
    admin: asyncpg.Connection, rows: asyncpg.Connection, isolation: str
):
    async with rows.transaction(isolation=isolation):
        await rows.fetchval("select count(*) from pg_class")  # Takes the snapshot.
        await admin.execute("update tenancy.fence set open = false where tenant_no = 1")

        assert await refusal(rows, "select * from app.note") == SERIALIZATION_FAILURE


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_fence_closed_before_the_snapshot_refuses_above_read_committed(
    admin: asyncpg.Connection, rows: asyncpg.Connection, isolation: str
):
    async with rows.transaction(isolation=isolation):
        assert await rows.fetchval("select count(*) from app.note") == 500
    await admin.execute("update tenancy.fence set open = false where tenant_no = 1")

    async with rows.transaction(isolation=isolation):
        assert await refusal(rows, "select * from app.note") == CLOSED


async def test_the_isolation_level_cannot_be_lowered_after_the_snapshot(rows: asyncpg.Connection):
    async with rows.transaction(isolation="repeatable_read"):
        query = "select set_config('transaction_isolation', 'read committed', true)"
        assert await refusal(rows, query) == "25001"


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_read_only_transaction_with_a_fixed_snapshot_is_refused(
    rows: asyncpg.Connection, isolation: str
):
    async with rows.transaction(isolation=isolation, readonly=True):
        assert await refusal(rows, "select * from app.note") == "25006"


# Names that mislead

_SHADOWS = """
create schema shadow;
grant usage on schema shadow to public;
create function shadow.left(text, int) returns text language sql as $$ select '1.2.1.1' $$;
create function shadow.split_part(text, text, int) returns text language sql as $$ select '2' $$;
create function shadow.translate(text, text, text) returns text language sql as $$ select '...' $$;
create function shadow.length(text) returns int language sql as $$ select 1 $$;
create function shadow.encode(bytea, text) returns text language sql as $$ select '' $$;
create function shadow.sha256(bytea) returns bytea language sql as $$ select ''::bytea $$;
create function shadow.convert_to(text, name) returns bytea language sql as $$ select ''::bytea $$;
create function shadow.current_setting(text, bool) returns text language sql as $$ select '2' $$;
create function shadow.current_setting(text) returns text language sql as $$ select '2' $$;
create function shadow.pg_backend_pid() returns int language sql as $$ select 2 $$;
create function shadow.pg_advisory_xact_lock_shared(bigint) returns void
    language sql as $$ select null $$;
create function shadow.always(text, text) returns bool language sql as $$ select true $$;
create function shadow.always(bigint, bigint) returns bool language sql as $$ select true $$;
create function shadow.always(int, int) returns bool language sql as $$ select true $$;
create function shadow.always(bytea, bytea) returns bool language sql as $$ select true $$;
create function shadow.join(text, text) returns text language sql as $$ select '2' $$;
create function shadow.join(bytea, bytea) returns bytea language sql as $$ select ''::bytea $$;
create function shadow.two(bigint, bigint) returns bigint language sql as $$ select 2::bigint $$;
create operator shadow.= (function = shadow.always, leftarg = text, rightarg = text);
create operator shadow.= (function = shadow.always, leftarg = bigint, rightarg = bigint);
create operator shadow.= (function = shadow.always, leftarg = int, rightarg = int);
create operator shadow.= (function = shadow.always, leftarg = bytea, rightarg = bytea);
create operator shadow.<> (function = shadow.always, leftarg = text, rightarg = text);
create operator shadow.<= (function = shadow.always, leftarg = int, rightarg = int);
create operator shadow.|| (function = shadow.join, leftarg = text, rightarg = text);
create operator shadow.|| (function = shadow.join, leftarg = bytea, rightarg = bytea);
create operator shadow.| (function = shadow.two, leftarg = bigint, rightarg = bigint);
create domain shadow.text as pg_catalog.text;
create domain shadow.int8 as pg_catalog.int8;
create table shadow.fence (tenant_no bigint, epoch bigint, open bool);
create table shadow.binding_key (key_id int, inner_pad bytea, outer_pad bytea);
grant select on all tables in schema shadow to public;
"""


async def test_names_that_stand_in_for_postgresqls_own_mislead_nobody(
    install: Install, admin: asyncpg.Connection
):
    await admin.execute(_SHADOWS)
    async with install.connected("tenancy_rows") as hostile:
        # Before the function's first use, when its expressions have not been resolved yet.
        await hostile.execute("set search_path = shadow, tenancy, app, pg_catalog")
        assert await hostile.fetchval("select left('abc', 1)") == "1.2.1.1"
        assert await hostile.fetchval("select 1::bigint = 2::bigint")
        pid = hostile.get_server_pid()
        signature = install.binding(1, 1, pid).rsplit(".", 1)[1]
        for text in ("x", f"1.2.1.{pid}.{signature}", f"1.2.1.1.{signature}"):
            await hostile.execute(
                "select pg_catalog.set_config('tenancy.binding', $1, false)", text
            )
            assert await refusal(hostile) == NOT_VALID, text
        await hostile.execute(
            "select pg_catalog.set_config('tenancy.binding', $1, false)",
            install.binding(1, 1, pid),
        )
        assert await hostile.fetchval("select tenancy.tenant()") == 1
        seen = await hostile.fetch("select tenant_id from app.note")
        assert {row[0] for row in seen} == {1}


@pytest.mark.parametrize("path", ["pg_temp, pg_catalog", "", "public, pg_temp", '"$user"'])
async def test_an_odd_search_path_changes_nothing(rows: asyncpg.Connection, path: str):
    await rows.execute("select set_config('search_path', $1, false)", path)

    assert {row[0] for row in await rows.fetch("select tenant_id from app.note")} == {1}


async def test_settings_that_a_tenant_may_change_open_nothing(
    install: Install, admin: asyncpg.Connection
):
    for setting, value in (
        ("row_security", "off"),
        ("plpgsql.extra_errors", "all"),
        ("client_encoding", "SJIS"),
        ("bytea_output", "escape"),
        ("standard_conforming_strings", "off"),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_indexscan", "off"),
        ("default_transaction_read_only", "on"),
        ("transform_null_equals", "on"),
        (
            "debug_parallel_query" if install.server.major_version > 15 else "force_parallel_mode",
            "on",
        ),
    ):
        async with install.connected("tenancy_rows") as session:
            await install.bind(session, 1)
            await session.execute("select set_config($1, $2, false)", setting, value)
            try:
                seen = {row[0] for row in await session.fetch("select tenant_id from app.note")}
            except asyncpg.InsufficientPrivilegeError:
                assert setting == "row_security"
            else:
                assert seen == {1}, setting


# Plans


async def test_a_point_read_asks_for_the_tenant_once_and_uses_the_composite_index(
    rows: asyncpg.Connection,
):
    text = await rows.fetchval("explain (format json) select * from app.note where id = 1")
    plan = json.loads(text)[0]["Plan"]

    assert plan["Node Type"] == "Index Scan"
    assert plan["Index Name"] == "note_pkey"
    assert "tenant_id = " in plan["Index Cond"]
    assert "id = 1" in plan["Index Cond"]
    assert "Filter" not in plan
    assert [child["Parent Relationship"] for child in plan["Plans"]] == ["InitPlan"]


async def test_the_default_is_put_in_place_of_its_call(rows: asyncpg.Connection):
    lines = await rows.fetch("explain (verbose) select tenancy.bound_tenant()")

    assert "split_part" in "".join(line[0] for line in lines)


async def test_the_function_has_the_properties_its_safety_rests_on(admin: asyncpg.Connection):
    row = await admin.fetchrow(
        "select provolatile, proparallel, prosecdef, proleakproof, pg_get_userbyid(proowner) "
        "from pg_proc where oid = 'tenancy.tenant()'::regprocedure"
    )

    assert tuple(row) == (b"v", b"r", True, False, "tenancy_keeper")
