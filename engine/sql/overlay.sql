-- Overlays: the schemas of hybrid tenants' own, in front of the shared one.

-- name: overlay_2
-- Which tenant has which overlay in this database. For the owner alone.
create table tenancy.overlay (
    tenant_no  bigint primary key check (tenant_no > 0),
    schema     text not null unique
);

-- name: overlays
select tenant_no, schema from tenancy.overlay order by tenant_no;

-- name: register
insert into tenancy.overlay (tenant_no, schema) values ($1, $2)
on conflict (tenant_no) do nothing
returning tenant_no;

-- name: forget
delete from tenancy.overlay where tenant_no = $1 and schema = $2;

-- name: create_schema
create schema {schema} authorization tenancy_owner;

-- name: drop_schema
drop schema if exists {schema} cascade;

-- name: has_schema
select to_regnamespace($1) is not null;

-- name: lock_room
-- Locks that all transactions together may hold (manual, 19.12).
select current_setting('max_locks_per_transaction')::bigint
       * (current_setting('max_connections')::bigint
          + current_setting('max_prepared_transactions')::bigint);

-- name: move_position
-- $1 = a sequence, to go on where another one is.
select setval($1::text::regclass, last_value, is_called) from {schema}.{sequence};

-- name: drop_view
drop view if exists {schema}.{view} cascade;

-- name: names
-- The tables, views, sequences and indexes of the schema $1.
select relname::text as name, relkind::text as kind
from pg_class
where relnamespace = $1::text::regnamespace and relkind in ('r', 'v', 'S', 'i');

