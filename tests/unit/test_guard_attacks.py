"""Every attack that is a statement is refused, or changed so that it is none.

The ids are those of a catalogue of attacks on multi-tenant PostgreSQL: C context forgery, I
injection, R row security, V object shadowing, X covert channels, P residue in pooled sessions, S
and B other schemas and databases, D denial of service; H is the hidden column.
"""

from __future__ import annotations

import re

import pytest

from tenancy.data_isolation.core.errors import StatementError, StatementForbiddenError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

SCHEMA = VisibleSchema(
    relations={
        "orders": VisibleRelation(
            name="orders", columns=("id", "note", "total"), primary_key=("id",)
        ),
        "doc": VisibleRelation(name="doc", columns=("id", "body"), primary_key=("id",)),
    }
)

ATTACKS = {
    "C01": """
        set app.tenant = 'b'; select * from orders
        set app.tenant = 'b'
        set session tenancy.binding = '1.2.3.4.abc'
        set tenancy.binding to default
        reset tenancy.binding
        reset all
        show tenancy.binding
        select current_setting('tenancy.binding')
        select current_setting('tenancy.binding', true)
    """,
    "C02": """
        select * from orders where set_config('app.tenant', 'b', true) is not null
        select * from (select set_config('app.tenant', 'b', true)) s, orders
        select pg_catalog.set_config('app.tenant', 'b', true)
        select "pg_catalog"."set_config"('app.tenant', 'b', true)
        select u&"set\\005fconfig"('app.tenant', 'b', true)
        select SET_CONFIG ('app.tenant', 'b', true)
        select set_config(setting_name => 'app.tenant', new_value => 'b', is_local => true)
        select * from set_config('app.tenant', 'b', true)
        select * from rows from (set_config('app.tenant', 'b', true))
        select 1 from orders order by set_config('app.tenant', 'b', true)
        select 1 from orders limit length(set_config('app.tenant', 'b', true))
        select 1 from orders group by set_config('app.tenant', 'b', true)
        select 1 from orders having set_config('app.tenant', 'b', true) > ''
        select distinct on (set_config('app.tenant', 'b', true)) 1 from orders
        select count(*) filter (where set_config('app.tenant', 'b', true) > '') from orders
        select sum(total) over (order by set_config('app.tenant', 'b', true)) from orders
        select sum(total) over w from orders window w as (order by set_config('a', 'b', true))
        select case when set_config('app.tenant', 'b', true) > '' then 1 end
        select array[set_config('app.tenant', 'b', true)]
        select (array[1])[length(set_config('app.tenant', 'b', true))]
        select (set_config('app.tenant', 'b', true)) collate "C"
        select 'x' = any (array(select set_config('app.tenant', 'b', true)))
        with w as (select set_config('app.tenant', 'b', true)) select * from w
        with w as materialized (select set_config('a', 'b', true)) insert into doc select 1, 'x'
        values (set_config('app.tenant', 'b', true))
        insert into doc (id, body) values (1, set_config('app.tenant', 'b', true))
        insert into doc (id) values (1) returning set_config('app.tenant', 'b', true)
        insert into doc (id) values (1) on conflict (id)
            do update set body = set_config('a', 'b', true)
        insert into doc (id) values (1) on conflict (id)
            where set_config('a', 'b', true) > '' do nothing
        insert into doc (id) values (1) on conflict
            (lower(set_config('a', 'b', true))) do nothing
        update doc set body = set_config('app.tenant', 'b', true)
        update doc set (id, body) = (select 1, set_config('app.tenant', 'b', true))
        delete from doc where set_config('app.tenant', 'b', true) > ''
        merge into doc using orders on set_config('a', 'b', true) > '' when matched then delete
        merge into doc using orders on true
            when matched and set_config('a', 'b', true) > '' then delete
        merge into doc d using orders o on o.id = d.id when not matched
            then insert values (1, set_config('a', 'b', true))
        select json_object('a': set_config('app.tenant', 'b', true))
        select json_value('{}', '$.a' default set_config('app.tenant', 'b', true) on empty)
        select * from json_table(set_config('a', '{}', true)::jsonb, '$' columns (a int path '$.a'))
        select json_array(select set_config('app.tenant', 'b', true))
    """,
    "C03": """
        select * from orders where note = ''; select set_config('app.tenant', 'b', false) --'
        select 1; drop table orders
        select 1;;; select 2
    """,
    "C04": """
        commit
        commit; select * from orders
        rollback
        begin
        start transaction
        end
        abort
        commit prepared 'x'
        prepare transaction 'x'
    """,
    "C05": """
        set role t_b
        reset role
        set role none
        set local role t_b
    """,
    "C06": "select set_config('role', 't_b', false)",
    "C07": """
        set session authorization x
        reset session authorization
        set session authorization default
    """,
    "C08": """
        alter role current_user set search_path = 'evil'
        alter role current_user set statement_timeout = 0
        alter user current_user password 'x'
        alter database tenancy set search_path = evil
    """,
    "C09": "reset role; alter role app set search_path = 'evil'",
    "C10": "set local app.tenant = 'b'",
    "C12": """
        savepoint s
        rollback to s
        release savepoint s
    """,
    "C13": "set app.is_admin = 'true'",
    "C14": """
        do $$ begin execute 'set role t_b'; end $$
        do language plpgsql 'begin end'
        call something()
        create function f() returns int language sql as 'select 1'
    """,
    "I01": """
        select query_to_xml('select * from orders', true, true, '')
        select * from xmltable('/a' passing query_to_xml('select 1', true, true, '') columns a text)
        select cursor_to_xml('c', 1, true, true, '')
        select table_to_xml('orders', true, true, '')
        select database_to_xml(true, true, '')
        select * from ts_stat('select to_tsvector(note) from orders')
        select ts_rewrite('a'::tsquery, 'select t, s from aliases')
        select * from dblink('dbname=x', 'select 1') as t(a int)
        select xpath('/a', '<a/>')
        select xmlelement(name a, query_to_xml('select 1', true, true, ''))
        select xmlparse(document '<a/>')
    """,
    "I02": """
        drop schema app cascade
        select * from "orders"; drop schema "app"
        create schema x
    """,
    "R03": """
        grant t_b to me
        grant pg_execute_server_program to me
        revoke all on orders from public
        reassign owned by a to b
    """,
    "R02": """
        alter table orders disable row level security
        alter table orders no force row level security
        drop policy tenancy_isolation on orders
        create policy p on orders using (true)
    """,
    "R05": "set row_security = off",
    "R10": "truncate orders",
    "R11": "create trigger t before insert on orders execute function f()",
    "R18": """
        copy orders to stdout
        copy orders from stdin
        copy (select * from orders) to stdout
    """,
    "R19": "set session_replication_role = replica",
    "V02": """
        create materialized view m as select * from orders
        create table loot as select * from orders
        create view v as select * from orders
        select * into loot from orders
    """,
    "V05": """
        create function length(text) returns int language sql as 'select 666'
        create operator + (leftarg = int, rightarg = int, function = f)
        select 1 operator(evil.+) 2
        select 1 from orders order by id using operator(evil.<)
        select 1 = any (array[1]), 2 operator(evil.=) any (array[1])
        select 'a' collate evil.c
        select 'a'::evil.text
        select evil.length('abc')
    """,
    "V09": "refresh materialized view m",
    "V10": "create extension dblink",
    "X05": """
        explain select * from orders
        explain analyze select * from orders
        explain (analyze, buffers) delete from orders
    """,
    "X06": """
        select reltuples from pg_class
        select reltuples from pg_catalog.pg_class
        select * from pg_stat_user_tables
        select * from pg_stats
        select pg_relation_size('orders')
        select pg_table_size('orders'), pg_total_relation_size('orders')
        select max(ctid) from orders
        select max(orders.ctid) from orders
        select (o).ctid from orders o
        select ctid(o) from orders o
        select pg_column_size(o) from orders o
        select * from orders tablesample system (100)
        select * from orders tablesample bernoulli (10) repeatable (1)
        analyze orders
        vacuum orders
    """,
    "R06": "create table x (a int)",
    "X07": "create statistics s on id, note from orders",
    "X08": """
        select nextval('orders_id_seq')
        select setval('orders_id_seq', 1)
        select last_value from orders_id_seq
        select * from orders_id_seq
        alter sequence orders_id_seq restart
    """,
    "X09": """
        select query from pg_stat_activity
        select * from pg_stat_get_activity(null)
        select pg_stat_get_backend_activity(1)
    """,
    "X10": """
        select * from pg_roles
        select * from pg_database
        select * from pg_namespace
        select prosrc from pg_proc
        select * from pg_views
        select * from information_schema.tables
        select * from information_schema.columns
        select current_database(), current_schema(), current_schemas(true)
        select current_user
        select session_user, user
        select current_role
        select current_catalog
        select current_schema
        select system_user
        select version()
        select pg_get_viewdef('v')
        select has_schema_privilege('x', 'usage')
    """,
    "X11": """
        listen orders
        notify orders, 'x'
        unlisten *
        select pg_notify('orders', 'x')
    """,
    "X12": """
        select pg_advisory_lock(1)
        select pg_try_advisory_lock(1)
        select pg_advisory_xact_lock(4611686018427387905)
        select pg_try_advisory_xact_lock_shared(1, 2)
        select pg_advisory_unlock_all()
        select * from pg_locks
    """,
    "X13": """
        select lo_create(0)
        select lo_import('/etc/passwd')
        select lo_get(1)
        select loread(1, 10)
        select * from pg_largeobject
        select count(*) from pg_largeobject_metadata
    """,
    "X14": """
        select txid_current()
        select pg_current_xact_id()
        select pg_current_snapshot()
        select xmin, xmax, cmin, cmax from orders
        select orders.xmin from orders
        select tableoid from orders
        select pg_current_wal_lsn()
        select pg_backend_pid()
        select inet_server_addr(), inet_client_addr()
        select pg_postmaster_start_time()
    """,
    "X16": """
        select attname from pg_attribute
        select pg_total_relation_size('t_b.doc')
        select 'pg_class'::regclass
        select cast('t_b.doc' as regclass)
        select regclass 't_b.doc'
        select 'postgres'::regrole, 't_b'::regnamespace
        select 'f'::regproc
        select 'int4'::regtype
        select '16384'::oid
        select to_regclass('t_b.doc')
        select to_regrole('t_b'), to_regnamespace('t_b')
        select pg_input_is_valid('t_b', 'regrole')
        select null::pg_class
        select null::pg_catalog.pg_authid
        select col_description(1, 1), obj_description(1)
        select row_security_active('orders')
    """,
    "P01": """
        create temp table orders (id int)
        create temporary table orders as select 1
        select 1 as id into temp orders
    """,
    "P02": """
        declare c cursor with hold for select * from orders
        fetch all from c
        move forward 1 in c
        close all
        delete from orders where current of c
    """,
    "P03": """
        prepare get_orders as select 1
        execute get_orders
        deallocate all
    """,
    "P04": """
        set search_path = evil
        set default_transaction_read_only = on
        set transaction read only
        set session characteristics as transaction read only
        set constraints all deferred
        set time zone 'UTC'
    """,
    "P05": "set session role t_b",
    "P06": """
        discard all
        discard plans
        load 'library'
    """,
    "P09": """
        select pg_advisory_lock(7)
        select currval('orders_id_seq')
        select lastval()
        select setseed(0.5)
    """,
    "P11": "select set_config($1, $2, false)",
    "S01": """
        select * from tn_b.doc
        select * from app.orders
        select * from tenancy.binding_key
        select * from catalog.tenant
        select * from tenancy_idempotency
        select * from other.app.orders
        select tn_b.doc.body from doc
        select tn_b.doc.* from doc
        insert into tn_b.doc values (1)
        insert into doc select * from tn_b.doc
        update tn_b.doc set body = ''
        delete from tn_b.doc
        delete from doc using tn_b.doc d
        merge into doc using tn_b.doc d on true when matched then delete
        merge into tn_b.doc using doc d on true when matched then delete
        select (select body from tn_b.doc)
        with w as (delete from tn_b.doc returning *) select * from w
        select tenancy.tenant()
        select tenancy.bound_tenant()
        table tn_b.doc
        select * from only tn_b.doc
        select * from doc for update of tn_b.doc
    """,
    "B03": "select dblink_connect('x')",
    "B06": """
        create subscription s connection 'x' publication p
        create publication p for all tables
        select pg_create_logical_replication_slot('s', 'test_decoding')
    """,
    "D01": """
        lock table orders in access exclusive mode
        lock orders
    """,
    "D02": """
        set statement_timeout = 0
        set work_mem = '2GB'
        select set_config('statement_timeout', '0', false)
    """,
    "D03": """
        select pg_terminate_backend(1)
        select pg_cancel_backend(pid) from orders
        select pg_reload_conf()
    """,
    "D05": """
        select pg_sleep(1000)
        select pg_sleep_for('1 day')
        select pg_export_snapshot()
    """,
    "D06": "select nextval('orders_id_seq') from generate_series(1, 1000000)",
    "D07": "select pg_advisory_xact_lock(tenant) from generate_series(1, 1000000) tenant",
    "D08": """
        copy orders to program 'sh'
        copy orders from '/etc/passwd'
        select pg_read_file('/etc/passwd')
        select pg_read_binary_file('/etc/passwd')
        select * from pg_ls_dir('.')
        select pg_stat_file('x')
        select lo_export(1, '/tmp/x')
        select pg_file_write('a', 'b', false)
        checkpoint
        alter system set x = 1
        create database x
        reindex table orders
        cluster orders
    """,
    "H01": """
        select tenant_id from orders
        select orders.tenant_id from orders
        select "tenant_id" from orders
        select u&"tenant\\005fid" from orders
        select TENANT_ID from orders
        select (o).tenant_id from orders o
        select tenant_id(o) from orders o
        select o.note from orders o where o.tenant_id = 7
        select 1 from orders join doc using (tenant_id)
        select 1 from orders group by tenant_id
        select 1 from orders order by tenant_id
        select count(*) from orders group by rollup (tenant_id)
        select 1 as tenant_id
        select 1 from orders o(tenant_id)
        with w(tenant_id) as (select 1) select 1 from w
        select * from json_to_record('{}') as r(tenant_id int)
        select * from json_table('{}', '$' columns (tenant_id int))
    """,
    "H02": """
        insert into orders (id, tenant_id) values (1, 8)
        insert into orders values (1, 'n', 2, 8)
        insert into orders select 1, 'n', 2, 8
        insert into orders select o.*, 8 from orders o
        insert into orders (id) values (1) returning tenant_id
        insert into orders (id) values (1) on conflict (tenant_id, id) do nothing
        insert into orders (id) values (1) on conflict (id) do update set tenant_id = 8
        insert into orders (id) values (1) on conflict (id) do update set note = excluded.tenant_id
        insert into orders (id) values (1) on conflict (id) where tenant_id = 7 do nothing
        insert into orders (id) values (1) on conflict (id)
            do update set (note, tenant_id) = (select 'n', 8)
        update orders set tenant_id = 8
        update orders set (note, tenant_id) = ('n', 8)
        update orders set note = tenant_id
        update orders set note = 'n' returning old.tenant_id
        delete from orders where tenant_id = 8
        merge into orders using doc on true when matched then update set tenant_id = 8
        merge into orders o using doc d on d.id = o.id when not matched
            then insert (id, tenant_id) values (1, 8)
        merge into orders o using doc d on d.id = o.id when not matched
            then insert values (1, 'n', 2, 8)
    """,
    "H03": """
        select null::orders
        select row(1, 'n', 2, 8)::orders
        select (json_populate_record(null::orders, '{"tenant_id": 8}')).*
        select * from json_populate_recordset(null::orders, '[]')
        select array[]::orders[]
        select orders.row_to_json from orders
        select o.to_jsonb from orders o
    """,
}


