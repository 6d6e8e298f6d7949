-- The runtime's own tables in every namespace, in the form that scoping would give them.

-- name: runtime_tables
-- Which migrations were applied here, with the SHA-256 of their texts. It belongs to no tenant: only
-- the owner may touch it. Columns of limited length need no TOAST table.
create table tenancy_schema_version (
    number      int primary key,
    checksum    char(64) not null,
    applied_at  timestamptz not null default now()
);
alter table tenancy_schema_version enable row level security, force row level security;
create policy tenancy_schema_version on tenancy_schema_version to tenancy_owner
    using (true) with check (true);

-- What was answered to a write that carries a key, so that it happens once.
create table tenancy_idempotency (
    key           text not null,
    request_hash  bytea not null,
    response      jsonb,
    created_at    timestamptz not null default now(),
    tenant_id     bigint not null default tenancy.bound_tenant(),
    primary key (tenant_id, key)
);
alter table tenancy_idempotency enable row level security;
create policy tenancy_isolation on tenancy_idempotency
    using (tenant_id = (select tenancy.tenant()))
    with check (tenant_id = (select tenancy.tenant()));

-- name: is_safe_runner
-- Whether the runner works as the owner, $1, whatever its body says.
select exists (
    select from pg_proc
    where oid = to_regprocedure('tenancy.run(text)') and prosecdef and pg_get_userbyid(proowner) = $1);