-- name: table_texts
-- The statements that make the tables $2 of the schema $1 once more, without rows and triggers. Names
-- are bare: run this with $1 as the search_path, and what it gives with the other schema in front.
-- LIKE copies columns, defaults and not-null constraints; the rest is written out, because LIKE gives
-- indexes and constraints other names and leaves foreign keys out.
with source as (
    select class.oid, class.relname, class.reloptions, class.relrowsecurity
    from pg_class as class
    where class.relnamespace = $1::text::regnamespace
      and class.relkind = 'r'
      and class.relname = any ($2::text[])
),
-- Sequences that belong to a column, as its identity (i) or otherwise (a).
owned as (
    select source.oid as table_oid, source.relname as table_name, attribute.attname,
           attribute.attnum, attribute.attidentity, sequence.oid, sequence.relname,
           depend.deptype = 'i' as is_identity,
           format(
               'start with %s increment by %s minvalue %s maxvalue %s cache %s %scycle',
               seqstart, seqincrement, seqmin, seqmax, seqcache,
               case when seqcycle then '' else 'no ' end) as options,
           format_type(seqtypid, null) as type
    from source
    join pg_depend as depend
        on depend.refclassid = 'pg_class'::regclass and depend.refobjid = source.oid
        and depend.classid = 'pg_class'::regclass and depend.deptype in ('a', 'i')
    join pg_class as sequence on sequence.oid = depend.objid and sequence.relkind = 'S'
    join pg_sequence on pg_sequence.seqrelid = sequence.oid
    join pg_attribute as attribute
        on attribute.attrelid = source.oid and attribute.attnum = depend.refobjsubid
),
index_ as (
    select ind.indexrelid, ind.indisunique, class.relname, class.reloptions, method.amname,
           source.relname as table_name,
           -- The definition from the first key on; a name can hold anything, a parenthesis too.
           substr(pg_get_indexdef(ind.indexrelid), 1 + length(format(
               'CREATE %sINDEX %I ON %I.%I USING %I (',
               case when ind.indisunique then 'UNIQUE ' else '' end, class.relname, $1::text,
               source.relname, method.amname))) as tail,
           exists (select from pg_constraint as con where con.conindid = ind.indexrelid
                   and con.contype in ('p', 'u', 'x')) as of_constraint
    from pg_index as ind
    join source on source.oid = ind.indrelid
    join pg_class as class on class.oid = ind.indexrelid
    join pg_am as method on method.oid = class.relam
)
select stage, name, text from (
    select 1 as stage, relname as name, format(
        'create table %1$I (like %2$I.%1$I including defaults including generated '
        'including storage including compression)', relname, $1::text) as text
    from source
    union all
    select 2, relname, format(
        'alter table %I set (%s)', relname, array_to_string(reloptions, ', '))
    from source where reloptions is not null
    union all
    select 3, relname, format(
        'alter table %I alter column %I add generated %s as identity (sequence name %I %s)',
        table_name, attname, case attidentity when 'a' then 'always' else 'by default' end,
        relname, options)
    from owned where is_identity
    union all
    select 3, relname, format('create sequence %I as %s %s', relname, type, options)
    from owned where not is_identity
    union all
    -- The default of a column with a sequence of its own: the bare name means the new one.
    select 4, owned.relname, format(
        'alter table %I alter column %I set default %s', table_name, attname,
        pg_get_expr(def.adbin, def.adrelid))
    from owned
    join pg_attrdef as def on def.adrelid = table_oid and def.adnum = attnum
    where not is_identity
    union all
    select 5, relname, format('alter sequence %I owned by %I.%I', relname, table_name, attname)
    from owned where not is_identity
    union all
    -- LIKE makes a not-null constraint valid that is not (PostgreSQL 18).
    select 6, source.relname || ' ' || con.conname || case part when 1 then '' else ' not null' end,
           case part when 1 then format(
                    'alter table %I drop constraint %I', source.relname, con.conname)
                else format('alter table %I add constraint %I %s', source.relname, con.conname,
                            pg_get_constraintdef(con.oid)) end
    from pg_constraint as con
    join source on source.oid = con.conrelid
    cross join generate_series(1, 2) as part
    where con.contype = 'n' and not con.convalidated
    union all
    select case con.contype when 'f' then 8 else 6 end, source.relname || ' ' || con.conname,
           format('alter table %I add constraint %I %s', source.relname, con.conname,
                  pg_get_constraintdef(con.oid))
    from pg_constraint as con
    join source on source.oid = con.conrelid
    where con.contype in ('p', 'u', 'c', 'f')
    union all
    select 7, relname, format(
        'create %sindex %I on %I using %I (%s',
        case when indisunique then 'unique ' else '' end, relname, table_name, amname, tail)
    from index_ where not of_constraint
    union all
    select 7, relname, format(
        'alter index %I set (%s)', relname, array_to_string(reloptions, ', '))
    from index_ where of_constraint and reloptions is not null
    union all
    select 9, relname, format('alter table %I enable row level security', relname)
    from source where relrowsecurity
    union all
    select 10, source.relname, format(
        'create policy %I on %I using %s with check %s', policy.polname, source.relname,
        pg_get_expr(policy.polqual, policy.polrelid),
        pg_get_expr(policy.polwithcheck, policy.polrelid))
    from pg_policy as policy
    join source on source.oid = policy.polrelid
) as statement
order by stage, name;

-- name: trigger_texts
-- The statements that make the triggers of the tables $2 of the schema $1 once more, but for those of a move
-- (move_table.py); see above.
select case part when 1 then pg_get_triggerdef(trigger.oid, true)
            else format('alter table %I disable trigger %I', class.relname, trigger.tgname) end as text
from pg_trigger as trigger
join pg_class as class on class.oid = trigger.tgrelid
cross join generate_series(1, 2) as part
where class.relnamespace = $1::text::regnamespace
  and class.relname = any ($2::text[])
  and not trigger.tgisinternal
  and (part = 1 or trigger.tgenabled = 'D')
  and trigger.tgname !~ '^tenancy_m_[0-9a-f]{20}_(insert|update|delete)$'
order by class.relname, trigger.tgname, part;

-- name: view_text
-- The statement that makes the view $2 of the schema $1 once more; see above.
select format(
    'create view %I (%s) with (%s) as %s', class.relname,
    (select string_agg(quote_ident(attname), ', ' order by attnum)
     from pg_attribute where attrelid = class.oid and attnum > 0 and not attisdropped),
    coalesce(array_to_string(class.reloptions, ', '), 'security_invoker=true'),
    pg_get_viewdef(class.oid)) as text
