"""What PostgreSQL promises of row security, tried on the tables that the product makes.

Two tenants share tables. One of them sends SQL straight on the login `tenancy_rows`, without the
guard. Each attack runs twice: on the product's tables, where the other tenant keeps what it has and
nothing of it shows, and on a weak copy (the same policy, but the login owns the tables and row
security is not forced), where the same text reaches the other tenant's rows: so it is an attack.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest
import pytest_asyncio
from support.engines import opened
from support.install import Install, bootstrap, make_install
from support.postgres import PostgresServer

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.errors import SchemaRefusedError

# One event loop and one session for each side: connecting would take most of the time.
pytestmark = pytest.mark.asyncio(loop_scope="module")

_NEUTRAL = """
create table folders (id integer primary key, name text not null);
create table notes (
    id      integer primary key,
    body    text not null,
    folder  integer references folders on delete cascade
);
create table log (id bigint generated always as identity primary key, what text not null);
"""
_CODE = """
create view recent as select id, body from notes where id > 0;
create view guarded with (security_barrier) as select id, body from notes where id > 0;
create view counted as select count(*) as notes, max(body) as last from notes;

-- Says what it is given, and is so cheap that the planner likes to ask it first.
create function leak(what text) returns boolean language plpgsql cost 0.0000001 as $$
begin
    raise notice 'leaked %', what;
    return true;
end;
$$;
-- PostgreSQL puts the body of this one in its place.
create function bodies() returns setof text language sql stable as 'select body from notes';
create function body_of(wanted integer) returns text language plpgsql stable as $$
begin
    return (select string_agg(body, ',') from notes where id = wanted);
end;
$$;
create function note_log() returns trigger language plpgsql as $$
begin
    insert into log (what) select 'log of ' || string_agg(body, ',') from notes
        having count(*) > 0;
    return null;
end;
$$;
create trigger note_log after insert or update or delete on notes
    for each statement execute function note_log();
"""

#: The first tenant has 1 to 3 of everything, the second 1 to 6.
_ROWS = """
set session_replication_role = replica;
truncate {schema}.log, {schema}.notes, {schema}.folders;
insert into {schema}.folders (tenant_id, id, name)
    select t, n, chr(64 + t) || '-folder-' || n
    from generate_series(1, 2) t, generate_series(1, 3 * t) n;
insert into {schema}.notes (tenant_id, id, body, folder)
    select tenant_id, id, chr(64 + tenant_id::integer) || '-note-' || id, id from {schema}.folders;
insert into {schema}.log (tenant_id, what) values (1, 'A-log'), (2, 'B-log');
reset session_replication_role;
"""

_WEAK = """
create role weak_owner login password 'weak';
create schema weak authorization weak_owner;
grant usage on language plpgsql, sql to weak_owner;
create table weak.folders (like app.folders including all);
create table weak.notes (like app.notes including all);
create table weak.log (like app.log including all);
alter table weak.notes add foreign key (tenant_id, folder)
    references weak.folders (tenant_id, id) on delete cascade;
do $do$
declare name text;
begin
    foreach name in array array['folders', 'notes', 'log'] loop
        execute format('alter table weak.%I owner to weak_owner', name);
        execute format('alter table weak.%I enable row level security', name);
        execute format('create policy tenancy_isolation on weak.%I '
            'using (tenant_id = (select tenancy.tenant())) '
            'with check (tenant_id = (select tenancy.tenant()))', name);
    end loop;
end;
$do$;
set search_path = weak, pg_temp;
set role weak_owner;
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """Statements of the first tenant's, for rows of the second's.

    `refused` is the SQLSTATE with which the last one fails on the product's tables; None when it
    works, and reaches only rows of its own.
    """

    name: str
    statements: tuple[str, ...]
    refused: str | None = None


def attack(name: str, *statements: str, refused: str | None = None) -> Attack:
    return Attack(name, statements, refused)


