-- The tables of the runtime's own, which the admin reads and writes itself.

-- name: own_tables
-- What there would run code of others in the admin's session, by the catalogs alone. Those in the
-- schemas `tenancy` and `catalog` belong to the keeper; before version 4, and tenancy_schema_version
-- still, to tenancy_owner, as whom migrations work. The same row as the queries of audit.sql.
with own as (
    select c.oid, n.nspname, c.relname, c.relkind, c.relrowsecurity
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where (n.nspname in ('tenancy', 'catalog')
           or (c.relname = 'tenancy_schema_version'
               and (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')))
      -- Sequences and indexes run nothing; expressions of indexes are looked at with their table.
      and c.relkind not in ('i', 'I', 'S')
),
-- Expressions that belong to a table: who depends on what.
expression as (
    select own.oid, 'a default or a generated column' as what, 'pg_attrdef'::regclass as class, d.oid as object
    from own join pg_attrdef d on d.adrelid = own.oid
    union all
    select own.oid, 'a constraint', 'pg_constraint'::regclass, k.oid
    from own join pg_constraint k on k.conrelid = own.oid
    union all
    select own.oid, 'an index', 'pg_class'::regclass, i.indexrelid
    from own join pg_index i on i.indrelid = own.oid
    union all
    select own.oid, 'a policy', 'pg_policy'::regclass, p.oid
    from own join pg_policy p on p.polrelid = own.oid
    union all
    select own.oid, 'a trigger', 'pg_trigger'::regclass, t.oid
    from own join pg_trigger t on t.tgrelid = own.oid where not t.tgisinternal
    union all
    select own.oid, 'statistics', 'pg_statistic_ext'::regclass, s.oid
    from own join pg_statistic_ext s on s.stxrelid = own.oid
),
-- What PostgreSQL brings along is pinned and leaves no row in pg_depend; functions of the runtime's own
-- schemas are compared with the release by themselves (installed_functions.py).
foreign_code as (
    select e.oid, e.what, d.refobjid::regprocedure::text as code
    from expression e
    join pg_depend d on d.classid = e.class and d.objid = e.object and d.refclassid = 'pg_proc'::regclass
    join pg_proc p on p.oid = d.refobjid
    join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'tenancy', 'catalog')
    union all
    select e.oid, e.what, d.refobjid::regoperator::text
    from expression e
    join pg_depend d on d.classid = e.class and d.objid = e.object and d.refclassid = 'pg_operator'::regclass
    join pg_operator o on o.oid = d.refobjid
    where o.oprnamespace <> 'pg_catalog'::regnamespace
),
wrong as (
    select oid, 'is no plain table' as problem from own where relkind <> 'r'
    union all
    select own.oid, format('has a rule, %I', r.rulename)
    from own join pg_rewrite r on r.ev_class = own.oid where own.relkind = 'r'
    union all
    select own.oid, format('has %s that calls %s', what, code) from own join foreign_code using (oid)
    union all
    select own.oid, format('has a column of another type, %I', a.attname)
    from own
    join pg_attribute a on a.attrelid = own.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    where t.typnamespace <> 'pg_catalog'::regnamespace
    union all
    select own.oid, format('has a part of its own, %s', i.inhrelid::regclass)
    from own join pg_inherits i on i.inhparent = own.oid
    union all
    select own.oid, format('has a trigger of others, %I', t.tgname)
    from own join pg_trigger t on t.tgrelid = own.oid
    where not t.tgisinternal and own.relname = 'tenancy_schema_version'
)
select 'unsafe' as severity, format('table %I.%I', nspname, relname) as subject,
       problem || ', so that the admin would run code of others who reads or writes it' as problem,
       null as mend,
       'put it back as the release made it, or take the database from a backup; until then nothing is read here'
           as advice,
       true as by_hand
from own join wrong using (oid)
order by 2, 3
limit 100;