#: A sequence is no table, the hidden column no place for a value, and a function no column.
NOT_THERE = r"_seq$|'n', 2, 8|o\.\*, 8|\.(row_to_json|to_jsonb) from"


def _statements() -> list[pytest.param]:
    return [
        pytest.param(line.strip(), id=f"{number}-{index}")
        for number, text in ATTACKS.items()
        for index, line in enumerate(text.strip().replace("\n            ", " ").split("\n"))
    ]


@pytest.mark.parametrize("statement", _statements())
def test_an_attack_is_refused(statement: str):
    guard = Guard(settings=Settings(), schema=SCHEMA)

    with pytest.raises(StatementError) as refused:
        guard.check(statement)

    if ";" in statement and "$$" not in statement:
        assert "one at a time" in refused.value.detail
    elif type(refused.value) is not StatementForbiddenError:
        # What does not exist for tenants gives PostgreSQL's own error.
        assert re.search(NOT_THERE, statement)
        assert refused.value.sqlstate in ("42P01", "42601", "42703")
    assert len(refused.value.detail) < 400


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        pytest.param(
            "insert into orders (id) values (1) on conflict (id) do nothing",
            "INSERT INTO orders (id) VALUES (1) ON CONFLICT (tenant_id, id) DO NOTHING",
            id="X01",
        ),
        pytest.param(
            "select to_jsonb(o) from orders o",
            "SELECT to_jsonb(o) FROM (SELECT id, note, total FROM orders) o",
            id="H04",
        ),
        pytest.param(
            "select * from orders",
            "SELECT orders.id, orders.note, orders.total FROM orders",
            id="H05",
        ),
    ],
)
def test_what_would_show_the_hidden_column_is_changed(statement: str, text: str):
    assert Guard(settings=Settings(), schema=SCHEMA).check(statement).text == text


@pytest.mark.parametrize(
    "statement",
    [
        "select id from orders where length(note) is not null",
        "select count(*) from (select lower('b')) s, orders",
        "select pg_catalog.lower('b')",
        "select u&\"lo\\0077er\"('b')",
        "select 'b; drop table orders', $$set role x$$ -- commit",
        "select 'pg_class'::text, 'tenant_id', '{\"tenant_id\": 1}'::jsonb ->> 'tenant_id'",
        "select total from orders order by id using operator(pg_catalog.<)",
        "select 1 operator(pg_catalog.+) 2",
        "select o.id from orders o for update of o",
    ],
)
def test_the_same_shapes_without_the_attack_are_allowed(statement: str):
    """The positive control: it is the attack that is refused, not its surroundings."""
    assert Guard(settings=Settings(), schema=SCHEMA).check(statement).text == statement
