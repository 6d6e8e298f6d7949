"""A rewritten statement answers on tables with the hidden column exactly as the original does on
equal tables without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
from hypothesis import Phase
from hypothesis.strategies import SearchStrategy
from support import tenant_queries
from support.postgres import PostgresServer

from tenancy.data_isolation.core.errors import StatementError, StatementForbiddenError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.guard_rules import ALLOW
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

DATABASE = "guard_on_postgres"
PLAIN = """
create schema plain;
create table plain.customers (
    id int primary key, name text, email text unique, age int default 30, note text);
create table plain.orders (
    id int primary key, customer_id int references plain.customers, total numeric, placed date);
create table plain.status (id int primary key default 5, status text default 'd');
create table plain.tags (customer_id int, tag text, weight int, primary key (customer_id, tag));
create unique index on plain.tags (lower(tag)) where weight > 10;
create view plain.spent as
    select c.id, c.name, sum(o.total) as spent from plain.customers c
    left join plain.orders o on o.customer_id = c.id group by c.id, c.name;
"""
# The hidden column comes after the columns of the first migration, and before those of later ones.
HIDDEN = """
create schema hidden;
create table hidden.customers (
    id int, name text, email text, age int default 30, tenant_id bigint not null default 7,
    note text, primary key (tenant_id, id), unique (tenant_id, email));
create table hidden.orders (
    id int, customer_id int, total numeric, tenant_id bigint not null default 7, placed date,
    primary key (tenant_id, id),
    foreign key (tenant_id, customer_id) references hidden.customers);
create table hidden.status (
    id int default 5, status text default 'd', tenant_id bigint not null default 7,
    primary key (tenant_id, id));
create table hidden.tags (
    customer_id int, tag text, weight int, tenant_id bigint not null default 7,
    primary key (tenant_id, customer_id, tag));
create unique index on hidden.tags (tenant_id, lower(tag)) where weight > 10;
create view hidden.spent with (security_invoker) as
    select c.id, c.name, sum(o.total) as spent from hidden.customers c
    left join hidden.orders o on o.customer_id = c.id group by c.id, c.name;
do $$ declare name text; begin
    foreach name in array array['customers', 'orders', 'status', 'tags'] loop
        execute format('alter table hidden.%I enable row level security', name);
        execute format('create policy own on hidden.%I using (tenant_id = 7)', name);
    end loop;
end $$;
"""
GRANTS = """
create role guard_test_tenant login password 'guard-test';
grant usage on schema plain, hidden to guard_test_tenant;
grant select, insert, update, delete on all tables in schema plain, hidden to guard_test_tenant;
"""
ROWS = """
insert into {schema}.customers (id, name, email, age, note) values
    (1, 'Ada', 'ada@x', 36, 'first'), (2, 'Bob', 'bob@x', null, null), (3, 'Cyd', null, 50, 'c');
insert into {schema}.orders (id, customer_id, total, placed) values
    (10, 1, 5.50, '2024-01-01'), (11, 1, 7, '2024-02-01'), (12, 2, 1, null), (13, null, 9, null);
insert into {schema}.status (id, status) values (1, 'open'), (2, 'shut'), (10, 'odd');
insert into {schema}.tags (customer_id, tag, weight) values (1, 'Red', 20), (1, 'blue', 5);
"""
STRANGERS = """
insert into hidden.customers (id, name, email, tenant_id) values (1, 'Eve', 'ada@x', 8),
    (9, 'Mallory', 'm@x', 8);
