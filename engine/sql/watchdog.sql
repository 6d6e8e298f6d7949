-- What the watchdog asks and does. Run by the admin role, in the shared database of the server.

-- name: time_of_day
select extract(epoch from clock_timestamp())::float8;

-- name: become_watchdog
-- Of several watchdogs of a server one acts; the lock goes with the connection.
select pg_try_advisory_lock(8387227038471684990);

-- name: sight
-- Whether the admin sees what sessions of other roles do, and may end them.
select pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') as sees,
       pg_has_role(current_user, 'pg_signal_backend', 'USAGE') as signals,
       (select rolsuper from pg_roles where rolname = current_user) as superuser,
       quote_ident(current_user) as admin;

-- name: sessions
-- Every session of a tenant's login, with its locks. $1 = the shared login. Ages in milliseconds.
-- A statement of a tenant takes ROW EXCLUSIVE on tables at most; what is stronger keeps out others'
-- writes, or all others, and already does so while it waits. Exclusive advisory locks are not for
-- tenants: by those of the tenants moves drain them. A login that alters itself and does not end its
-- transaction keeps a lock on the catalogs of logins, and everybody waits who alters it.
with lock as (
    select pid, count(*) as locks,
           bool_or(locktype = 'relation' and mode in (
               'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
               'AccessExclusiveLock')) as table_lock,
           bool_or(locktype = 'relation' and granted and mode not in (
                       'AccessShareLock', 'RowShareLock')
                   and relation in ('pg_catalog.pg_authid'::regclass,
                                    'pg_catalog.pg_db_role_setting'::regclass)) as login_lock,
           bool_or(locktype = 'advisory' and mode = 'ExclusiveLock') as advisory_lock
    from pg_locks
    group by pid
)
select a.pid, a.usename::text as role, coalesce(a.datname::text, '') as database,
       a.application_name, a.state,
       a.backend_start, a.query_start, a.xact_start,
       round(extract(epoch from clock_timestamp() - a.backend_start) * 1000)::bigint as age_ms,
       round(extract(epoch from clock_timestamp() - a.query_start) * 1000)::bigint as statement_ms,
       round(extract(epoch from clock_timestamp() - a.xact_start) * 1000)::bigint as transaction_ms,
       round(extract(epoch from clock_timestamp() - a.state_change) * 1000)::bigint as state_ms,
       coalesce(l.locks, 0) as locks, coalesce(l.table_lock, false) as table_lock,
       coalesce(l.advisory_lock, false) as advisory_lock,
       coalesce(l.login_lock, false) as login_lock
from pg_stat_activity a
left join lock l on l.pid = a.pid
where a.backend_type = 'client backend' and (a.usename = $1 or a.usename ~ '^t_[0-9a-f]{20}$');

-- name: act
-- Cancels statements and ends sessions, each only where it is still what was seen: the same session
-- ($2), and where they are given the same statement ($3) and the same transaction ($4). A pid may
-- have gone to another session meanwhile. $5 = whether to end the session.
select o.number::int - 1 as index,
       case when o.ends then pg_terminate_backend(a.pid) else pg_cancel_backend(a.pid) end as done
from unnest($1::int[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::boolean[])
     with ordinality as o (pid, backend_start, query_start, xact_start, ends, number)
join pg_stat_activity a on a.pid = o.pid and a.backend_start = o.backend_start
where (o.query_start is null or (a.query_start = o.query_start and a.state = 'active'))
  and (o.xact_start is null or a.xact_start = o.xact_start);

-- name: types_of_logins
-- In the catalog's database. $1 = the server, $2 = logins.
select p.role, t.tenant_type
from catalog.placement p join catalog.tenant t using (tenant_no)
where p.server = $1 and p.role = any ($2::text[]);

-- name: login_limits
-- Limits that logins have now. $1 = logins.
select r.rolname::text as role, r.rolconnlimit as connection_limit,
       (select split_part(c, '=', 2) from pg_db_role_setting s, unnest(s.setconfig) c
        where s.setrole = r.oid and s.setdatabase = 0 and c like 'temp_file_limit=%')
           as temp_file_limit
from pg_roles r
where r.rolname = any ($1::text[]);

-- name: unusual_logins
-- Some of the tenants' logins whose limit of connections is none of $1: a watchdog that was killed
-- left them, or their type has other limits now. $2 = how many at a time.
select rolname::text as role from pg_roles
where rolname ~ '^t_[0-9a-f]{20}$' and rolconnlimit <> all ($1::int[])
order by random() limit $2;

-- name: set_connection_limit_text
select format('alter role %I connection limit %s', $1::text, $2::int);

-- name: set_temp_file_limit_text
-- Only a superuser, or who was granted SET on it, may change this one: a tenant cannot.
select format('alter role %I set temp_file_limit = %L', $1::text, $2::text);

-- name: own_settings
-- Settings that logins have given themselves by ALTER ROLE; the runtime sets only the one that a
-- tenant cannot. $1 = the shared login, which comes first. The text takes the setting back.
select r.rolname::text as role, c as setting,
       format('alter role %I %s reset %I', r.rolname,
              coalesce('in database ' || quote_ident(d.datname), ''), split_part(c, '=', 1)) as mend
from pg_db_role_setting s
join pg_roles r on r.oid = s.setrole
left join pg_database d on d.oid = s.setdatabase
cross join unnest(s.setconfig) c
where (r.rolname = $1 or r.rolname ~ '^t_[0-9a-f]{20}$')
  and (s.setdatabase <> 0 or c not like 'temp_file_limit=%')
order by r.rolname = $1 desc, random();

-- name: stored_passwords
-- Readable by superusers only. $1 = logins.
select rolname::text as role, rolpassword as verifier from pg_authid
where rolname = any ($1::text[])
order by array_position($1::text[], rolname::text);
