"""SQL of somebody who looks for a way out, made by hypothesis from pieces of PostgreSQL's grammar.

A script is a few statements that follow each other in one session. The pieces have names in braces
that a scene fills in (`Scene.names`); `Vocabulary` has what only the server knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import hypothesis
from hypothesis import Phase
from hypothesis import strategies as st

_TABLES = ("orders", "items", "receipts", "tickets", "order_notes", "cards")
_PLACES = (
    "",
    "",
    "",
    "",
    "{victim_schema}.",
    "{own_schema}.",
    "public.",
    "tenancy.",
    "pg_catalog.",
)
_COLUMNS = ("id", "note", "code", "{column}", "ctid", "xmin", "tableoid", "*", "order_id")
_SETTINGS = (
    "{bind}",
    "role",
    "session_authorization",
    "search_path",
    "row_security",
    "session_replication_role",
    "default_transaction_isolation",
    "plan_cache_mode",
    "enable_seqscan",
    "enable_indexscan",
    "transform_null_equals",
    "app.tenant",
    "tenancy.tenant",
    "constraint_exclusion",
    "backslash_quote",
    "standard_conforming_strings",
)
_VALUES = (
    "{forged}",
    "{own}",
    "{victim_value}",
    "",
    "%",
    "off",
    "on",
    "none",
    "{victim_role}",
    "{strong_role}",
    "tenancy_owner",
    "{victim_schema}, public, pg_catalog",
    "pg_temp, {victim_schema}",
    "serializable",
    "repeatable read",
    "force_generic_plan",
)
_ARGUMENTS = {
    "text": (
        "'orders'",
        "'{bind}'",
        "'{forged}'",
        "'select note from orders'",
        "'{victim_schema}'",
    ),
    "name": ("'orders'::name", "'{victim_role}'::name"),
    "oid": ("'orders'::regclass::oid", "'{victim_schema}.{victim_table}'::regclass::oid", "1::oid"),
    "regclass": ("'orders'::regclass", "'{victim_schema}.{victim_table}'::regclass"),
    "boolean": ("true", "false"),
    "integer": ("1", "0", "{victim_order}"),
    "bigint": ("1::bigint", "{victim_value}::bigint", "{victim_order}::bigint"),
    "smallint": ("1::smallint",),
    "jsonb": ("'{}'::jsonb",),
    "json": ("'{}'::json",),
    "bytea": ("'x'::bytea",),
    "uuid": ("gen_random_uuid()",),
    "double precision": ("1.0::float8",),
    "numeric": ("1::numeric",),
    "tid": ("'(0,1)'::tid", "'(1,1)'::tid"),
    "anyelement": ("note",),
    "anyarray": ("array[note]",),
    "record": ("o",),
    '"any"': ("note", "o"),
    "regtype": ("'text'::regtype",),
    "regprocedure": ("'tenancy.tenant()'::regprocedure",),
    "refcursor": ("'c'::refcursor",),
    "tsquery": ("'a'::tsquery",),
    "timestamp with time zone": ("now()",),
    "interval": ("'1 second'::interval",),
}


@dataclass(frozen=True)
class Vocabulary:
    """What the server has: functions with the types they take, and relations of its own."""

    functions: tuple[tuple[str, tuple[str, ...]], ...]
    relations: tuple[str, ...]


#: Of the functions only those whose arguments the grammar can make.
FUNCTIONS = """
select n.nspname || '.' || quote_ident(p.proname),
       array(select format_type(t, null) from unnest(p.proargtypes::oid[]) t)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where p.prokind = 'f' and n.nspname in ('pg_catalog', 'tenancy', 'app')
  and p.prorettype not in ('internal'::regtype, 'trigger'::regtype, 'event_trigger'::regtype)
order by 1, 2
"""
RELATIONS = """
select format('%I.%I', n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'v', 'S') order by 1
"""


def vocabulary(functions: list[tuple[str, list[str]]], relations: list[str]) -> Vocabulary:
    """What `FUNCTIONS` and `RELATIONS` gave, as far as it can be used."""
    usable = tuple(
        (name, tuple(types))
        for name, types in functions
        if len(types) <= 3 and all(kind in _ARGUMENTS for kind in types)
    )
    return Vocabulary(usable, tuple(relations))


def drawn(words: Vocabulary, statements: int) -> list[list[str]]:
    """So many statements at least, in scripts of three to eight.

    Drawn outside of a test of hypothesis, because the stages belong to an event loop. Each script
    is made by a generator of hypothesis's choice: scripts that it put together from parts of each
    other would repeat themselves.
    """
    found: list[list[str]] = []
    while (missing := statements - sum(map(len, found))) > 0:

        @hypothesis.settings(
            max_examples=missing // 5 + 1, deadline=None, database=None, phases=[Phase.generate]
        )
        @hypothesis.given(st.randoms(use_true_random=True))
        def draw(chance: Random) -> None:
            found.append([_statement(chance, words) for _ in range(chance.randint(3, 8))])

        draw()
    return found


def _statement(chance: Random, words: Vocabulary) -> str:
    makers = (_queries, _queries, _queries, _writes, _settings, _sessions, _definitions)
    return chance.choice(makers)(chance, words)


def _expressions(chance: Random, words: Vocabulary) -> str:
    """A value: a column, a call of any function of the server's, a cast, a sub-select."""
    match chance.randint(0, 7):
        case 0 | 1:
            return chance.choice(_COLUMNS[:-2])
        case 2 | 3:
            name, types = chance.choice(words.functions)
            given = [chance.choice(_ARGUMENTS[kind]) for kind in types]
            return f"{name}({', '.join(given)})"
        case 4:
            setting, value = _setting(chance)
            local = chance.choice(("true", "false"))
            return f"set_config('{setting}', '{value}', {local})"
        case 5:
            return f"note::{chance.choice(('integer', 'date', 'regclass', 'xml', 'json'))}"
        case 6:
            return f"(select string_agg(note, ',') from {_table(chance)})"
        case _:
            return chance.choice(("tenancy.tenant()", "tenancy.bound_tenant()", "o", "1"))