insert into hidden.orders (id, customer_id, total, tenant_id) values (10, 9, 1000, 8);
insert into hidden.status (id, status, tenant_id) values (3, 'foreign', 8);
insert into hidden.tags (customer_id, tag, weight, tenant_id) values (9, 'red', 99, 8);
"""

SCHEMA = VisibleSchema(
    relations={
        "customers": VisibleRelation(
            name="customers", columns=("id", "name", "email", "age", "note"), primary_key=("id",)
        ),
        "orders": VisibleRelation(
            name="orders", columns=("id", "customer_id", "total", "placed"), primary_key=("id",)
        ),
        "status": VisibleRelation(name="status", columns=("id", "status"), primary_key=("id",)),
        "tags": VisibleRelation(
            name="tags",
            columns=("customer_id", "tag", "weight"),
            primary_key=("customer_id", "tag"),
        ),
        "spent": VisibleRelation(
            name="spent", columns=("id", "name", "spent"), hidden=False, view=True
        ),
    }
)

READS = """
select * from customers order by id
select customers.* from customers order by id
table customers order by id
select c.*, o.id as order_id from customers c join orders o on o.customer_id = c.id order by 6
select * from customers c, orders o where o.customer_id = c.id order by c.id, o.id
select * from customers c left join orders o on o.customer_id = c.id order by c.id, o.id
select * from customers c full join orders o on o.customer_id = c.id order by c.id, o.id
select * from customers join status using (id) order by id
select * from customers full join status using (id) order by id
select * from customers join status using (id) as j order by j.id
select * from customers c join status s using (id), tags t where t.customer_id = c.id order by tag
select * from customers natural join status order by id
select * from customers natural left join status order by id
select count(*) from customers natural join tags
select * from customers natural join (select 1 as id, 'x' as more) s
select * from (customers c join orders o on o.customer_id = c.id) as j(a, b) order by 1, 6
select * from customers as c(a, b) order by a
select c.b, c.note from customers as c(a, b) order by a
select c.* from customers as c(a, b) order by a
select * from customers, generate_series(1, 2) order by id, 6
select * from customers, generate_series(1, 2) with ordinality as g(n, o) order by id, n
select * from customers, lateral (select customers.*) s order by 1
select * from customers c, lateral (select count(*) from orders o where o.customer_id = c.id) s
    order by c.id
select * from customers c cross join lateral (select * from orders o where o.customer_id = c.id
    order by o.id limit 1) s order by c.id
select * from status, json_each('{"a": 1, "b": [2]}') order by status.id, key
select * from rows from (generate_series(1, 2), generate_series(5, 6)) as r(a, b), status
    order by a, status.id
select c from customers c order by c
select customers from customers order by id
select row_to_json(c) from customers c order by id
select to_jsonb(c) - 'id' from customers c order by id
select json_agg(c order by c.id) from customers c
select jsonb_agg(to_jsonb(s)) from (select * from customers order by id) s
select array_agg(t order by t.tag) from tags t
select (c).name, (c).id from customers c order by c.id
select (c).* from customers c order by c.id
select count(c), count(c.*), count(*) from customers c
select count(o) from customers c left join orders o on o.customer_id = c.id
select c.id, o is null, o is not null from customers c left join orders o
    on o.customer_id = c.id order by 1, 2
select c.id, row_to_json(o) from customers c left join orders o on o.customer_id = c.id
    and o.id > 10 order by c.id, o.id
select c::text from customers c order by id
select row(c.*, 1) from customers c order by c.id
select row(c.*) = row(d.*), c = d, c.* is distinct from d.* from customers c, customers d
    order by c.id, d.id
select distinct c from customers c order by c
select distinct on (customer_id) * from orders order by customer_id, id
select status from status order by id
select status.status, s from status, status s where s.id = status.id order by 1
select exists (select * from orders where customer_id = 1), exists (select from orders)
select id from customers c where exists (select * from orders o where o.customer_id = c.id)
    order by 1
select id from customers where (id, name) in (select id, name from customers where age > 40)
select c.id from customers c where c in (select d from customers d where d.id > 1) order by 1
select (select o from orders o where o.id = 10), (select max(o.total) from orders o)
select (select c.name), (select row_to_json(c)) from customers c order by c.id
select id from customers union select id from orders order by 1
select * from status union all select id, name from customers order by 1, 2
select * from status except select * from status where id = 1 order by 1
table status union table status order by 1
values (1, 'a'), (2, 'b')
select * from (values (1, 'a')) v(a, b), status order by 3
with c as (select * from customers) select * from c order by id
with customers as (select * from customers where id = 1) select * from customers
with c(x) as (select * from customers) select * from c join status on status.id = c.x order by x
with recursive r as (select * from customers where id = 1 union all
    select c.* from customers c join r on c.id = r.id + 1) select * from r order by id
with recursive r(n) as (values (1) union all select n + 1 from r where n < 3)
    select * from r join customers c on c.id = n order by n