READS = [
    attack("select", "select body from notes"),
    attack("where", "select body from notes where tenant_id = 2"),
    attack("or-true", "select body from notes where tenant_id = 1 or true"),
    attack("table", "table notes"),
    attack("whole-row", "select notes from notes"),
    attack("row-as-json", "select to_jsonb(n) from notes n"),
    attack("columns-of-the-system", "select ctid, xmin, tableoid, body from notes"),
    attack(
        "guessed-places",
        "select body from notes where ctid = any ("
        "array(select format('(0,%s)', n)::tid from generate_series(1, 60) n))",
    ),
    attack("only", "select body from only notes"),
    attack("sample-bernoulli", "select body from notes tablesample bernoulli (100)"),
    attack("sample-system", "select body from notes tablesample system (100) repeatable (1)"),
    attack("limit", "select body from notes order by id desc limit 3"),
    attack("offset", "select body from notes order by id offset 3"),
    attack("with-ties", "select body from notes order by 1 = 1 fetch first row with ties"),
    attack("sort-by-a-leak", "select 1 from notes order by leak(body)"),
    attack("aggregates", "select min(body), max(body), array_agg(body) from notes"),
    attack("filtered-aggregate", "select string_agg(body, ',') filter (where id > 3) from notes"),
    attack("having", "select 1 from notes group by body having leak(body)"),
    attack("grouping-sets", "select body, count(*) from notes group by grouping sets (body, ())"),
    attack("window", "select lag(body) over (order by tenant_id desc, id) from notes"),
    attack("distinct", "select distinct on (body) body from notes"),
    attack("self-join", "select b.body from notes a join notes b on a.body <> b.body or true"),
    attack("outer-join", "select n.body from folders f full join notes n on n.folder = f.id"),
    attack("lateral", "select l.body from folders f, lateral (select body from notes offset 0) l"),
    attack("semi-join", "select name from folders where id in (select id from notes where id > 3)"),
    attack("anti-join", "select name from folders f where not exists "
           "(select from notes n where n.folder = f.id and n.id < 4)"),
    attack("correlated",
           "select (select string_agg(m.body, ',') from notes m where m.id >= n.id) from notes n"),
    attack("scalar", "select (select body from notes where id = 4)"),
    attack("any-array", "select array(select body from notes)"),
    attack("set-operations", "select body from notes union all select body from recent "
           "except select '' intersect select name from folders"),
    attack("recursive", "with recursive r (id, body) as (select 0, '' union all "
           "select n.id, n.body from r join notes n on n.id = r.id + 1) select body from r"),
    attack("materialized-cte", "with n as materialized (select * from notes) select body from n"),
    attack("inlined-cte",
           "with n as not materialized (select * from notes) select 1 from n where leak(body)"),
    attack("values-join", "select n.body from (values (4), (5)) v (id) join notes n using (id)"),
    attack("case", "select case when id > 3 then body else '' end from notes"),
    # Functions and operators that tell what they are given.
    attack("leaky-function", "select 1 from notes where leak(body)"),
    attack("leaky-function-in-a-join", "select 1 from folders f join notes n on leak(n.body)"),
    attack("leaky-function-on-a-view", "select 1 from recent where leak(body)"),
    attack("leaky-cast", "select 1 from notes where id > 3 and body::integer = 1"),
    attack("leaky-cast-of-a-row", "select 1 from notes where id > 3 and notes::text::integer = 1"),
    attack("leaky-date", "select 1 from notes where id > 3 and body::date > now()"),
    # Functions of the schema.
    attack("inlined-function", "select * from bodies() b where b <> ''"),
    attack("inlined-function-and-leak", "select 1 from bodies() b where leak(b)"),
    attack("function", "select body_of(n) from generate_series(1, 6) n"),
    # Views.
    attack("view", "select body from recent"),
    attack("barrier-view", "select body from guarded where leak(body)"),
    attack("view-of-an-aggregate", "select * from counted"),
    # Row locks.
    attack("for-update", "select body from notes for update"),
    attack("for-no-key-update", "select body from notes for no key update"),
    attack("for-share", "select body from notes where id > 3 for share"),
    attack("for-key-share", "select n.body from folders f join notes n on true for key share of n"),
    attack("for-update-on-a-view", "select body from recent for update skip locked"),
    # Cursors.
    attack("cursor", "begin", "declare c scroll cursor for select body from notes",
           "move last in c", "fetch backward all from c"),
    attack("cursor-with-hold", "declare h cursor with hold for select body from notes",
           "fetch all from h"),
    attack("insensitive-cursor", "begin", "declare i insensitive cursor for table notes",
           "fetch all from i"),
    # What a write gives back.
    attack("update-returning", "update notes set body = body returning body"),
    attack("delete-returning", "delete from notes where id > 3 returning body"),
    attack("update-from", "update folders f set name = name from notes n where leak(n.body)"),
    attack("delete-using", "delete from folders f using notes n where f.id = 99 or leak(n.body)"),
    attack("cte-that-deletes",
           "with gone as (delete from notes returning body) select body from gone"),
    attack("cte-that-updates", "with new as (update notes set body = body || '!' returning *) "
           "select body from new"),
    attack("insert-select", "insert into log (what) select body from notes", "table log"),
    attack("insert-returning-subselect", "insert into log (what) values ('x') "
           "returning (select string_agg(body, ',') from notes)"),
    attack("trigger", "insert into notes (id, body) values (77, 'A-more')", "select what from log"),
    # Plans, and what EXPLAIN runs.
    attack("explain-analyze", "explain (analyze, verbose) select 1 from notes where leak(body)"),
    attack("explain-of-a-write", "explain (analyze) delete from notes where leak(body)"),
    attack("prepared", "prepare p as select body from notes where id > $1", "execute p (3)"),
    attack("generic-plan", "set plan_cache_mode = force_generic_plan",
           "prepare g as select body from notes where id > $1", "execute g (3)"),
    attack("without-indexes", "set enable_indexscan = off", "set enable_bitmapscan = off",
           "select 1 from notes where id > 3 and leak(body)"),
    attack("statistics", "select most_common_vals::text, histogram_bounds::text from pg_stats "
           "where schemaname = current_schema and tablename = 'notes'"),
    # Row security switched off.
    attack("row-security-off", "set row_security = off", "select body from notes", refused="42501"),
    attack("row-security-off-for-a-view", "set row_security = off", "select body from recent",
           refused="42501"),
    attack("row-security-off-in-a-function", "set row_security = off", "select * from bodies()",
           refused="42501"),
]  # fmt: skip

