-- Moves of tenants. Texts that name tables are put together by move_table.py.

-- The catalog's side, in the control server's shared database.

-- name: insert
-- Only for a tenant that is active and still where the plan has seen it; no row otherwise.
insert into catalog.move (move_id, tenant_no, state, source, target, priority, report)
select $1, t.tenant_no, 'planned', $3::jsonb, $4::jsonb, $5, $6::jsonb
from catalog.tenant t join catalog.placement p using (tenant_no)
where t.tenant_no = $2 and t.status = 'active' and p.epoch = ($3::jsonb ->> 'epoch')::bigint
for share of t
returning move_id;

-- name: run_idle
-- Whether no run over the fleet is under way; none begins before the transaction ends.
select pg_try_advisory_xact_lock_shared(8387227038471684979);

-- name: one
select m.*, t.tenant_id from catalog.move m join catalog.tenant t using (tenant_no)
where m.move_id = $1;

-- name: many
-- The newest first, before the one of id $1; of tenant $2; only those that are not settled ($3).
select m.*, t.tenant_id from catalog.move m join catalog.tenant t using (tenant_no)
where ($1::text is null or (m.created_at, m.move_id) < (
        select b.created_at, b.move_id from catalog.move b where b.move_id = $1))
  and ($2::bigint is null or m.tenant_no = $2)
  and not ($3 and m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'))
order by m.created_at desc, m.move_id desc
limit $4;

-- name: seen
-- What the last $4 moves have shown that came to be open: within one server ($1) or between two, of at
-- least $2 rows, and to level $3 (null = any). Those of earlier releases did not measure themselves.
select (m.progress ->> 'rows_copied')::bigint as rows,
       (m.report -> 'plan' ->> 'bytes')::bigint as bytes,
       (m.progress ->> 'prepare_s')::float8 as prepare_s,
       (m.progress ->> 'copy_s')::float8 + (m.progress ->> 'prove_s')::float8 as carry_s,
       (m.report -> 'cutover' ->> 'drain_ms')::float8
           + (m.report -> 'cutover' ->> 'held_ms')::float8 as pause_ms
from catalog.move m
where m.opened_at is not null and m.report ? 'cutover' and m.progress ? 'copy_s'
  and (m.source ->> 'server' = m.target ->> 'server') = $1
  and (m.progress ->> 'rows_copied')::bigint >= $2
  and ($3::text is null or m.target ->> 'level' = $3)
order by m.created_at desc, m.move_id desc
limit $4;

-- name: unsettled
-- What there is to do, the most urgent first.
select m.*, t.tenant_id from catalog.move m join catalog.tenant t using (tenant_no)
where not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'))
order by m.priority desc, m.created_at, m.move_id
limit $1;

-- name: unsettled_count
select count(*) from catalog.move m
where not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'));

-- name: unsettled_of_tenant
select m.*, t.tenant_id from catalog.move m join catalog.tenant t using (tenant_no)
where m.tenant_no = $1
  and not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'));

-- name: set_wish
-- A wish takes the place of none, and is granted only in the states $3.
update catalog.move set wish = $2, paused = false, changed_at = clock_timestamp()
where move_id = $1 and state = any ($3::text[]) and wish is null and not reversing
returning move_id;

-- name: set_paused
-- What is open, on its way back or at its end does not stand still, and has nothing to go on from.
update catalog.move set paused = $2, changed_at = clock_timestamp()
where move_id = $1 and not reversing
  and state not in ('open', 'confirmed', 'failed', 'cancelled', 'rolled_back')
returning move_id;

-- name: set_abandoned
-- The server of the other side, $2, is lost for good: nothing waits for it any more, and a move that is
-- open or on its way back is to be confirmed.
update catalog.move
set report = report || jsonb_build_object(
        'abandoned', jsonb_build_object('server', $2::text, 'at', clock_timestamp())),
    wish = case when state in ('open', 'cutting_over') then 'confirm' else wish end,
    paused = false, changed_at = clock_timestamp()
where move_id = $1 and state = $3 and not cleaned
returning move_id;

-- name: try_own
-- Whether the move is ours from now on, until the session ends.
select pg_try_advisory_lock(hashtextextended('tenancy move ' || $1, 0) & 4611686018427387903);

-- name: is_free
-- Whether nobody works at the move now.
select case when pg_try_advisory_lock(k) then pg_advisory_unlock(k) else false end
from (select hashtextextended('tenancy move ' || $1, 0) & 4611686018427387903 as k) key;

-- name: end_own
-- Ends session $1, which owned the move and whose connection was lost; waits at most $2 ms for its end.
select pg_terminate_backend(pid, $2) from pg_stat_activity
where pid = $1 and application_name = 'tenancy mover' and usename = current_user;

-- name: end_when_silent
-- The server ends the session, and the ownership with it, after so long without a statement.
select set_config('idle_session_timeout', $1, false);

-- name: try_slot
-- One of the places for moves that are carried out at the same time, over all processes.
select pg_try_advisory_lock(
    hashtextextended('tenancy move slot ' || $2::int, 0) & 4611686018427387903)
from catalog.move where move_id = $1;

-- name: free_slot
select pg_advisory_unlock(
    hashtextextended('tenancy move slot ' || $2::int, 0) & 4611686018427387903)
from catalog.move where move_id = $1;

-- name: next_term
update catalog.move set term = term + 1 where move_id = $1 returning term;

-- name: advance
-- $1 = move, $2 = term, $3 = the state it is in, $4 = the next one.
update catalog.move
set state = $4, changed_at = clock_timestamp(), error = $5, reversing = $6,
    wish = case when $7 then null else wish end
where move_id = $1 and term = $2 and state = $3
returning move_id;

-- name: note_progress
update catalog.move set progress = $3::jsonb where move_id = $1 and term = $2 returning move_id;

-- name: note_report
update catalog.move set report = report || $3::jsonb where move_id = $1 and term = $2
returning move_id;

-- name: note_error
update catalog.move set error = $3 where move_id = $1 and term = $2 returning move_id;

-- name: note_cleaned
update catalog.move set cleaned = true, changed_at = clock_timestamp()
where move_id = $1 and term = $2 returning move_id;

-- name: flip
-- The moment at which a tenant is at its new place: the placement and the state of the move, in one
-- commit, if the term is still the newest and the placement the one that was left.
with mine as (
    select move_id, tenant_no from catalog.move
    where move_id = $1 and term = $2 and state = 'cutting_over'
    for update
), placed as (
    update catalog.placement p
    set level = $3, server = $4, database = $5, schema = $6, role = $7, epoch = $8,
        sensitive_schema = $9, changed_at = clock_timestamp()
    from mine where p.tenant_no = mine.tenant_no and p.epoch = $10
    returning p.tenant_no
)
update catalog.move m
set state = $11, changed_at = clock_timestamp(), error = null,
    wish = null, opened_at = case when $11 = 'open' then clock_timestamp() else opened_at end
from mine join placed using (tenant_no)
where m.move_id = mine.move_id
returning m.move_id;

-- name: raise_epoch
-- The tenant stays where it is, under a higher epoch: what was bound under the old one is refused.
with mine as (select tenant_no from catalog.move where move_id = $1 and term = $2 for update)
update catalog.placement p set epoch = $4, changed_at = clock_timestamp()
from mine where p.tenant_no = $3 and mine.tenant_no = $3 and p.epoch = $5
returning p.tenant_no;

-- The sides: databases that hold the tenant's data.

-- name: make_schema
-- The keeper's: what users' functions may do as tenancy_owner must not reach what the admin reads and
-- writes here.
create schema if not exists {move} authorization tenancy_keeper;

-- name: make_tables
-- Who carries the move out, and how far the first copy of each table has come.
create table if not exists {move}.mover (
    only_one  boolean primary key default true check (only_one),
    term      bigint not null
);
create table if not exists {move}.cursor (
    name      text primary key,
    last_key  text[],
    end_key   text[],
    complete  boolean not null default false
);
insert into {move}.mover (term) values (0) on conflict do nothing;
-- The mover works as the owner when it has copied rows, and then notes how far it has come.
grant usage on schema {move} to tenancy_owner;
grant select, insert, update on {move}.cursor to tenancy_owner;

-- name: has_schema
select to_regnamespace($1::text) is not null;

-- name: take_term
-- Waits for whoever works under an older term, and refuses it from then on.
update {move}.mover set term = $1 where term <= $1 returning term;

-- name: check_term
-- Kept until the transaction ends, so that nobody can take over in the middle of it.
select term from {move}.mover where term = $1 for share;

-- name: small_write
-- As short as a write can be: a record in the log, which the commit waits for.
select pg_logical_emit_message(true, 'tenancy', '');

-- name: others_at_work
-- How many sessions are at work, those of the runtime itself apart. Who may not see it takes them all
-- for busy.
select count(*)::int from pg_stat_activity
where coalesce(backend_type, 'client backend') = 'client backend'
  and coalesce(state, '') not in ('idle', 'idle in transaction', 'idle in transaction (aborted)')
  and usename not in (current_user, 'tenancy_control');

-- name: lock_limit
-- How long to wait for a table, and how long to be silent while it is ours.
select set_config('lock_timeout', $1, true),
       set_config('idle_in_transaction_session_timeout', $2, true);

-- name: cursors
select name, last_key, end_key, complete from {move}.cursor;

-- name: read_in_order
-- The next rows by an index, however few PostgreSQL believes there are: otherwise it can read and sort
-- all that is left for each of them. To the end of the transaction.
select set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('enable_seqscan', 'off', true);

-- name: set_cursor
insert into {move}.cursor as c (name, last_key, end_key, complete) values ($1, $2, $3, $4)
on conflict (name) do update
set last_key = excluded.last_key, end_key = excluded.end_key, complete = excluded.complete;

-- name: drop_schema
drop schema if exists {move} cascade;

-- name: tables
-- The tables of schema $1 that hold tenants' rows, with what can be written of them and their keys.
-- A type that is not PostgreSQL's own has another number in another schema and travels as text.
select c.relname::text as name,
       (select array_agg(a.attname::text order by a.attnum)
        from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
           as columns,
       (select array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum)
        from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
           as types,
       -- Of a domain what it is a domain of, to compare keys without what it checks.
       (select array_agg((
            with recursive base as (
                select t.oid, t.typtype, t.typbasetype from pg_type t where t.oid = a.atttypid
                union all
                select t.oid, t.typtype, t.typbasetype
                from base join pg_type t on t.oid = base.typbasetype where base.typtype = 'd')
            select format_type(base.oid, null) from base where base.typtype <> 'd') order by a.attnum)
        from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
           as base_types,
       (select array_agg(t.typnamespace <> 'pg_catalog'::regnamespace
                         or coalesce(e.typnamespace <> 'pg_catalog'::regnamespace, false)
                         order by a.attnum)
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid
        left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
           as own_types,
       (select array_agg(a.attname::text order by k.place)
        from pg_constraint p
        cross join unnest(p.conkey) with ordinality as k (number, place)
        join pg_attribute a on a.attrelid = p.conrelid and a.attnum = k.number
        where p.conrelid = c.oid and p.contype = 'p' and a.attname <> 'tenant_id') as key,
       coalesce((select p.condeferrable from pg_constraint p
                 where p.conrelid = c.oid and p.contype = 'p'), false) as deferrable_key
from pg_class c
where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind = 'r'
  and exists (select from pg_attribute a
              where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
order by c.relname;

-- name: triggers
-- Those of move $3 on table $2 of schema $1.
select t.tgname::text as name
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relname = $2
  and not t.tgisinternal and starts_with(t.tgname::text, 'tenancy_' || $3);

-- name: sequences
-- The sequences of schema $1, in the direction in which they count, and how far that can be.
select c.relname::text as name, s.seqincrement as increment,
       case when s.seqincrement > 0 then s.seqmax else s.seqmin end as last
from pg_sequence s join pg_class c on c.oid = s.seqrelid
where c.relnamespace = to_regnamespace(quote_ident($1))
order by c.relname;

-- name: may_replicate
-- Whether the admin may keep triggers from firing for its own writes.
select has_parameter_privilege(current_user, 'session_replication_role', 'SET');

-- name: enter
-- How values are written and read on both sides, and no trigger fires for what the mover writes: what
-- triggers did is among the rows. No parallel plans: above READ COMMITTED tenancy.tenant() locks the
-- fence's row, which PostgreSQL refuses while workers are at it. To the end of the transaction.
select set_config('session_replication_role', 'replica', true),
       set_config('datestyle', 'ISO, YMD', true),
       set_config('intervalstyle', 'postgres', true),
       set_config('timezone', 'UTC', true),
       set_config('extra_float_digits', '1', true),
       set_config('bytea_output', 'hex', true),
       set_config('xmlbinary', 'base64', true),
       set_config('lc_monetary', 'C', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       set_config('lock_timeout', $1, true),
       set_config('statement_timeout', $2, true),
       set_config('idle_in_transaction_session_timeout', $3, true);

-- name: hold
-- Nobody begins to work for the tenant in this database before it is let go, or the session ends; waits
-- for those that are at work, no longer than $2 (a time with its unit). A session that is silent for
-- longer than $3 is ended, so that nobody who sleeps holds a tenant. The owner, as who the transaction
-- goes on, may not take the lock.
select set_config('lock_timeout', $2, false), set_config('idle_session_timeout', $3, false),
       pg_advisory_lock($1::bigint | 4611686018427387904), set_config('role', 'tenancy_owner', true);

-- name: let_go
select pg_advisory_unlock($1::bigint | 4611686018427387904),
       set_config('lock_timeout', '0', false), set_config('idle_session_timeout', '0', false);

-- name: fence
select epoch, open from tenancy.fence where tenant_no = $1;

-- name: make_fence
-- Closed, where the tenant has none.
insert into tenancy.fence (tenant_no, epoch, open) values ($1, $2, false)
on conflict (tenant_no) do nothing;

-- name: set_fence
-- Epochs only rise. $2 = the new one.
update tenancy.fence set epoch = $2, open = $3 where tenant_no = $1 and epoch <= $2 returning epoch;

-- name: open_fence_soon
-- Without waiting for the disk (manual, 28.4).
update tenancy.fence set epoch = $2, open = true
where tenant_no = $1 and epoch <= $2 and set_config('synchronous_commit', 'off', true) is not null
returning epoch;

-- name: other_movers
-- Ends sessions of those who carried this move out before; $1 = what they are called.
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = $1 and usename = current_user and pid <> all ($2::int[]);
