"""Databases as releases left them in which users' migrations owned the runtime's own schemas."""

from __future__ import annotations

from typing import Any

import asyncpg

from tenancy.data_isolation.engine.installation import STEPS, Step

#: The last versions of the two schemas that belong to tenancy_owner.
OWNERS_VERSIONS = {"tenancy": 2, "catalog": 4}

#: How that release made the runner: with the first namespace of a database, as the owner.
_RUNNER = """
create function tenancy.run(statement text) returns void
language plpgsql volatile security definer as $$
begin
    execute statement;
end;
$$;
revoke all on function tenancy.run(text) from public;
"""
_BINDING = """
alter schema tenancy owner to tenancy_owner;
alter table tenancy.binding_key owner to tenancy_owner;
alter table tenancy.fence owner to tenancy_owner;
alter table tenancy.overlay owner to tenancy_owner;
alter table tenancy.installation owner to tenancy_owner;
alter function tenancy.lock_key(bigint) owner to tenancy_owner;
alter function tenancy.refuse(text) owner to tenancy_owner;
alter function tenancy.tenant() owner to tenancy_owner;
alter function tenancy.bound_tenant() owner to tenancy_owner;
alter default privileges for role tenancy_keeper grant execute on functions to public;
update tenancy.installation set version = 2 where component = 'tenancy';
"""
_CATALOG = """
drop table catalog.result_cache;
drop trigger count_added on catalog.placement;
drop trigger count_removed on catalog.placement;
drop trigger count_changed on catalog.placement;
drop function catalog.count_placements();
drop table catalog.placement_change;
drop index catalog.placement_moved, catalog.placement_role_idx;
create index on catalog.placement (changed_at);
drop table catalog.load, catalog.load_window, catalog.tendency, catalog.proposal,
    catalog.orchestrator;
drop index catalog.move_tenant_no_created_at_idx;
drop table catalog.database;
drop index catalog.placement_tenant_no_idx;
alter schema catalog owner to tenancy_owner;
alter table catalog.api_key owner to tenancy_owner;
alter table catalog.binding_key owner to tenancy_owner;
alter table catalog.migration owner to tenancy_owner;
alter table catalog.move owner to tenancy_owner;
alter table catalog.named_operation owner to tenancy_owner;
alter table catalog.namespace owner to tenancy_owner;
alter table catalog.placement owner to tenancy_owner;
alter table catalog.server owner to tenancy_owner;
alter table catalog.tenant owner to tenancy_owner;
alter function catalog.epochs_only_rise() owner to tenancy_owner;
update tenancy.installation set version = 4 where component = 'catalog';
"""
#: Everything about the objects in the two schemas that somebody could have changed, but numbers of
#: rows in system catalogs.
_OBJECTS = """
with space as (select * from pg_namespace where nspname in ('tenancy', 'catalog')),
class as (
    select c.*, format('%s.%s', nspname, relname) as name
    from pg_class c join space on space.oid = relnamespace
)
select 'schema' as kind, nspname::text as name,
       concat_ws(' ', pg_get_userbyid(nspowner), acl) as value
from space,
lateral (select string_agg(a::text, ',' order by a::text) from unnest(nspacl) a)
    x (acl)
union all
select 'relation', name, concat_ws(
    ' ', relkind, pg_get_userbyid(relowner), acl, relrowsecurity, relforcerowsecurity, reloptions,
    relhastriggers, relhasrules,
    (select string_agg(concat_ws(' ', attname, atttypid::regtype, attnotnull, attacl,
                                 pg_get_expr(adbin, adrelid)), ',' order by attnum)
     from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where attrelid = class.oid and attnum > 0 and not attisdropped))
from class,
lateral (select string_agg(a::text, ',' order by a::text) as acl
         from unnest(coalesce(relacl, acldefault('r', relowner))) a) x
union all
select 'function', p.oid::regprocedure::text, concat_ws(
    ' ', pg_get_userbyid(proowner), acl, prosecdef, proleakproof, provolatile, proparallel,
    proconfig, prosrc, pg_get_function_sqlbody(p.oid))
from pg_proc p join space on space.oid = pronamespace,
lateral (select string_agg(a::text, ',' order by a::text) as acl
         from unnest(coalesce(proacl, acldefault('f', proowner))) a) x
union all
select 'constraint', format('%s %s', conrelid::regclass, conname), pg_get_constraintdef(o.oid)
from pg_constraint o join space on space.oid = connamespace
where contype <> 'n'
union all
select 'trigger', concat_ws(' ', name, tgname),
       concat_ws(' ', pg_get_triggerdef(t.oid), tgenabled)
from pg_trigger t join class on class.oid = tgrelid
where not tgisinternal
union all
select 'rule', concat_ws(' ', name, rulename), pg_get_ruledef(r.oid)
from pg_rewrite r join class on class.oid = ev_class
union all
select 'policy', concat_ws(' ', name, polname), pg_get_expr(polqual, polrelid)
from pg_policy join class on class.oid = polrelid
union all
select 'part', inhrelid::regclass::text, name
from pg_inherits join class on class.oid = inhparent
union all
select 'defaults', pg_get_userbyid(defaclrole), concat_ws(' ', defaclobjtype, defaclacl)
from pg_default_acl
union all
select 'role', rolname, concat_ws(
    ' ', rolcanlogin, rolsuper, rolbypassrls, rolcreaterole,
    (select string_agg(roleid::regrole::text, ',') from pg_auth_members where member = r.oid))
from pg_roles r where rolname in ('tenancy_owner', 'tenancy_keeper')
order by 1, 2
"""


def earlier_steps() -> dict[str, tuple[Step, ...]]:
    """The steps that the earlier release knew."""
    return {
        component: tuple(step for step in steps if step.version <= OWNERS_VERSIONS[component])
        for component, steps in STEPS.items()
    }


async def make_runner(admin: asyncpg.Connection) -> None:
    """Make the runner as that release did."""
    async with admin.transaction():
        await admin.execute("set local role tenancy_owner")
        await admin.execute(_RUNNER)


async def as_earlier(admin: asyncpg.Connection, *, catalog: bool = False) -> None:
    """Take a database back to that release, and with `catalog` the catalog in it."""
    async with admin.transaction():
        await admin.execute(_BINDING)
        if catalog:
            await admin.execute(_CATALOG)


async def own_objects(admin: asyncpg.Connection) -> dict[tuple[str, str], Any]:
    """What is in the runtime's own schemas: kind and name → whose it is, and what it is like."""
    async with admin.transaction():
        await admin.execute("set local search_path = pg_catalog, pg_temp")
        rows = await admin.fetch(_OBJECTS)
    return {(row["kind"], row["name"]): row["value"] for row in rows}
