"""What can be wrong with an installation: how to break it, and what the doctor has to say then.

`{names}` stand for what the stage's tenants have. Breaks of one area are made together.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenancy.data_isolation.engine.findings import Severity

_WARNING, _BROKEN = Severity.WARNING, Severity.BROKEN


@dataclass(frozen=True, slots=True)
class Break:
    """What is broken, and what is to be found: the check, and words of its text."""

    statement: str
    check: str
    words: str
    database: str | None = None
    severity: Severity = Severity.UNSAFE


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """Breaks that are made, found and mended together. `left` undoes what no mend takes away."""

    name: str
    breaks: tuple[Break, ...]
    left: tuple[str, ...] = ()


_ROLES = (
    Break("alter role tenancy_rows bypassrls", "attributes", "tenancy_rows has BYPASSRLS"),
    Break(
        'alter role "{scarlet_role}" superuser',
        "attributes",
        "{scarlet_role} is superuser",
    ),
    Break(
        'grant pg_read_all_data to "{sienna_role}"',
        "memberships",
        "{sienna_role} is a member of pg_read_all_data",
    ),
    Break(
        "alter role tenancy_control set search_path = evil",
        "role_settings",
        "tenancy_control has settings of its own",
        severity=_BROKEN,
    ),
    Break(
        "alter role tenancy_rows password 'mine'",
        "passwords",
        "tenancy_rows has another password",
        severity=_BROKEN,
    ),
    Break(
        "alter role \"{dawn_role}\" password 'mine'",
        "passwords",
        "{dawn_role} has another password",
        severity=_BROKEN,
    ),
    Break(
        'alter role "{sienna_role}" nologin',
        "login_limits",
        "{sienna_role} may not log in",
        severity=_BROKEN,
    ),
    Break(
        "alter role \"{dawn_role}\" valid until '2090-01-01'",
        "login_limits",
        "{dawn_role} has a password that is good until 2090",
        severity=_BROKEN,
    ),
    Break(
        "alter role tenancy_control connection limit 3",
        "login_limits",
        "tenancy_control may have 3 connections",
        severity=_BROKEN,
    ),
    Break(
        "grant set on parameter session_replication_role to tenancy_rows",
        "parameter_rights",
        "parameter session_replication_role tenancy_rows has SET",
    ),
    Break(
        'grant create on tablespace pg_default to "{scarlet_role}"',
        "parameter_rights",
        "tablespace pg_default {scarlet_role} has CREATE",
    ),
    Break(
        "alter database {db} set row_security = off",
        "database_settings",
        "database doctored has settings of its own",
    ),
    Break(
        "alter database {db} set timezone = 'Asia/Tokyo'",
        "database_settings",
        "database doctored has settings of its own",
    ),
    Break(
        'grant temp on database {db} to "{scarlet_role}"',
        "database_rights",
        "{scarlet_role} has TEMPORARY",
    ),
    Break(
        "grant connect on database {dawn_db} to public",
        "database_rights",
        "{dawn_db} PUBLIC has CONNECT",
    ),
    Break(
        'create table app.taken (id int);;alter table app.taken owner to "{scarlet_role}"',
        "ownership",
        "{scarlet_role} owns 1 object(s) in database doctored",
    ),
    Break(
        "select pg_create_physical_replication_slot('idle')",
        "idle_slots",
        "replication slot idle is not used",
        severity=_WARNING,
    ),
)

_RIGHTS = (
    Break(
        "grant update on sequence app.notes_id_seq to tenancy_rows",
        "sequence_rights",
        "sequence app.notes_id_seq tenancy_rows has UPDATE",
    ),
    Break(
        "grant usage on sequence app.notes_id_seq to public",
        "sequence_rights",
        "sequence app.notes_id_seq PUBLIC has USAGE",
    ),
    Break(
        "grant execute on function app.stamped() to public",
        "function_rights",
        "function app.stamped() PUBLIC has EXECUTE",
    ),
    Break(
        "grant execute on function tenancy.run(text) to tenancy_rows",
        "function_rights",
        "function tenancy.run(text) tenancy_rows has EXECUTE",
    ),
    Break(
        "grant execute on function pg_advisory_lock(bigint) to tenancy_rows",
        "closed_functions",
        "function pg_advisory_lock(bigint) tenancy_rows has EXECUTE",
    ),
    Break(
        "grant execute on function pg_terminate_backend(int, bigint) to public",
        "closed_functions",
        "pg_terminate_backend(integer,bigint) PUBLIC has EXECUTE",
        database="{dawn_db}",
    ),
    Break(
        "grant usage on language plpgsql to public",
        "language_rights",
        "language plpgsql PUBLIC has USAGE",
        database="{db}_template",
    ),
    Break(
        "alter default privileges for role tenancy_owner grant select on tables to public",
        "default_rights",
        "tenancy_owner give SELECT on tables to PUBLIC",
    ),
    Break(
        "alter default privileges for role tenancy_owner in schema app "
        "grant execute on functions to tenancy_rows",
        "default_rights",
        "tenancy_owner give EXECUTE on functions to tenancy_rows",
    ),
    Break(
        "alter default privileges for role tenancy_owner grant execute on functions to public",
        "default_rights",
        "tenancy_owner give EXECUTE on functions to PUBLIC",
        database="{dawn_db}",
    ),
    Break(
        "create type app.mood as enum ('a');;alter type app.mood owner to tenancy_owner;;"
        "grant usage on type app.mood to tenancy_rows",
        "type_rights",
        "tenancy_rows has USAGE",
        severity=_WARNING,
    ),
    Break(
        "create schema extra;;grant usage on schema extra to tenancy_rows",
        "stray_schemas",
        "schema extra is none of the runtime's, and tenancy_rows has USAGE",
    ),
    Break(
        'grant usage on schema "{scarlet_schema}" to "{sienna_role}"',
        "shared_own_schemas",
        "schema {scarlet_schema} is open to several logins",
    ),
    Break(
        "grant select (email) on app.people to public",
        "table_rights",
        "table app.people PUBLIC has SELECT",
    ),
)

_WAYS_OUT = (
    Break(
        "create foreign data wrapper w;;create server s foreign data wrapper w;;"
        "grant usage on foreign server s to tenancy_rows",
        "foreign_access",
        "foreign server s is open to tenancy_rows",
    ),
    Break(
        "create server t foreign data wrapper w",
        "foreign_access",
        "foreign server t is in a database of the runtime",
        severity=_WARNING,
    ),
    Break(
        "create user mapping for public server s",
        "foreign_access",
        "user mapping of PUBLIC leads to the foreign server s",
    ),
    Break(
        "grant usage on foreign data wrapper w to public",
        "foreign_access",
        "foreign data wrapper w is open to PUBLIC",
    ),
    Break(
        "select lo_create(4711);;grant select on large object 4711 to public",
        "large_objects",
        "1 large object(s) are open to tenants",
    ),
    Break("create extension dblink", "extensions", "extension dblink", database="{dawn_db}"),
    Break("create extension citext", "extensions", "extension citext", severity=_WARNING),
    Break(
        "create function public.told() returns event_trigger language plpgsql as "
        "$$ begin end $$;;create event trigger told on ddl_command_end "
        "execute function public.told()",
        "event_triggers",
        "event trigger told runs",
        severity=_WARNING,
    ),
    Break(
        "create publication p for table app.people",
        "replication",
        "publication p sends rows",
        severity=_WARNING,
    ),
    Break(
        "create subscription sub connection 'host=127.0.0.1 port=1' publication p "
        "with (connect = false)",
        "replication",
        "subscription sub writes rows past row security",
        severity=_WARNING,
    ),
    Break(
        "create function app.around() returns int security definer language sql as 'select 1';;"
        "revoke execute on function app.around() from public",
        "hidden_rights",
        "function app.around() runs with the rights of its owner",
    ),
    Break(
        "create function app.leaky(int) returns bool leakproof language sql as 'select true'",
        "hidden_rights",
        "function app.leaky(integer) is LEAKPROOF",
    ),
    Break(
        "create function app.other() returns int set search_path = evil language sql as 'select 1'",
        "hidden_rights",
        "function app.other() changes search_path",
    ),
)

_POLICIES = (
    Break("drop policy tenancy_isolation on app.people", "policies", "no tenant policy"),
    Break(
        'create policy more on "{scarlet_schema}".people using (true)',
        "policies",
        "policy more lets through rows",
    ),
    Break(
        "alter table app.notes disable row level security",
        "row_security",
        "table app.notes has no row security",
        database="{dawn_db}",
    ),
    Break(
        "alter table app.notes no force row level security",
        "row_security",
        "table app.notes does not force row security",
    ),
    Break(
        "create or replace function tenancy.tenant() returns bigint language sql stable "
        "as 'select 2::bigint'",
        "functions",
        "function tenancy.tenant was replaced",
    ),
    Break(
        "create or replace function tenancy.bound_tenant() returns bigint language sql "
        "stable parallel safe begin atomic select 1::bigint; end",
        "functions",
        "function tenancy.bound_tenant was replaced: its body is not",
        database="{dawn_db}",
    ),
    Break(
        "alter function tenancy.lock_key(bigint) volatile",
        "functions",
        "function tenancy.lock_key was replaced: its volatility",
    ),
    Break(
        "drop function tenancy.refuse(text)",
        "functions",
        "function tenancy.refuse is missing",
        database="{db}_template",
    ),
    Break(
        "alter function tenancy.run(text) owner to test_admin",
        "functions",
        "function tenancy.run belongs to test_admin",
    ),
    Break(
        "create function tenancy.tenant(int) returns bigint language sql as 'select 1::bigint'",
        "functions",
        "function tenancy.tenant(integer) is not one of the runtime's",
    ),
    Break(
        "create or replace function catalog.epochs_only_rise() returns trigger "
        "language plpgsql as $$ begin return new; end $$",
        "functions",
        "function catalog.epochs_only_rise was replaced",
    ),
    Break(
        "alter table catalog.placement disable trigger epochs_only_rise",
        "own_triggers",
        "trigger epochs_only_rise of table catalog.placement does not run",
    ),
    Break(
        "create trigger spy after update on tenancy.fence for each row "
        "execute function app.stamped()",
        "own_triggers",
        "trigger spy of table tenancy.fence",
    ),
    Break(
        "select 1",
        "own_tables",
        "table tenancy.fence has a trigger that calls app.stamped()",
    ),
    Break(
        'alter table "{sienna_schema}".notes disable trigger all',
        "own_triggers",
        "does not enforce its foreign keys",
        severity=_BROKEN,
    ),
    Break(
        "create rule quiet as on delete to app.notes do instead nothing",
        "rules",
        "rule quiet of app.notes rewrites statements",
    ),
    Break(
        'alter view "{scarlet_schema}".authors reset (security_invoker)',
        "exempt_relations",
        "is checked with its owner's rights",
    ),
    Break(
        "create materialized view app.copied as select 1 as a",
        "exempt_relations",
        "materialized view app.copied cannot have row security",
    ),
)

_SHAPES = (
    Break(
        "set role tenancy_owner;;create table app.bare (id int primary key);;"
        "alter table app.bare enable row level security, force row level security;;"
        "create policy p on app.bare to tenancy_owner using (true);;"
        "grant select on app.bare to tenancy_rows",
        "tenant_columns",
        "table app.bare has no tenant_id",
    ),
    Break(
        'alter table "{scarlet_schema}".people alter column tenant_id drop default',
        "tenant_defaults",
        "does not fill tenant_id from the binding",
        severity=_WARNING,
    ),
    Break(
        "alter table app.people drop constraint people_email_key, "
        "add constraint people_email_key unique (email)",
        "keys",
        "constraint people_email_key of table app.people holds over all tenants",
    ),
    Break(
        'create unique index loud on "{sienna_schema}".people (email)',
        "keys",
        "index {sienna_schema}.loud holds over all tenants",
    ),
    Break(
        "drop index app.notes_body;;create index notes_body on app.notes (body)",
        "keys",
        "index app.notes_body does not begin with tenant_id",
        database="{dawn_db}",
        severity=_WARNING,
    ),
    Break(
        'alter table "{sienna_schema}".notes drop constraint notes_author_fkey, '
        "add constraint across foreign key (tenant_id, author) references "
        '"{scarlet_schema}".people (tenant_id, id)',
        "foreign_keys",
        "leads to another schema",
    ),
    Break(
        "drop trigger stamp on app.people",
        "unlike_reference",
        "trigger stamp of app.people is missing",
        severity=_BROKEN,
    ),
    Break(
        'create trigger spy after insert on "{scarlet_schema}".people for each row '
        'execute function "{scarlet_schema}".stamped()',
        "unlike_reference",
        "trigger spy of {scarlet_schema}.people is there",
    ),
    Break(
        'alter table "{sienna_schema}".people disable trigger stamp',
        "unlike_reference",
        "trigger stamp of {sienna_schema}.people is not as in the schema",
        severity=_BROKEN,
    ),
    Break(
        'create table "{scarlet_schema}".part () inherits ("{scarlet_schema}".people);;'
        'alter table "{scarlet_schema}".part owner to tenancy_owner',
        "inheritance",
        "part is a part of",
        severity=_WARNING,
    ),
)

_ORPHAN = "t_" + "ab" * 10
_LEFTOVERS = (
    Break(
        "delete from tenancy.fence where tenant_no = {rowan_no}",
        "fences",
        "fence of tenant rowan is missing",
        severity=_BROKEN,
    ),
    Break(
        "update tenancy.fence set epoch = epoch + 4 where tenant_no = {scarlet_no}",
        "fences",
        "fence of tenant scarlet is ahead",
        severity=_BROKEN,
    ),
    Break(
        "update tenancy.fence set open = false where tenant_no = {dawn_no}",
        "fences",
        "fence of tenant dawn is closed",
        database="{dawn_db}",
        severity=_BROKEN,
    ),
    Break(
        "insert into tenancy.fence values (999999, 1, true)",
        "fences",
        "fence of tenant number 999999 belongs to no tenant",
        severity=_WARNING,
    ),
    Break(
        "insert into tenancy.overlay values (999999, 'x')",
        "orphans",
        "overlay of tenant number 999999",
        severity=_WARNING,
    ),
    Break(
        f"create schema {_ORPHAN} authorization tenancy_owner",
        "orphans",
        f"schema {_ORPHAN} belongs to no tenant",
        severity=_WARNING,
    ),
    Break(
        f"create role {_ORPHAN} login;;grant connect on database {{db}} to {_ORPHAN}",
        "orphans",
        f"role {_ORPHAN} belongs to no tenant",
        severity=_WARNING,
    ),
    Break(
        f"create database {_ORPHAN} owner tenancy_owner template {{db}}_template",
        "orphans",
        f"database {_ORPHAN} belongs to no tenant",
        database="postgres",
        severity=_WARNING,
    ),
)


AREAS = (
    Area(name="roles", breaks=_ROLES),
    Area(name="rights", breaks=_RIGHTS, left=("drop schema extra", "drop type app.mood")),
    Area(
        name="ways out",
        breaks=_WAYS_OUT,
        left=(
            "drop event trigger told",
            "drop function public.told(), app.around(), app.leaky(int), app.other()",
            "drop foreign data wrapper w cascade",
        ),
    ),
    Area(name="policies and functions", breaks=_POLICIES),
    Area(name="shapes", breaks=_SHAPES),
    Area(name="leftovers", breaks=_LEFTOVERS),
)