with a as materialized (select * from orders), b as (select * from a where total > 1)
    select a.*, b.* from a left join b using (id) order by a.id
select c.id, c.name, count(o.id) from customers c left join orders o on o.customer_id = c.id
    group by c.id order by c.id
select c.*, count(o.id), sum(o.total) from customers c left join orders o on o.customer_id = c.id
    group by c.id order by c.id
select o.id, o.total, c.name from customers c right join orders o on o.customer_id = c.id
    group by o.id, c.id order by o.id
select c.name, o.total from customers c left join orders o on o.customer_id = c.id
    group by c.id, o.id order by 1, 2
select id as key, name from customers group by key order by name desc
select name, id from customers group by 2 order by name
select name from customers group by id having age is null or max(age) > 40 order by email
select customer_id, tag, weight from tags group by customer_id, tag order by weight
select id, name from customers group by id, rollup(age) order by id, name
select id, count(*) from customers group by id order by id
select age, grouping(age), count(*) from customers group by rollup (age) order by 1, 3
select id, sum(total) over (order by id) from orders order by id
select *, row_number() over w from orders window w as (order by id) order by id
select * from orders order by total desc, id limit 2 offset 1
select * from orders order by id fetch first 2 rows only
select * from orders where placed between date '2024-01-01' and '2024-01-31'
select * from customers where name ilike '%A%' escape '!' or name similar to 'B(o|x)b' order by id
select coalesce(age, 0), nullif(name, 'Ada'), greatest(id, 2), case id when 1 then 'x' end
    from customers order by id
select extract(year from placed), date_trunc('month', placed), placed + interval '1 day'
    from orders order by id
select string_agg(name, ',' order by id), array_agg(id order by id), count(*) filter (where id > 1)
    from customers
select percentile_cont(0.5) within group (order by total) from orders
select * from spent order by id
select s.*, c.* from spent s join customers c using (id) order by s.id
select row_to_json(s) from spent s order by id
select * from customers order by id for update
select * from customers c order by id for no key update of c skip locked
select c from customers c order by id for share
select * from customers join status using (id) order by id for update of status
select * from customers c where c.id = $1 or c.name = $2 order by id
select (array[1, 2, 3])[2:3], (array[id, 2])[1], id::text || $1 from customers order by id
select j.* from customers c, jsonb_to_record('{"a": 1, "b": "x"}') as j(a int, b text) limit 1
select jsonb_path_query(to_jsonb(c), '$.name') from customers c order by id
select json_object('id': c.id, 'all': to_json(c)) from customers c order by id
select json_array(select name from customers order by id)
select q.* from customers c cross join json_table('[{"a": 1}]', '$[*]' columns (a int)) q limit 1
select * from json_table('[{"a": 1}]', '$[*]' columns (a int)), status order by status.id
select json_objectagg(id: c) from customers c where id = 1
select * from (select *, 1 as one from customers) s where one = 1 order by id
select x.*, y.* from (select * from customers) x join (select c.* from customers c) y on x.id = y.id
    order by x.id
select * from customers, (select 5) where id = 1
"""

WRITES = """
insert into customers values (4, 'Dan')
insert into customers values (4, 'Dan', 'dan@x', 1, 'n') returning *
insert into customers values (4, 'Dan'), (5, 'Eli') returning id, customers.*
insert into customers values ($1, $2) returning *
insert into customers (id, name) values (4, default) returning *
insert into status default values returning *
insert into customers select id + 10, name from customers returning *
insert into status select * from status where false returning *
insert into status select id + 100, status from status returning status.*
insert into orders table orders on conflict do nothing
insert into status select * from (select id + 70, name from customers) s returning *
insert into status with n as (select 77 as a, 'x' as b) select * from n returning *
insert into status select n, 'gen' from generate_series(50, 52) n returning *
insert into status select * from unnest($1::int[], $2::text[]) returning *
insert into status select g.*, 'g' from generate_series(60, 61) g returning *
insert into status values ((select max(id) from status) + 1, 'next') returning *
insert into status as s values (90, 'z') returning s.*, s, to_jsonb(s), s.id + 1
insert into status values (91, 'z') returning status
insert into customers values (1, 'Ada2') on conflict do nothing returning *
insert into customers values (1, 'Ada2') on conflict (id) do nothing returning *
insert into customers values (1, 'Ada2'), (6, 'New') on conflict (id) do update
    set name = excluded.name, note = customers.note || '!' returning *