WRITES = [
    attack("update", "update notes set body = 'stolen'"),
    attack("update-where", "update notes set body = 'stolen' where tenant_id = 2"),
    attack("update-a-view", "update recent set body = 'stolen' where id > 3"),
    attack("update-from-itself",
           "update notes a set body = b.body from notes b where b.id = a.id - 1"),
    attack("delete", "delete from notes"),
    attack("delete-a-view", "delete from recent where id > 3"),
    attack("delete-what-is-joined", "delete from notes n using folders f where f.id = n.folder"),
    attack("cascade", "delete from folders"),
    attack("cte-that-deletes",
           "with gone as (delete from notes where id > 3 returning 1) table gone"),
    attack("cte-that-updates", "with n as (select id from notes where id > 3) "
           "update notes set body = 'stolen' from n where n.id = notes.id"),
    attack("merge-update", "merge into notes n using (values (1), (4)) s (id) on n.id = s.id "
           "when matched then update set body = 'stolen'"),
    attack("merge-delete", "merge into notes n using (values (4)) s (id) on n.id = s.id "
           "when matched then delete"),
    attack("current-of", "begin", "declare c cursor for select * from notes where id in (1, 6) "
           "order by id desc for update", "fetch 1 from c",
           "update notes set body = 'stolen' where current of c", "commit"),
    attack("explain-analyze", "explain analyze update notes set body = 'stolen'"),
    attack("prepared", "prepare w as update notes set body = $1", "execute w ('stolen')"),
    # A row of the other tenant's, made.
    attack("insert", "insert into notes (tenant_id, id, body) values (2, 88, 'planted')",
           refused="42501"),
    attack("insert-select", "insert into notes (tenant_id, id, body) select 2, 88, 'planted'",
           refused="42501"),
    attack("move-a-row", "update notes set tenant_id = 2, id = id + 100 where tenant_id = 1",
           refused="42501"),
    attack("swap", "update notes set tenant_id = 3 - tenant_id, id = id + 100, folder = null",
           refused="42501"),
    attack("upsert", "insert into notes (tenant_id, id, body) values (2, 4, 'stolen') "
           "on conflict (tenant_id, id) do update set body = excluded.body", refused="42501"),
    attack("upsert-that-moves", "insert into notes (id, body) values (1, 'x') "
           "on conflict (tenant_id, id) do update set tenant_id = 2, id = 89", refused="42501"),
    attack("insert-on-conflict-do-nothing", "insert into notes (tenant_id, id, body) "
           "values (2, 88, 'planted') on conflict do nothing", refused="42501"),
    attack("merge-insert", "merge into notes n using (values (88)) s (id) on n.id = s.id "
           "when not matched then insert (tenant_id, id, body) values (2, s.id, 'planted')",
           refused="42501"),
    attack("merge-that-moves", "merge into notes n using (values (1)) s (id) "
           "on n.id = s.id and n.tenant_id = 1 "
           "when matched then update set tenant_id = 2, id = 89", refused="42501"),
    attack("cte-that-inserts", "with made as (insert into notes (tenant_id, id, body) "
           "values (2, 88, 'planted') returning 1) table made", refused="42501"),
    # What a login has no right to at all.
    attack("truncate", "truncate notes", refused="42501"),
    attack("truncate-cascade", "truncate folders cascade", refused="42501"),
    attack("disable-row-security", "alter table notes disable row level security",
           "update notes set body = 'stolen'", refused="42501"),
    attack("drop-policy", "drop policy tenancy_isolation on notes",
           "update notes set body = 'stolen'", refused="42501"),
    attack("disable-triggers", "alter table notes disable trigger user", "delete from notes",
           refused="42501"),
    attack("row-security-off", "set row_security = off", "delete from notes", refused="42501"),
]  # fmt: skip