from pg_class as class
where class.relnamespace = $1::text::regnamespace and class.relkind = 'v' and class.relname = $2;

-- name: view_default_texts
-- The statements that give the view $2 of the schema $1 the defaults of its columns; see above.
select format('alter view %I alter column %I set default %s', class.relname, attname,
              pg_get_expr(def.adbin, def.adrelid)) as text
from pg_class as class
join pg_attrdef as def on def.adrelid = class.oid
join pg_attribute as attribute on attribute.attrelid = class.oid and attnum = def.adnum
where class.relnamespace = $1::text::regnamespace and class.relkind = 'v' and class.relname = $2
order by attnum;

-- name: silenced_triggers
-- The triggers of the tables $2 of the schema $1 that would fire: table and trigger.
select class.relname::text as table_name, trigger.tgname::text as name
from pg_trigger as trigger
join pg_class as class on class.oid = trigger.tgrelid
where class.relnamespace = $1::text::regnamespace
  and class.relname = any ($2::text[])
  and not trigger.tgisinternal
  and trigger.tgenabled = 'O'
order by 1, 2;

-- name: move_texts
-- Two statements that bring the rows of tenant $4 from the tables $3 of the schema $1 to those of the
-- schema $2. One statement for all tables, because foreign keys are checked at its end: they may form
-- a circle. The tenant is named, because a migration may have lifted forced row security just now.
with source as (
    select class.relname, string_agg(quote_ident(attribute.attname), ', ' order by attnum) as columns,
           row_number() over (order by class.relname) as place
    from pg_class as class
    join pg_attribute as attribute on attribute.attrelid = class.oid
    where class.relnamespace = $1::text::regnamespace
      and class.relname = any ($3::text[])
      and attribute.attnum > 0
      and not attribute.attisdropped
      and attribute.attgenerated = ''
    group by class.relname
)
select 'with ' || string_agg(format(
           'i%1$s as (insert into %2$I.%4$I (%5$s) overriding system value '
           'select %5$s from %3$I.%4$I where tenant_id = %6$s)',
           place, $2::text, $1::text, relname, columns, $4::bigint), ', ')
           || ' select 1' as copy,
       'with ' || string_agg(format(
           'd%s as (delete from %I.%I where tenant_id = %s)',
           place, $1::text, relname, $4::bigint), ', ')
           || ' select 1' as remove
from source;

-- name: move_positions_text
-- A statement that lets the sequences of the schema $2 go on where those of the schema $1 with the
-- same name are, for the tables $3; null when they have none.
select 'select ' || string_agg(
    format('pg_catalog.setval(%L::pg_catalog.regclass, last_value, is_called) from %I.%I',
           format('%I.%I', $2::text, sequence.relname), $1::text, sequence.relname),
    ' union all select ')
from pg_class as source
join pg_depend as depend
    on depend.refclassid = 'pg_class'::regclass and depend.refobjid = source.oid
    and depend.classid = 'pg_class'::regclass and depend.deptype in ('a', 'i')
join pg_class as sequence on sequence.oid = depend.objid and sequence.relkind = 'S'
where source.relnamespace = $1::text::regnamespace and source.relname = any ($3::text[]);

-- name: astray
-- What in the overlay $1 is bound to a table of the schema $2 behind it: foreign keys, views of what the
-- overlay has itself, and defaults by a sequence that belongs to such a table.
select format('foreign key %s of table %s', con.conname, con.conrelid::regclass) as what
from pg_constraint as con
join pg_class as target on target.oid = con.confrelid
where con.connamespace = $1::text::regnamespace and con.contype = 'f'
  and target.relnamespace <> con.connamespace
union all
select format('view %s', view.relname)
from pg_class as view
join pg_rewrite as rule on rule.ev_class = view.oid
join pg_depend as depend
    on depend.classid = 'pg_rewrite'::regclass and depend.objid = rule.oid
    and depend.refclassid = 'pg_class'::regclass
join pg_class as read on read.oid = depend.refobjid
where view.relnamespace = $1::text::regnamespace
  and read.relnamespace = $2::text::regnamespace
  and exists (select from pg_class as own
              where own.relnamespace = view.relnamespace and own.relname = read.relname
              and own.relkind in ('r', 'v'))