insert into customers as c (id, name, email) values (9, 'Ada3', 'ada@x') on conflict (email)
    do update set name = c.name || excluded.name where c.age > 1 returning c.*
insert into customers values (1, 'Ada2') on conflict (id) do update
    set (name, note) = (select excluded.name, to_jsonb(excluded)::text) returning *
insert into customers values (1, 'Ada2') on conflict (id) do update
    set (id, name, email, age, note) = row(excluded.*) returning *
insert into tags values (1, 'Red', 1) on conflict (customer_id, tag) do update
    set weight = 0 returning *
insert into tags values (2, 'RED', 30) on conflict (lower(tag)) where weight > 10
    do update set weight = tags.weight + excluded.weight returning *
insert into tags values (2, 'RED', 3) on conflict (lower(tag)) where weight > 10 do nothing
    returning *
update customers set name = 'X' returning *
update customers c set name = o.id::text from orders o where o.customer_id = c.id and o.id > 10
    returning *
update customers c set name = o.id::text from orders o where o.customer_id = c.id and o.id > 10
    returning c.*, o.*, row_to_json(c), row_to_json(o)
update customers set (name, note) = (select placed::text, total::text from orders where id = 10)
    where id = 1 returning customers
update customers set (name, note) = row('p', 'q') where id = 2 returning id, name, note
update customers c set note = row_to_json(c)::text returning c.id, c.note
update customers c set note = 'n' where c = (select d from customers d where d.id = 1) returning *
update customers c set note = s.tag from (select * from tags) s where s.customer_id = c.id
    and s.weight > 10 returning s.*, c.*
update customers c set age = n from generate_series(1, 1) n where c.id = 1 returning *
delete from orders where id = 10 returning *
delete from orders o using customers c where c.id = o.customer_id returning *
delete from orders o using customers c natural join status s where c.id = o.customer_id
    returning o.*, c.id
delete from tags returning tags
merge into status s using customers c on c.id = s.id when matched then update set status = c.name
    when not matched then insert values (c.id, c.name)
merge into status s using (select * from customers) c on c.id = s.id
    when matched and c.id = 1 then delete when matched then do nothing
    when not matched then insert (id, status) values (c.id, c.name)
merge into status using (values (1, 'a'), (99, 'b')) v(i, t) on i = id
    when matched then update set status = t when not matched then insert values (i, t)
with moved as (delete from orders where id > 11 returning *) select * from moved order by id
with added as (insert into status values (70, 'a'), (71, 'b') returning *)
    select a.*, c.name from added a left join customers c using (id) order by a.id
with gone as (delete from tags returning *), note as (update customers set note = 'n' returning *)
    insert into status select weight + 1000, tag from gone returning *
"""
WRITES_FROM_17 = """
merge into status s using customers c on c.id = s.id when matched then update set status = c.name
    when not matched then insert values (c.id, c.name) returning *
merge into status s using customers c on c.id = s.id when matched then delete
    returning merge_action(), s.*, c.id, s, row_to_json(c)
merge into status s using customers c on c.id = s.id when not matched by source then delete
    returning s.*, c.*
"""
WRITES_FROM_18 = """
update customers set age = age + 1 returning old.*, new.*, old.age, new.name
update customers set age = 1 returning with (old as o, new as n) o.age, n.*
insert into customers values (1, 'Ada2') on conflict (id) do update set name = 'u'
    returning old.name, new.name, *
delete from tags returning old.*, new.*
merge into status s using customers c on c.id = s.id when matched then update set status = c.name
    when not matched then insert values (c.id, c.name) returning merge_action(), old.*, new.*, *