# Where it happens


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Tables and the login that attacks them."""

    schema: str
    login: str


PRODUCT = Side(schema="app", login="tenancy_rows")
WEAK = Side(schema="weak", login="weak_owner")


@dataclass(slots=True)
class Outcome:
    """What a session was told: rows, notices, and an error's fields."""

    rows: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    sqlstate: str | None = None

    @property
    def text(self) -> str:
        return "\n".join([*self.rows, *self.notices])


@dataclass(slots=True)
class House:
    """An installation with two tenants in shared tables, and the weak copy of them."""

    install: Install
    admin: asyncpg.Connection
    sessions: dict[Side, asyncpg.Connection]
    notices: list[str] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(cls, install: Install) -> AsyncIterator[House]:
        """With a session of each side's login, kept for all tests."""
        logins = {
            PRODUCT: install.role_dsn(PRODUCT.login),
            WEAK: install.server.dsn(install.database, WEAK.login, "weak"),
        }
        async with AsyncExitStack() as stack:
            admin = await stack.enter_async_context(install.connected())
            house = cls(install, admin, {})
            for side, dsn in logins.items():
                path = {"search_path": f"{side.schema}, pg_temp"}
                session = await asyncpg.connect(dsn, server_settings=path, statement_cache_size=0)
                stack.push_async_callback(session.close, timeout=5)
                session.add_log_listener(lambda _, message: house.notices.append(str(message)))
                house.sessions[side] = session
            yield house

    async def session(self, side: Side = PRODUCT, tenant_no: int = 1) -> asyncpg.Connection:
        """The session of a side as if it were new, bound to a tenant."""
        session = self.sessions[side]
        # A test may have left it in the middle of a transaction, which a driver does not know of.
        if session.is_in_transaction():
            await session.execute("rollback")
        await session.execute("discard all")
        await self.install.bind(session, tenant_no)
        self.notices.clear()
        return session

    async def refill(self) -> None:
        """Every row as it was in the beginning."""
        for side in self.sessions:
            if self.sessions[side].is_in_transaction():
                await self.sessions[side].execute("rollback")
            await self.admin.execute(_ROWS.format(schema=side.schema))

    async def victim(self, side: Side) -> str:
        """Everything that the second tenant has."""
        query = " union all ".join(
            f"select '{table} ' || t::text as row from {side.schema}.{table} t where tenant_id = 2"
            for table in ("folders", "notes", "log")
        )
        return "\n".join(row[0] for row in await self.admin.fetch(query + " order by row"))

    async def run(self, side: Side, attack: Attack) -> Outcome:
        """Run the statements of an attack until one fails; what it changed is committed."""
        outcome = Outcome()
        session = await self.session(side)
        try:
            for statement in attack.statements:
                outcome.rows += [str(tuple(row)) for row in await session.fetch(statement)]
        except asyncpg.PostgresError as error:
            outcome.sqlstate = error.sqlstate
            outcome.rows.append(str(error.as_dict()))
        # Notices are told to a listener by the loop.
        await asyncio.sleep(0)
        outcome.notices = list(self.notices)
        return outcome


