-- Tables of tenants that are not kept apart in their shape: without the tenant's column, or with keys
-- that reach across. As in audit_rights.sql. What scoping made is right by construction (scope_plan.py);
-- this finds what was changed by hand since. `tenancy_schema_version` belongs to no tenant.

-- name: tenant_columns
with table_ as (
    select c.oid, n.nspname, c.relname, c.relowner, c.relacl, t.attnum, t.atttypid, t.attnotnull
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute t on t.attrelid = c.oid and t.attname = 'tenant_id' and not t.attisdropped
    where c.relkind in ('r', 'p') and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
      and c.relname <> 'tenancy_schema_version'
)
select 'unsafe' as severity, format('table %I.%I', nspname, relname) as subject,
       case when attnum is null then 'has no tenant_id, so its rows belong to nobody'
            else 'has a tenant_id that is no bigint' end as problem,
       format('revoke all on %I.%I from %s', nspname, relname, (
           select string_agg(distinct case a.grantee when 0 then 'public'
                             else quote_ident(pg_get_userbyid(a.grantee)) end, ', ')
           from aclexplode(relacl) a where a.grantee <> relowner)) as mend
from table_
-- What nobody but the owner may touch is the runtime's own bookkeeping.
where (attnum is null or atttypid <> 'bigint'::regtype)
  and exists (select from aclexplode(relacl) a where a.grantee <> relowner)
union all
select 'unsafe', format('table %I.%I', nspname, relname), 'has a tenant_id that may be null',
       format('alter table %I.%I alter column tenant_id set not null', nspname, relname)
from table_ where atttypid = 'bigint'::regtype and not attnotnull;

-- name: tenant_defaults
select 'warning' as severity, format('table %I.%I', n.nspname, c.relname) as subject,
       'does not fill tenant_id from the binding' as problem,
       format('alter table %I.%I alter column tenant_id set default tenancy.bound_tenant()',
              n.nspname, c.relname) as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute t on t.attrelid = c.oid and t.attname = 'tenant_id' and not t.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = t.attnum
where c.relkind in ('r', 'p') and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
  and t.atttypid = 'bigint'::regtype
  and pg_get_expr(d.adbin, d.adrelid) is distinct from 'tenancy.bound_tenant()';

-- name: foreign_keys
-- One that does not lead with the tenant tells of rows of others, and removes them with ON DELETE CASCADE.
-- The one that should be there is told as missing once this one is gone.
select 'unsafe' as severity, format('foreign key %I of table %I.%I', k.conname, n.nspname, c.relname) as subject,
       case when t.relnamespace <> c.relnamespace then format('leads to another schema, %s', k.confrelid::regclass)
            else 'does not begin with tenant_id on both sides' end as problem,
       format('alter table %I.%I drop constraint %I', n.nspname, c.relname, k.conname) as mend
from pg_constraint k
join pg_class c on c.oid = k.conrelid
join pg_namespace n on n.oid = c.relnamespace
join pg_class t on t.oid = k.confrelid
left join pg_attribute here on here.attrelid = c.oid and here.attname = 'tenant_id' and not here.attisdropped
left join pg_attribute there on there.attrelid = t.oid and there.attname = 'tenant_id' and not there.attisdropped
where k.contype = 'f' and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
  and (t.relnamespace <> c.relnamespace
       or k.conkey[1] is distinct from here.attnum or k.confkey[1] is distinct from there.attnum);

-- name: keys
-- One over all tenants tells by its refusal that another tenant has the value.
select 'unsafe' as severity, format('constraint %I of table %I.%I', k.conname, n.nspname, c.relname) as subject,
       'holds over all tenants: it does not begin with tenant_id' as problem,
       case when k.contype = 'x' then format('alter table %I.%I drop constraint %I', n.nspname, c.relname, k.conname)
            else format('alter table %I.%I drop constraint %I, add constraint %I %s (tenant_id, %s)',
                        n.nspname, c.relname, k.conname, k.conname,
                        case k.contype when 'p' then 'primary key' else 'unique' end,
                        (select string_agg(quote_ident(a.attname), ', ' order by key.place)
                         from unnest(k.conkey) with ordinality as key (number, place)
                         join pg_attribute a on a.attrelid = c.oid and a.attnum = key.number
                         where a.attname <> 'tenant_id')) end as mend