"""

PARAMETERS: dict[str, list[Any]] = {
    "where c.id = $1 or c.name": [1, "Bob"],
    "id::text || $1": ["!"],
    "values ($1, $2) returning": [4, "Dan"],
    "unnest($1::int[], $2::text[])": [[20, 21], ["p", "q"]],
}


def _statements(text: str) -> list[str]:
    """One statement per line that is not indented."""
    return text.strip().replace("\n    ", " ").split("\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a statement gave: columns, rows, how many, and the tables after it."""

    columns: list[str]
    rows: list[Any]
    status: str
    tables: list[list[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    admin = await asyncpg.connect(postgres_server.admin_dsn)
    try:
        await admin.execute(f"create database {DATABASE}")
        connection = await asyncpg.connect(postgres_server.dsn(DATABASE))
        try:
            for text in (PLAIN, HIDDEN, GRANTS, STRANGERS):
                await connection.execute(text)
            for schema in ("plain", "hidden"):
                await connection.execute(ROWS.format(schema=schema))
        finally:
            await connection.close()
        yield postgres_server.dsn(DATABASE, "guard_test_tenant", "guard-test")
    finally:
        await admin.execute(f"drop database {DATABASE} with (force)")
        await admin.execute("drop role guard_test_tenant")
        await admin.close()


@pytest.fixture
async def tenant(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def _answer(
    connection: asyncpg.Connection, schema: str, text: str, parameters: list[Any]
) -> Answer:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"set local search_path = {schema}")
        statement = await connection.prepare(text)
        rows = _unnamed(await statement.fetch(*parameters))
        tables = []
        for name, relation in SCHEMA.relations.items():
            columns = ", ".join(relation.columns)
            tables.append(
                _unnamed(await connection.fetch(f"select {columns} from {name} order by {columns}"))
            )
        return Answer(
            columns=[attribute.name for attribute in statement.get_attributes()],
            rows=rows,
            status=statement.get_statusmsg(),
            tables=tables,
        )
    finally:
        await transaction.rollback()


def _unnamed(value: Any) -> Any:
    """Rows and composite values as plain lists, so that record and row types compare."""
    if isinstance(value, asyncpg.Record | list | tuple):
        return [_unnamed(item) for item in value]
    return value


async def _same_answer(
    connection: asyncpg.Connection, query: str, *, ordered: bool = True
) -> Answer:
    guard = Guard(settings=Settings(), schema=SCHEMA)
    statement = guard.check(query)
    parameters = next((values for part, values in PARAMETERS.items() if part in query), [])

    expected = await _answer(connection, "plain", query, parameters)
    actual = await _answer(connection, "hidden", statement.text, parameters)
    if not ordered:
        expected.rows.sort(key=repr)
        actual.rows.sort(key=repr)

    assert actual == expected, statement.text
    assert statement.returns_rows == bool(expected.columns)
    return actual


def _needs(server: PostgresServer, version: int) -> None:
    if server.major_version < version:
        pytest.skip(f"the statement is of PostgreSQL {version}")


#: Statements among the reads that older versions do not have.
NEWER = {"json_table": 17, "json_object('id'": 16, "json_array(": 16, "json_objectagg": 16}
NEWER_SUBSELECT = "customers, (select 5)"


@pytest.mark.parametrize("query", _statements(READS))
async def test_a_read_answers_as_without_the_hidden_column(
    tenant: asyncpg.Connection, postgres_server: PostgresServer, query: str
):
    for part, version in {**NEWER, NEWER_SUBSELECT: 16}.items():
        if part in query:
            _needs(postgres_server, version)

    await _same_answer(tenant, query)


@pytest.mark.parametrize("query", _statements(WRITES))
async def test_a_write_does_and_answers_the_same_as_without_the_hidden_column(
    tenant: asyncpg.Connection, query: str
):
    await _same_answer(tenant, query, ordered=False)


@pytest.mark.parametrize("query", _statements(WRITES_FROM_17))
async def test_merge_returning_is_the_same(
    tenant: asyncpg.Connection, postgres_server: PostgresServer, query: str
):
    _needs(postgres_server, 17)

    await _same_answer(tenant, query, ordered=False)


@pytest.mark.parametrize("query", _statements(WRITES_FROM_18))
async def test_old_and_new_rows_are_the_same(
    tenant: asyncpg.Connection, postgres_server: PostgresServer, query: str
):
    _needs(postgres_server, 18)

    await _same_answer(tenant, query, ordered=False)


@pytest.mark.parametrize(
    "query",
    [
        "select * from customers order by id",
        "select c from customers c order by id",
        "select row_to_json(c) from customers c",
        "insert into customers values (1, 'a', 'b', 2, 'c') on conflict (id) do nothing",
        "select c.*, count(*) from customers c group by c.id",
    ],
)
async def test_without_the_rewrite_the_hidden_column_would_show(
    tenant: asyncpg.Connection, query: str
):
    """The positive control: the comparison notices."""
    expected = await _answer(tenant, "plain", query, [])

    try:
        actual = await _answer(tenant, "hidden", query, [])
    except asyncpg.PostgresError:
        return
    assert actual != expected


async def test_rows_of_other_tenants_never_take_part(tenant: asyncpg.Connection):
    answer = await _same_answer(tenant, "select name from customers order by 1")

    assert answer.rows == [["Ada"], ["Bob"], ["Cyd"]]


async def test_what_is_too_wide_is_refused_as_without_the_hidden_column(
    tenant: asyncpg.Connection,
):
    query = "insert into status values (1, 'a', 7)"
    with pytest.raises(asyncpg.PostgresSyntaxError) as plain:
        await _answer(tenant, "plain", query, [])

    with pytest.raises(Exception, match="more expressions than target columns") as guarded:
        Guard(settings=Settings(), schema=SCHEMA).check(query)

    assert guarded.value.sqlstate == plain.value.sqlstate


async def test_every_name_on_the_lists_exists_in_the_newest_server(
    tenant: asyncpg.Connection, postgres_server: PostgresServer
):
    """A misspelt name would refuse what the documentation promises."""
    _needs(postgres_server, 18)
    functions = await tenant.fetch("select distinct proname from pg_proc")
    types = await tenant.fetch("select typname from pg_type")

    assert ALLOW.functions - {row["proname"] for row in functions} == set()
    assert ALLOW.types - {row["typname"] for row in types} == set()


async def test_no_function_on_the_list_is_more_than_a_computation(tenant: asyncpg.Connection):
    """What may be parallel and volatile is a clock or a random number, and nothing takes SQL."""
    rows = await tenant.fetch(
        "select proname from pg_proc"
        " where pronamespace = 'pg_catalog'::regnamespace and proname = any($1)"
        " and (provolatile = 'v' or proparallel = 'u' or prosecdef)",
        sorted(ALLOW.functions),
    )

    assert {row["proname"] for row in rows} <= {
        "array_sample",
        "array_shuffle",
        "clock_timestamp",
        "gen_random_uuid",
        "random",
        "random_normal",
        "timeofday",
        "uuidv4",
        "uuidv7",
    }


async def test_queries_of_a_grammar_answer_the_same_or_are_refused(tenant: asyncpg.Connection):
    """Wherever the plain tables answer, the tables with the hidden column give the same rows."""
    answered = refused = failed = 0
    for query in _examples(tenant_queries.queries(), 150):
        try:
            text = Guard(settings=Settings(), schema=SCHEMA).check(query).text
        except StatementForbiddenError:
            refused += 1
            continue
        except StatementError:
            with pytest.raises(asyncpg.PostgresError):
                await _rows(tenant, "plain", query)
            failed += 1
            continue
        try:
            expected = await _rows(tenant, "plain", query)
        except asyncpg.PostgresError as error:
            with pytest.raises(type(error)):
                await _rows(tenant, "hidden", text)
            failed += 1
            continue
        assert await _rows(tenant, "hidden", text) == expected, f"{query}\n{text}"
        answered += 1
    assert answered > refused


def _examples(strategy: SearchStrategy[str], count: int) -> list[str]:
    """Drawn outside of a test of hypothesis, because the fixtures here belong to an event loop."""
    drawn: list[str] = []

    @hypothesis.settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate])
    @hypothesis.given(strategy)
    def draw(query: str) -> None:
        drawn.append(query)

    draw()
    return drawn


async def _rows(connection: asyncpg.Connection, schema: str, text: str) -> list[str]:
    """Names and rows, the rows in an order of their own."""
    async with connection.transaction(readonly=True):
        await connection.execute(f"set local search_path = {schema}")
        statement = await connection.prepare(text)
        names = [attribute.name for attribute in statement.get_attributes()]
        return [repr(names), *sorted(repr(_unnamed(row)) for row in await statement.fetch())]