@pytest.fixture(scope="module")
def built(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Install:
    install = make_install(
        postgres_server, "tenancy_row_security", tmp_path_factory.mktemp("row-security")
    )
    asyncio.run(_build(install))
    return install


async def _build(install: Install) -> None:
    await bootstrap(install)
    async with opened(install, tables=False) as engine:
        await engine.apply_migration("0001_notes", _NEUTRAL + _CODE)
        for number, name in enumerate(("attacker", "victim"), 1):
            context = TenantContext(tenant_id=name)
            tenant = await engine.create_tenant(context, level=IsolationLevel.ROW)
            assert tenant.tenant_no == number
    async with install.connected() as admin:
        await admin.execute("drop role if exists weak_owner")
        await admin.execute(_WEAK + _CODE + "reset role")
        await admin.execute(f'grant connect on database "{install.database}" to weak_owner')
        for side in (PRODUCT, WEAK):
            await admin.execute(_ROWS.format(schema=side.schema))
        await admin.execute("analyze")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened_house(built: Install) -> AsyncIterator[House]:
    async with House.open(built) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def house(opened_house: House) -> House:
    await opened_house.refill()
    return opened_house


# The attacks


@pytest.mark.parametrize("attack", READS, ids=lambda attack: attack.name)
async def test_reads_reach_rows_of_the_own_tenant_only(house: House, attack: Attack):
    blocked, reached = await house.run(PRODUCT, attack), await house.run(WEAK, attack)

    assert "B-" not in blocked.text
    assert blocked.sqlstate == attack.refused
    assert "B-" in reached.text


@pytest.mark.parametrize("attack", WRITES, ids=lambda attack: attack.name)
async def test_writes_change_rows_of_the_own_tenant_only(house: House, attack: Attack):
    before = {side.schema: await house.victim(side) for side in (PRODUCT, WEAK)}
    blocked, reached = await house.run(PRODUCT, attack), await house.run(WEAK, attack)

    assert blocked.sqlstate == attack.refused
    assert await house.victim(PRODUCT) == before["app"]
    assert "B-" not in blocked.text
    assert reached.sqlstate is None
    assert await house.victim(WEAK) != before["weak"]


# COPY


async def test_copy_gives_rows_of_the_own_tenant_only(house: House):
    for source in ("notes", "(select body from recent)"):
        found = {}
        for side in (PRODUCT, WEAK):
            session, buffer = await house.session(side), io.BytesIO()
            if source == "notes":
                await session.copy_from_table(source, output=buffer)
            else:
                await session.copy_from_query(source.strip("()"), output=buffer)
            found[side] = buffer.getvalue()
        assert b"A-note-1" in found[PRODUCT]
        assert b"B-" not in found[PRODUCT]
        assert b"B-note-1" in found[WEAK]


async def test_copy_takes_no_rows_past_row_security(house: House):
    row, columns = b"2\t88\tplanted\n", ["tenant_id", "id", "body"]
    before = await house.victim(PRODUCT)

    session = await house.session()
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="row-level security"):
        await session.copy_to_table("notes", source=io.BytesIO(row), columns=columns)
    assert await house.victim(PRODUCT) == before

    weak = await house.session(WEAK)
    await weak.copy_to_table("notes", source=io.BytesIO(row), columns=columns)
    assert "planted" in await house.victim(WEAK)


# Keys


async def test_keys_and_references_of_the_other_tenant_say_nothing(house: House):
    """Row security does not bind what checks keys, so the tenant is part of every key."""
    for statement, state in (
        # The other tenant has a note 6 and a folder 6, this one has neither.
        ("insert into notes (id, body) values (6, 'A-six')", None),
        ("insert into notes (id, body, folder) values (7, 'A-seven', 6)", "23503"),
        ("insert into notes (id, body, folder) values (7, 'A-seven', 99)", "23503"),
    ):
        assert (await house.run(PRODUCT, attack("key", statement))).sqlstate == state, statement

    # The same policies, but keys without the tenant.
    await house.admin.execute(
        "drop table if exists weak.pages, weak.books;"
        "create table weak.books (tenant_id bigint not null, id integer primary key);"
        "create table weak.pages (tenant_id bigint not null default tenancy.bound_tenant(),"
        " id integer primary key, book integer references weak.books on delete cascade);"
    )
    for table in ("books", "pages"):
        await _make_safe(house.admin, f"weak.{table}", "(select tenancy.tenant())")
    await house.admin.execute(
        "insert into weak.books values (1, 1), (2, 6); insert into weak.pages values (2, 6, 1)"
    )
    for statement, state in (
        ("insert into weak.pages (id) values (6)", "23505"),
        ("insert into weak.pages (id, book) values (7, 6)", None),
        ("insert into weak.pages (id, book) values (8, 99)", "23503"),
        ("delete from weak.books where id = 1", None),
    ):
        assert (await house.run(PRODUCT, attack("key", statement))).sqlstate == state, statement
    assert await house.admin.fetchval("select count(*) from weak.pages where tenant_id = 2") == 0


