-- Making tenants and taking them away. Run by the admin role, in the database named in the comment.

-- name: tenant_locks
-- Of two processes that provision one tenant on a server, one waits. Not the lock that tenant() takes
-- (bit 61 in place of bit 62), because nobody has to wait for the tenant's statements here. Goes with
-- the connection. In the order of $1, which is that of the numbers, so that two who want the same ones do
-- not wait for each other in a circle.
select pg_catalog.pg_advisory_lock(n | 2305843009213693952) from pg_catalog.unnest($1::bigint[]) n;

-- name: tenant_unlock
select pg_catalog.pg_advisory_unlock($1::bigint | 2305843009213693952);

-- name: set_lock_timeout
select pg_catalog.set_config('lock_timeout', $1, false);

-- name: end_when_silent
-- The server ends the session, and with it the lock, after so long without a statement; 0 = never.
select pg_catalog.set_config('idle_session_timeout', $1, false);

-- name: open_fence
-- $1 = tenant, $2 = epoch. An epoch only rises; opening it again at the same epoch changes nothing.
insert into tenancy.fence as f (tenant_no, epoch, open) values ($1, $2, true)
on conflict (tenant_no) do update set epoch = excluded.epoch, open = true
where (f.epoch, f.open) is distinct from (excluded.epoch, true) and f.epoch <= excluded.epoch;

-- name: open_fences
-- The same for many: $1 = tenants, $2 = epochs.
insert into tenancy.fence as f (tenant_no, epoch, open)
select tenant_no, epoch, true
from rows from (pg_catalog.unnest($1::bigint[]), pg_catalog.unnest($2::bigint[])) x (tenant_no, epoch)
order by tenant_no
on conflict (tenant_no) do update set epoch = excluded.epoch, open = true
where (f.epoch, f.open) is distinct from (excluded.epoch, true) and f.epoch <= excluded.epoch;

-- name: raise_fence
-- $1 = tenant, $2 = epoch. Closed stays closed.
update tenancy.fence set epoch = $2 where tenant_no = $1 and epoch < $2;

-- name: close_fence
update tenancy.fence set open = false where tenant_no = $1 and open;

-- name: drain
-- Waits until no statement that saw the fence open is at work; in a transaction of its own.
select pg_catalog.pg_advisory_xact_lock($1::bigint | 4611686018427387904);

-- name: remove_fence
delete from tenancy.fence where tenant_no = $1;

-- name: fence_epoch
select epoch from tenancy.fence where tenant_no = $1;

-- name: drop_schema
drop schema if exists {schema} cascade;

-- name: drop_owned
-- Rights that are left to the role here, those that other logins gave it by default among them.
drop owned by {role};

-- name: drop_role
drop role if exists {role};

-- name: drop_database
drop database if exists {database} with (force);

-- name: has_role
select exists (select from pg_catalog.pg_roles where rolname = $1);

-- name: forbid_login
alter role {role} nologin;

-- name: end_sessions
-- Sessions of a role that is about to go.
select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
where usename = $1 and pid <> pg_catalog.pg_backend_pid();

-- name: bind
select pg_catalog.set_config('tenancy.binding', $1, true);

-- name: scoped_tables
-- The tables of a schema that hold tenants' rows, those first that no other one points to.
select c.relname::text as name
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
where n.nspname = $1 and c.relkind = 'r' and not a.attisdropped
order by (select count(*) from pg_catalog.pg_constraint f
          where f.contype = 'f' and f.confrelid = c.oid and f.conrelid <> c.oid), c.relname;

-- name: silence_triggers
-- To the end of the transaction, where the admin may: no trigger fires then, foreign keys' included.
select pg_catalog.set_config('session_replication_role', 'replica', true)
where pg_catalog.has_parameter_privilege(current_user, 'session_replication_role', 'SET');