-- name: runner_is_ours
-- Whether the runner is as the release made it, with the body $1. It is the one object in the schema
-- `tenancy` that belongs to the owner, so what a migration calls can alter or drop it, or give it away.
select exists (
    select from pg_catalog.pg_proc p
    where p.oid operator(pg_catalog.=) pg_catalog.to_regprocedure('tenancy.run(text)')
      and p.prosecdef
      and pg_catalog.pg_get_userbyid(p.proowner) operator(pg_catalog.=) 'tenancy_owner'
      and p.prosrc operator(pg_catalog.=) $1::pg_catalog.text
      and p.proconfig is null
      and not exists (
          select from pg_catalog.aclexplode(
              coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
          where a.grantee operator(pg_catalog.<>) p.proowner));

-- name: leave_owner
-- Go on as the admin to the end of the transaction, and `runner_is_ours` in the same round trip: a tenant
-- may be held meanwhile.
select pg_catalog.set_config('role', 'none', true), exists (
    select from pg_catalog.pg_proc p
    where p.oid operator(pg_catalog.=) pg_catalog.to_regprocedure('tenancy.run(text)')
      and p.prosecdef
      and pg_catalog.pg_get_userbyid(p.proowner) operator(pg_catalog.=) 'tenancy_owner'
      and p.prosrc operator(pg_catalog.=) $1::pg_catalog.text
      and p.proconfig is null
      and not exists (
          select from pg_catalog.aclexplode(
              coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
          where a.grantee operator(pg_catalog.<>) p.proowner)) as is_ours;

-- name: run
-- Only while the runner works as the owner: it is the owner's, so what a migration calls could have
-- altered it, and it would work as the admin who runs this. The name of a parameter that cannot be is
-- how plain SQL raises an error. What a migration calls could have set the search_path too, so it is
-- put back, for the session to what an admin's connection starts with.
select case
    when exists (
        select from pg_catalog.pg_proc p
        where p.oid operator(pg_catalog.=) 'tenancy.run(text)'::pg_catalog.regprocedure
          and p.prosecdef
          and pg_catalog.pg_get_userbyid(p.proowner) operator(pg_catalog.=) 'tenancy_owner')
    then tenancy.run($1)::pg_catalog.text
    else pg_catalog.set_config('tenancy.run does not work as its owner', '', true)
end,
pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
pg_catalog.set_config('search_path', path, true)
from (select pg_catalog.current_setting('search_path') as path offset 0) as before;

-- name: ask
-- A statement of ours, $1, about a table of the runtime in a users' schema. It belongs to the owner, so
-- what a migration calls can give it triggers, policies, defaults and checks of its own: they must not
-- work as the admin either. $2 = values as JSON, which it finds in the setting tenancy.values; it
-- leaves its answer, as JSON too, in tenancy.answer.
select pg_catalog.set_config('tenancy.values', $2, true),
case
    when exists (
        select from pg_catalog.pg_proc p
        where p.oid operator(pg_catalog.=) 'tenancy.run(text)'::pg_catalog.regprocedure
          and p.prosecdef
          and pg_catalog.pg_get_userbyid(p.proowner) operator(pg_catalog.=) 'tenancy_owner')
    then tenancy.run($1)::pg_catalog.text
    else pg_catalog.set_config('tenancy.run does not work as its owner', '', true)
end,
pg_catalog.current_setting('tenancy.answer') as answer,
pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
pg_catalog.set_config('search_path', path, true)
from (select pg_catalog.current_setting('search_path') as path offset 0) as before;

-- name: unforce
-- Let PostgreSQL tell the owner which key a definition stumbles over; the transaction is undone then.
alter table {table} no force row level security;

-- name: create_schema
create schema if not exists {schema} authorization tenancy_owner;

-- name: has_runtime_tables
select to_regclass(format('%I.tenancy_schema_version', $1::text)) is not null;

-- name: limits
-- $1 = lock_timeout, $2 = statement_timeout, in milliseconds; to the end of the transaction.
select set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true);

-- name: lock_exclusive
-- One change of a namespace at a time: $1 = the schema. The two highest bits stay clear, because the
-- keys of tenants' locks have one of them set. Released with the transaction.
select pg_advisory_xact_lock(
    hashtextextended('tenancy namespace ' || $1, 0) & 4611686018427387903);

-- name: lock_shared
-- Keep the namespace from changing; many may.
select pg_advisory_xact_lock_shared(
    hashtextextended('tenancy namespace ' || $1, 0) & 4611686018427387903);

-- name: applied
-- For `ask`.
with answer as (select number, checksum from tenancy_schema_version)
select set_config(
    'tenancy.answer', (select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a), true);

-- name: record_migrations
-- For `ask`: pairs of a number and a checksum.
with answer as (
    insert into tenancy_schema_version (number, checksum)
    select (item ->> 0)::int, item ->> 1
    from jsonb_array_elements(current_setting('tenancy.values')::jsonb) as item
    returning number
)
select set_config(
    'tenancy.answer', (select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a), true);

-- name: fences
select tenant_no, epoch, open from tenancy.fence where tenant_no = any ($1::bigint[]);

-- name: set_fence
update tenancy.fence set open = $2 where tenant_no = $1;

-- name: bind
select set_config('tenancy.binding', $1, true);

-- name: deferrable_constraints
-- Constraints and constraint triggers of the schemas $1 that can wait for the end of a transaction, and
-- whether they do so from the start. With the schema, because a bare name would mean the first one only.
select format('%I.%I', space.nspname, con.conname) as name, con.condeferred as deferred
from pg_constraint as con
join pg_namespace as space on space.oid = con.connamespace
where space.nspname = any ($1::text[]) and con.condeferrable
order by 1;

-- name: has_mark
-- For `ask`: the mark, if the tenant that the session is bound to has its first rows.
with answer as (
    select key from tenancy_idempotency
    where key = current_setting('tenancy.values')::jsonb ->> 0
)
select set_config(
    'tenancy.answer', (select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a), true);

-- name: set_mark
-- For `ask`: note that the tenant has its first rows; no row when that is noted already.
with answer as (
    insert into tenancy_idempotency (key, request_hash, response)
    select v ->> 0, ''::bytea, jsonb_build_object('version', v -> 1)
    from (select current_setting('tenancy.values')::jsonb as v) as given
    on conflict (tenant_id, key) do nothing
    returning key
)
select set_config(
    'tenancy.answer', (select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a), true);

-- name: open_policies
-- Policies that believe the binding, for many tenants in one transaction (`tenant_rows`).
select format(
    'alter policy tenancy_isolation on %1$I using (tenant_id = (select tenancy.bound_tenant())) '
    'with check (tenant_id = (select tenancy.bound_tenant()))', class.relname)
from pg_policy as policy
join pg_class as class on class.oid = policy.polrelid
where class.relnamespace = current_schema()::regnamespace
  and policy.polname = 'tenancy_isolation'
order by class.relname;

-- name: close_policies
select format(
    'alter policy tenancy_isolation on %1$I using (tenant_id = (select tenancy.tenant())) '
    'with check (tenant_id = (select tenancy.tenant()))', class.relname)
from pg_policy as policy
join pg_class as class on class.oid = policy.polrelid
where class.relnamespace = current_schema()::regnamespace
  and policy.polname = 'tenancy_isolation'
order by class.relname;

-- name: sequences_behind_text
-- A query for the sequences of $2 (the reference) that are ahead of the same one in $1, and where
-- they are; null when there are none. The sequences themselves are read, as their owner.
select string_agg(
    format(
        'select %1$L::pg_catalog.text as name, there.last_value as target '
        'from %2$I.%1$I as here, %3$I.%1$I as there '
        'where there.is_called and (not here.is_called or %4$s)',
        here.relname, $1::text, $2::text,
        case when sequence.seqincrement > 0
             then 'here.last_value operator(pg_catalog.<) there.last_value'
             else 'here.last_value operator(pg_catalog.>) there.last_value' end),
    ' union all ' order by here.relname)
from pg_sequence as sequence
join pg_class as here on here.oid = sequence.seqrelid
join pg_class as there on there.relname = here.relname and there.relkind = 'S'
where here.relnamespace = $1::text::regnamespace
  and there.relnamespace = $2::text::regnamespace;

-- name: lock_sequence_text
-- Changes nothing, but nobody gets a number from the sequence until the transaction ends.
select format('alter sequence %I.%I increment by %s', $1::text, $2::text, seqincrement)
from pg_sequence where seqrelid = format('%I.%I', $1, $2)::regclass;

-- name: move_sequence
select setval(format('%I.%I', $1::text, $2::text)::regclass, $3::bigint);

-- name: versions
-- For `ask`.
with answer as (
    select (select coalesce(max(number), 0) from {schema}.tenancy_schema_version) as here,
           (select coalesce(max(number), 0) from {reference}.tenancy_schema_version) as there
)
select set_config(
    'tenancy.answer', (select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a), true);

-- name: filled_tables_text
-- A query for the names of the tables of the schema $1 that have rows; null when it has no tables.
select string_agg(
    format('select %L::pg_catalog.text where exists (select from %I.%I)',
           relname, $1::text, relname),
    ' union all ' order by relname)
from pg_class
where relnamespace = $1::text::regnamespace and relkind = 'r' and relname not like 'tenancy\_%';

-- name: copy_text
-- The statement that copies the rows of table $3 from schema $2 to schema $1, which is the
-- search_path. Types of the schema's own (enums, composite types) are not those of the other schema,
-- but have the same text. Null when there is no such table.
select format(
    'insert into %1$I (%2$s) overriding system value select %3$s from %4$I.%1$I',
    $3::text,
    string_agg(quote_ident(attribute.attname), ', ' order by attribute.attnum),
    string_agg(
        case
            when type.typnamespace = class.relnamespace then format(
                'cast(cast(%I as text) as %s)', attribute.attname,
                format_type(attribute.atttypid, attribute.atttypmod))
            else quote_ident(attribute.attname)
        end,
        ', ' order by attribute.attnum),
    $2::text)
from pg_class as class
join pg_attribute as attribute on attribute.attrelid = class.oid
join pg_type as type on type.oid = attribute.atttypid
where class.relnamespace = $1::text::regnamespace
  and class.relname = $3
  and attribute.attnum > 0
  and not attribute.attisdropped
  and attribute.attgenerated = ''
  and attribute.attname <> 'tenant_id'
group by class.oid;