async def test_row_locks_of_the_other_tenant_are_not_met(house: House):
    locking = "select body from notes where id = 4 for update nowait"
    for side, state in ((PRODUCT, None), (WEAK, "55P03")):
        query = f"select * from {side.schema}.notes where tenant_id = 2 for update"
        async with house.admin.transaction():
            assert len(await house.admin.fetch(query)) == 6
            met = await house.run(side, attack("lock", locking))
        assert met.sqlstate == state


# Plans and cursors that outlive a binding


async def test_a_generic_plan_follows_the_binding(house: House):
    await house.admin.execute(
        "drop table if exists weak.cold; create table weak.cold as select * from app.notes;"
        "create or replace function weak.frozen() returns bigint language sql immutable as "
        "$$ select split_part(current_setting('tenancy.binding'), '.', 2)::bigint $$;"
    )
    await _make_safe(house.admin, "weak.cold", "weak.frozen()")
    for table, expected in (("app.notes", {1: "A", 2: "B"}), ("weak.cold", {1: "A", 2: "A"})):
        session = await house.session()
        await session.execute(
            "set plan_cache_mode = force_generic_plan;"
            f"prepare p as select string_agg(distinct left(body, 1), '') from {table}"
        )
        for number in (1, 2, 1):
            await house.install.bind(session, number)
            assert await session.fetchval("execute p") == expected[number], (table, number)
        plans = await session.fetchval("select generic_plans from pg_prepared_statements limit 1")
        assert plans == 3


async def test_a_cursor_stays_with_the_binding_that_it_began_with(house: House):
    await house.admin.execute(
        "drop table if exists weak.loose; create table weak.loose as select * from app.notes"
    )
    per_row = "split_part(current_setting('tenancy.binding'), '.', 2)::bigint"
    await _make_safe(house.admin, "weak.loose", per_row)
    for table, seen in (("app.notes", {"A"}), ("weak.loose", {"A", "B"})):
        session = await house.session()
        async with session.transaction():
            await session.execute(f"declare c cursor for select left(body, 1) from {table}")
            first = await session.fetch("fetch 1 from c")
            await house.install.bind(session, 2)
            rest = await session.fetch("fetch all from c")
        assert {row[0] for row in [*first, *rest]} == seen, table


# Roles and policies


