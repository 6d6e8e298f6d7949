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

-- name: has_reference
select to_regclass('tenancy_reference.tenancy_schema_version') is not null;

-- name: reference_version
select coalesce(max(number), 0) from tenancy_reference.tenancy_schema_version;

-- name: unlike_reference
-- In what the schemas $1, which are at the newest version, differ from the reference of this database, as
-- far as it can be told without writing definitions out; of what differs the reference's definition is
-- written out, for the mend.
with space as (
    select oid, nspname::text as schema, nspname = 'tenancy_reference' as is_reference
    from pg_namespace where nspname = any ($1::text[] || 'tenancy_reference'::text)
),
class as materialized (
    select space.schema, space.is_reference, class.oid, class.relname::text as name, class.relkind
    from space join pg_class as class on class.relnamespace = space.oid
    where class.relkind in ('r', 'v', 'S', 'p')
),
trait as (
    select class.*, 'relation' as kind, '' as part, class.relkind::text as value, class.oid as object from class
    union all
    select class.*, 'column', attname::text, concat_ws(
        ' ', case when type.typnamespace = 'pg_catalog'::regnamespace then atttypid::text
                            else type.typname::text end,
        atttypmod, attnotnull, atthasdef, attidentity, attgenerated, attcollation), null
    from class
    join pg_attribute on attrelid = class.oid
    join pg_type as type on type.oid = atttypid
    where attnum > 0 and not attisdropped and class.relkind <> 'S'
    union all
    select class.*, 'constraint', conname::text, concat_ws(
        ' ', contype, condeferrable, condeferred, convalidated, confupdtype, confdeltype,
        target.relname, cardinality(conkey), cardinality(confkey)), con.oid
    from class
    join pg_constraint as con on con.conrelid = class.oid
    left join pg_class as target on target.oid = con.confrelid
    -- Not-null constraints have rows of their own from PostgreSQL 18 on, and are seen at the column.
    where contype not in ('t', 'n')
    union all
    select class.*, 'index', own.relname::text, concat_ws(
        ' ', indisunique, indisvalid, indnkeyatts, indnatts, own.relam, own.reloptions, indpred is not null),
        own.oid
    from class
    join pg_index on indrelid = class.oid
    join pg_class as own on own.oid = indexrelid
    where not exists (select from pg_constraint k where k.conindid = own.oid and k.contype in ('p', 'u', 'x'))
    union all
    select class.*, 'trigger', tgname::text,
        concat_ws(' ', function.proname, tgtype, tgenabled, tgqual is not null, tgattr), trigger.oid
    from class
    join pg_trigger as trigger on tgrelid = class.oid
    join pg_proc as function on function.oid = tgfoid
    where not tgisinternal
    union all
    select class.*, 'policy', polname::text, concat_ws(' ', polcmd, polpermissive), policy.oid
    from class join pg_policy as policy on polrelid = class.oid
),
target as (select unnest($1::text[]) as schema),
due as (
    select target.schema, trait.name, trait.kind, trait.part, trait.value, trait.object, trait.relkind
    from target cross join trait where trait.is_reference
),
difference as (
    select coalesce(due.schema, own.schema) as schema, coalesce(due.name, own.name) as name,
           coalesce(due.kind, own.kind) as kind, coalesce(due.part, own.part) as part,
           due.value as due, own.value as own, due.object, coalesce(own.relkind, due.relkind) as relkind
    from (select * from trait where not is_reference) as own
    full join due using (schema, name, kind, part)
    where own.value is distinct from due.value
    -- A table that is missing or superfluous is told once.
      and (kind = 'relation' or exists (
          select from class where class.schema = coalesce(due.schema, own.schema)
          and class.name = coalesce(due.name, own.name)))
      and (kind = 'relation' or own.value is null or exists (
          select from class where is_reference and class.name = own.name))
    -- The rules of policies, and that there is one, are checked by themselves (audit.sql).
      and not (kind = 'policy' and (due.value is not null or part = 'tenancy_isolation'))
    order by 1, 2, 3, 4
    limit 1000
)
select case when kind = 'trigger' and due is null then 'unsafe'
            when kind in ('trigger', 'relation', 'column', 'constraint', 'policy') then 'broken'
            else 'warning' end as severity,
       case kind when 'relation'
            then format('%s %I.%I', case relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end,
                        schema, name)
            else format('%s %I of %I.%I', kind, part, schema, name) end as subject,
       case when own is null then 'is missing, and the schema has it'
            when due is null then 'is there, and the schema has no such thing'
            else 'is not as in the schema' end as problem,
       array_remove(case
           when kind = 'constraint' and due is null
               then array[format('alter table %I.%I drop constraint %I', schema, name, part)]
           -- A foreign key is held against the rows that its maker sees: the owner has to see them all.
           when kind = 'constraint' then unforced || array[format(
               'alter table %I.%I %sadd constraint %I %s', schema, name,
               case when own is null then '' else format('drop constraint %I, ', part) end, part,
               replace(pg_get_constraintdef(object), 'tenancy_reference.', quote_ident(schema) || '.'))]
               || forced
           when kind = 'index' then array[
               case when own is not null then format('drop index %I.%I', schema, part) end,
               replace(pg_get_indexdef(object), 'tenancy_reference.', quote_ident(schema) || '.')]
           when kind = 'trigger' then array[
               case when own is not null then format('drop trigger %I on %I.%I', part, schema, name) end,
               replace(pg_get_triggerdef(object), 'tenancy_reference.', quote_ident(schema) || '.'),
               case when (select tgenabled from pg_trigger where oid = object) = 'D'
                    then format('alter table %I.%I disable trigger %I', schema, name, part) end]
           when kind = 'policy' then array[format('drop policy %I on %I.%I', part, schema, name)]
           when kind = 'column' and due is null
               then array[format('alter table %I.%I drop column %I', schema, name, part)]
           when kind = 'relation' and due is null and relkind in ('r', 'p')
               then array[format('alter table %I.%I set schema public', schema, name)]
           when kind = 'relation' and due is null and relkind = 'v' then array[format('drop view %I.%I', schema, name)]
           when kind = 'relation' and due is null then array[format('alter sequence %I.%I set schema public', schema, name)]
       end, null) as mend,
       case when kind in ('column', 'relation') and due is not null
            then 'bring it back from a backup, or export the tenant, erase it and make it anew'
            when protects and due is null
            then 'unless it is the schema that has lost it, which also looks like this: then put it back '
                 'in schema tenancy_reference' end as advice,
       -- What keeps rows in or out is never taken away by itself.
       due is null and (kind = 'column' or protects) as by_hand
from difference
cross join lateral (select kind in ('constraint', 'policy')
                           or (kind = 'index' and own like 't %') as protects) as p
cross join lateral (
    select array_agg(distinct format('alter table %I.%I no force row level security', schema, c.relname)) as unforced,
           array_agg(distinct format('alter table %I.%I force row level security', schema, c.relname)) as forced
    from pg_constraint k join pg_class c on c.oid in (k.conrelid, k.confrelid)
    where k.oid = object and k.contype = 'f') as u;