from pg_constraint k
join pg_class c on c.oid = k.conrelid
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute t on t.attrelid = c.oid and t.attname = 'tenant_id' and not t.attisdropped
where k.contype in ('p', 'u', 'x') and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
  and k.conkey[1] is distinct from t.attnum
union all
select case when i.indisunique then 'unsafe' else 'warning' end,
       format('index %I.%I', n.nspname, x.relname),
       case when i.indisunique then 'holds over all tenants: it does not begin with tenant_id'
            else 'does not begin with tenant_id, so that finding rows takes the longer the more other tenants have' end,
       format('drop index %I.%I', n.nspname, x.relname)
from pg_index i
join pg_class x on x.oid = i.indexrelid
join pg_am m on m.oid = x.relam
join pg_class c on c.oid = i.indrelid
join pg_namespace n on n.oid = c.relnamespace
join pg_attribute t on t.attrelid = c.oid and t.attname = 'tenant_id' and not t.attisdropped
where i.indkey[0] <> t.attnum and (i.indisunique or m.amname = 'btree')
  and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
  and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'));

-- name: rules
select 'unsafe' as severity, format('rule %I of %I.%I', r.rulename, n.nspname, c.relname) as subject,
       'rewrites statements of tenants' as problem,
       format('drop rule %I on %I.%I', r.rulename, n.nspname, c.relname) as mend
from pg_rewrite r
join pg_class c on c.oid = r.ev_class
join pg_namespace n on n.oid = c.relnamespace
where r.rulename <> '_RETURN'
  and (n.nspname in ('app', 'tenancy', 'catalog', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$');

-- name: inheritance
-- Parts can be read one by one, and do not take part in keys over the whole.
select 'warning' as severity, format('table %s', i.inhrelid::regclass) as subject,
       format('is a part of %s', i.inhparent::regclass) as problem,
       case when c.relispartition
            then format('alter table %s detach partition %s', i.inhparent::regclass, i.inhrelid::regclass)
            else format('alter table %s no inherit %s', i.inhrelid::regclass, i.inhparent::regclass) end as mend
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
join pg_class p on p.oid = i.inhparent
join pg_namespace n on n.oid in (c.relnamespace, p.relnamespace)
where c.relkind in ('r', 'p', 'f')
  and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
group by i.inhrelid, i.inhparent, c.relispartition;

-- name: own_triggers
-- On the tables of the runtime's own are the triggers that it made ($1 = tables, $2 = triggers, $3 = what
-- makes them), and foreign keys' own are never off.
with known as (
    select table_, name, text from unnest($1::text[], $2::text[], $3::text[]) as k (table_, name, text)
)
select 'unsafe' as severity, format('trigger %I of table %I.%I', t.tgname, n.nspname, c.relname) as subject,
       'is not one of the runtime''s' as problem,
       format('drop trigger %I on %I.%I', t.tgname, n.nspname, c.relname) as mend
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where not t.tgisinternal and n.nspname in ('tenancy', 'catalog')
  and not exists (select from known k
                  where (k.table_, k.name) = (n.nspname || '.' || c.relname, t.tgname::text))
union all
select 'unsafe', format('trigger %I of table %s', k.name, k.table_), 'does not run',
       case when t.oid is null then k.text
            else format('alter table %s enable trigger %I', k.table_, k.name) end
from known k
join pg_class c on c.oid = to_regclass(k.table_)
left join pg_trigger t on t.tgrelid = c.oid and t.tgname = k.name
where coalesce(t.tgenabled, 'D') not in ('O', 'A')
union all
select 'broken', format('table %I.%I', n.nspname, c.relname), 'does not enforce its foreign keys',
       format('alter table %I.%I enable trigger all', n.nspname, c.relname)
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where t.tgisinternal and t.tgenabled not in ('O', 'A') and t.tgconstraint <> 0
  and (n.nspname in ('app', 'catalog') or n.nspname ~ '^t_[0-9a-f]{20}$')
group by n.nspname, c.relname;