async def test_the_owner_of_the_tables_is_held_as_well(house: House):
    async with house.install.connected() as session:
        await session.execute("set role tenancy_owner")
        with pytest.raises(asyncpg.PostgresError) as raised:
            await session.fetch("select * from app.notes")
        assert raised.value.sqlstate == "TN001"
        await house.install.bind(session, 1)
        found = await session.fetch("select left(body, 1) from app.notes")
        assert {row[0] for row in found} == {"A"}
        await session.execute("set row_security = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await session.fetch("select * from app.notes")


async def test_the_role_of_replication_is_not_for_tenants(house: House):
    """It silences triggers and foreign keys, but not policies."""
    outcome = await house.run(PRODUCT, attack("replica", "set session_replication_role = replica"))
    assert outcome.sqlstate == "42501"

    async with house.install.connected() as session:
        await house.install.bind(session, 1)
        await session.execute("set session_replication_role = replica; set role tenancy_rows")
        found = await session.fetch("select left(body, 1) from app.notes")
        assert {row[0] for row in found} == {"A"}


async def test_policies_read_no_table_that_a_tenant_could_change(house: House):
    reads = (
        "select p.polrelid::regclass::text, d.refobjid::regclass::text from pg_policy p "
        "join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid "
        "where d.refclassid = 'pg_class'::regclass and d.refobjid <> p.polrelid "
        "and p.polrelid::regclass::text like $1"
    )
    assert await house.admin.fetch(reads, "app.%") == []

    await house.admin.execute(
        "drop table if exists weak.club, weak.members;"
        "create table weak.members (tenant_id bigint, may_see bigint);"
        "create table weak.club as select * from app.notes;"
    )
    inner = "(select tenancy.tenant()) or tenant_id in (select may_see from weak.members)"
    await _make_safe(house.admin, "weak.club", inner)
    await house.admin.execute("grant select, insert on weak.members to tenancy_rows")
    assert len(await house.admin.fetch(reads, "weak.club")) == 1
    joining = attack("join", "insert into weak.members values (1, 2)", "select body from weak.club")
    assert "B-note" in (await house.run(PRODUCT, joining)).text


# Shapes that row security does not cover


async def test_every_view_works_as_its_reader(house: House):
    options = await house.admin.fetch(
        "select relname, reloptions from pg_class "
        "where relkind = 'v' and relnamespace = 'app'::regnamespace order by 1"
    )
    assert [row["relname"] for row in options] == ["counted", "guarded", "recent"]
    assert all("security_invoker=true" in row["reloptions"] for row in options)
    assert "security_barrier=true" in options[1]["reloptions"]

    await house.admin.execute(
        "create or replace view weak.definer as select body from app.notes;"
        "grant usage on schema weak to tenancy_rows; grant select on weak.definer to tenancy_rows"
    )
    try:
        assert "B-" in (await house.run(PRODUCT, attack("view", "table weak.definer"))).text
    finally:
        # Else no start is safe any more.
        await house.admin.execute("revoke usage on schema weak from tenancy_rows")


_UNCOVERED = {
    "partitions": (
        "create table parts (id integer primary key, body text) partition by range (id);"
        "create table part partition of parts for values from (0) to (9)",
        "create table weak.parts (tenant_id bigint, id integer, body text) partition by range (id);"
        "create table weak.target partition of weak.parts for values from (0) to (99)",
        "weak.parts",
    ),
    "inheritance": (
        "create table parent (id integer primary key);"
        "create table child (more integer, primary key (id)) inherits (parent)",
        "create table weak.parent (tenant_id bigint, id integer, body text);"
        "create table weak.target () inherits (weak.parent)",
        "weak.parent",
    ),
    "materialized view": (
        "create materialized view frozen as select * from notes",
        "create table weak.source (tenant_id bigint, id integer, body text);"
        "insert into weak.source select tenant_id, id, body from app.notes;"
        "create materialized view weak.target as select * from weak.source",
        "weak.source",
    ),
    "definer function": (
        "create function all_notes() returns setof text language sql security definer "
        "as 'select body from notes'",
        "create function weak.all_notes() returns setof text language sql security definer "
        "as 'select body from app.notes';"
        "create view weak.target with (security_invoker) as select weak.all_notes() as body",
        "app.folders",
    ),
}


@pytest.mark.parametrize("shape", _UNCOVERED)
async def test_what_row_security_would_not_cover_is_refused(house: House, shape: str):
    migration, raw, protected = _UNCOVERED[shape]
    # Other tests let the login in; while it is in, nothing starts.
    await house.admin.execute("revoke usage on schema weak from tenancy_rows")
    async with opened(house.install, tables=False) as engine:
        with pytest.raises(SchemaRefusedError):
            await engine.apply_migration("0002_shape", migration)

    # What it would be: policies where one looks for them, and another way in.
    await house.admin.execute(
        "drop schema if exists uncovered cascade; create schema uncovered;"
        + raw.replace("weak.", "uncovered.")
    )
    target = "uncovered.target"
    if protected != "app.folders":
        await _make_safe(
            house.admin, protected.replace("weak.", "uncovered."), "(select tenancy.tenant())"
        )
    if shape in ("partitions", "inheritance"):
        await house.admin.execute(
            f"insert into {target} (tenant_id, id, body) select tenant_id, id, body from app.notes"
        )
    await house.admin.execute(
        "grant usage on schema uncovered to tenancy_rows;"
        f"grant select on {target} to tenancy_rows;"
        "grant execute on all functions in schema uncovered to tenancy_rows"
    )
    try:
        assert "B-" in (await house.run(PRODUCT, attack("look", f"select body from {target}"))).text
    finally:
        await house.admin.execute("drop schema uncovered cascade")


async def _make_safe(admin: asyncpg.Connection, table: str, tenant: str) -> None:
    """Row security on a table, forced, with a policy that compares with `tenant`."""
    await admin.execute(
        f"grant usage on schema {table.split('.')[0]} to tenancy_rows;"
        f"grant select, insert, update, delete on {table} to tenancy_rows;"
        f"alter table {table} enable row level security, force row level security;"
        f"create policy p on {table} using (tenant_id = {tenant})"
    )