def _queries(chance: Random, words: Vocabulary) -> str:
    target = chance.choice((_expressions(chance, words), "*", "note", "o::text"))
    if chance.randint(0, 4) == 0:
        return f"select * from {chance.choice(words.relations)} o limit 50"
    table = _table(chance)
    match chance.randint(0, 8):
        case 0:
            return f"select {target} from {table} o where {_expressions(chance, words)} is not null"
        case 1:
            return f"select {target} from {table} o order by {_expressions(chance, words)} limit 5"
        case 2:
            return f"select o.*, {target} from {table} o, {_table(chance)} p"
        case 3:
            return f"select {target} from {table} o tablesample system (100)"
        case 4:
            return f"with w as (select {target} from {table} o) select * from w, {_table(chance)} o"
        case 5:
            inner = f"select {_expressions(chance, words)} x from {table} o"
            return f"select {target} from ({inner}) s, {table} o"
        case 6:
            mode = chance.choice(("update", "share", "key share", "no key update"))
            return f"select {target} from {table} o for {mode}"
        case 7:
            return f"select {target} from {table} o union all select note from {_table(chance)}"
        case _:
            return f"select {target} from {table} o"


def _writes(chance: Random, words: Vocabulary) -> str:
    table, value = _table(chance), _expressions(chance, words)
    key = chance.choice(("{own_order}", "{victim_order}", "70001"))
    returning = chance.choice(("", " returning *", f" returning {value}"))
    match chance.randint(0, 6):
        case 0:
            return f"insert into {table} (id, note) values ({key}, 'mine'){returning}"
        case 1:
            return (
                f"insert into {table} (id, {{column}}, note)"
                f" values ({key}, {{quoted_victim}}, 'mine'){returning}"
            )
        case 2:
            return (
                f"insert into {table} as o (id, note) values ({key}, 'mine') on conflict (id)"
                f" do update set note = o.note{returning}"
            )
        case 3:
            return f"update {table} o set note = note where {value} is not null{returning}"
        case 4:
            return (
                f"update {table} o set {{column}} = {{quoted_victim}} where id = {key}{returning}"
            )
        case 5:
            return f"delete from {table} o where id = {key} or {value} is null{returning}"
        case _:
            return (
                f"merge into {table} o using (select {key}::bigint as k) s on o.id = s.k"
                " when matched then update set note = 'mine'"
                " when not matched then insert (id, note) values (s.k, 'mine')"
            )


def _settings(chance: Random, words: Vocabulary) -> str:
    setting, value = _setting(chance)
    return chance.choice(
        (
            f"set {setting} = '{value}'",
            f"set local {setting} = '{value}'",
            f"reset {setting}",
            f"show {setting}",
            "reset all",
            "set role {victim_role}",
            "reset role",
            "set session authorization {victim_role}",
            "discard plans",
        )
    )


def _setting(chance: Random) -> tuple[str, str]:
    """A setting and a value for it; every other time, the one that makes another tenant of it."""
    if chance.random() < 0.5:
        return "{bind}", "{forged}"
    return chance.choice(_SETTINGS), chance.choice(_VALUES)


def _sessions(chance: Random, words: Vocabulary) -> str:
    query = _queries(chance, words)
    level = chance.choice(("read committed", "repeatable read", "serializable"))
    return chance.choice(
        (
            f"begin isolation level {level}",
            "commit",
            "rollback",
            "savepoint s",
            "rollback to s",
            "release s",
            f"prepare p as {query}",
            "execute p",
            "deallocate all",
            f"declare c cursor with hold for {query}",
            "fetch all from c",
            f"explain (analyze, verbose) {query}",
            f"copy ({query}) to stdout",
            "close all",
        )
    )


def _definitions(chance: Random, words: Vocabulary) -> str:
    table, value = _table(chance), _expressions(chance, words)
    return chance.choice(
        (
            f"create temp table loot as select * from {table} o",
            f"create view {{own_schema}}.loot as select * from {table}",
            f"create table {{own_schema}}.loot as select {value} from {table} o",
            "create function {own_schema}.f() returns text language sql as"
            " 'select note from orders limit 1'",
            f"alter table {table} disable row level security",
            f"alter table {table} no force row level security",
            f"create policy p on {table} using (true)",
            f"grant all on {table} to public",
            f"truncate {table}",
            f"create rule r as on select to {table} do instead nothing",
            f"comment on table {table} is 'x'",
            f"do $$ begin perform {value} from {table} o; end $$",
            "select * from loot",
            "grant {victim_role} to {own_role}",
            f"drop table {table} cascade",
            f"refresh materialized view {table}",
        )
    )


def _table(chance: Random) -> str:
    place = chance.choice(_PLACES)
    only = chance.choice(("", "", "", "only "))
    return only + place + chance.choice(_TABLES)