group by view.relname
union all
select format('default of column %s of table %s', attribute.attname, own.relname)
from pg_class as own
join pg_attrdef as def on def.adrelid = own.oid
join pg_attribute as attribute on attribute.attrelid = own.oid and attribute.attnum = def.adnum
join pg_depend as use
    on use.classid = 'pg_attrdef'::regclass and use.objid = def.oid
    and use.refclassid = 'pg_class'::regclass
join pg_class as sequence on sequence.oid = use.refobjid and sequence.relkind = 'S'
join pg_depend as belongs
    on belongs.classid = 'pg_class'::regclass and belongs.objid = sequence.oid
    and belongs.refclassid = 'pg_class'::regclass and belongs.deptype in ('a', 'i')
where own.relnamespace = $1::text::regnamespace
  and sequence.relnamespace = $2::text::regnamespace
order by 1;

-- name: unlike
-- In what the overlays $2 differ from the schema $1, as far as it can be told without writing
-- definitions out: overlay, and what. Types and functions are the same objects in both.
with space as (
    select oid, nspname::text as schema, nspname <> $1::text as is_overlay
    from pg_namespace where nspname = any ($2::text[] || $1::text)
),
class as (
    select space.schema, space.is_overlay, class.oid, class.relname::text as name, class.relkind,
           class.relrowsecurity, class.relforcerowsecurity, class.reloptions
    from space join pg_class as class on class.relnamespace = space.oid
    where class.relkind in ('r', 'v')
),
trait as (
    select class.oid, 'relation' as what, concat_ws(
        ' ', relkind, relrowsecurity, relforcerowsecurity, reloptions) as value
    from class
    union all
    -- Places without those of dropped columns.
    select class.oid, format('column %s', attname), concat_ws(
        ' ', row_number() over (partition by attrelid order by attnum), atttypid, atttypmod,
        attnotnull, atthasdef, attidentity, attgenerated, attcollation)
    from class join pg_attribute on attrelid = class.oid
    where attnum > 0 and not attisdropped
    union all
    select class.oid, format('constraint %s', conname), concat_ws(
        ' ', contype, condeferrable, condeferred, convalidated, confupdtype, confdeltype,
        target.relname, cardinality(conkey), cardinality(confkey))
    from class
    join pg_constraint as con on con.conrelid = class.oid
    left join pg_class as target on target.oid = con.confrelid
    where contype <> 't'
    union all
    select class.oid, format('index %s', own.relname), concat_ws(
        ' ', indisunique, indisvalid, indnkeyatts, indnatts, own.relam, own.reloptions,
        indpred is not null)
    from class
    join pg_index on indrelid = class.oid
    join pg_class as own on own.oid = indexrelid
    union all
    select class.oid, format('policy %s', polname), concat_ws(' ', polcmd, polpermissive, polroles)
    from class join pg_policy on polrelid = class.oid
    union all
    select class.oid, format('trigger %s', tgname), concat_ws(' ', tgfoid, tgtype, tgenabled)
    from class join pg_trigger on tgrelid = class.oid
    where not tgisinternal
      -- What notes changes for a move is looked at by itself (leftovers.sql).
      and not exists (select from pg_proc p join pg_namespace h on h.oid = p.pronamespace
                      where p.oid = tgfoid and h.nspname ~ '^m_[0-9a-f]{20}$'
                        and tgname ~ ('^tenancy_' || h.nspname || '_(insert|update|delete)$'))
),
own as (
    select class.schema, class.name, trait.what, trait.value
    from class join trait using (oid) where class.is_overlay
),
shared as (
    select class.name, trait.what, trait.value
    from class join trait using (oid) where not class.is_overlay
),
due as (
    select class.schema, shared.*
    from class join shared using (name) where class.is_overlay
)
select coalesce(own.schema, due.schema) as overlay,
       format('%s of %s', coalesce(own.what, due.what), coalesce(own.name, due.name)) as what
from own full join due
    on (due.schema, due.name, due.what) = (own.schema, own.name, own.what)
where own.value is distinct from due.value
order by 1, 2
limit 100;
