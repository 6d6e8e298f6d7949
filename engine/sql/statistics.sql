-- What servers have noted of statements (pg_stat_statements); in the maintenance database, which the DSN
-- names (index_advice.py).

-- name: loaded
-- Its settings are there where the library was loaded when the server started.
select current_setting('pg_stat_statements.max', true) is not null;

-- name: installed
-- The schema of the extension, and whether the role may see what others ask.
select (select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pg_stat_statements') as schema,
       current_database() as database, current_user as role,
       (select rolsuper from pg_roles where rolname = current_user)
       or pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all;

-- name: make_schema
create schema {schema};

-- name: make_extension
create extension pg_stat_statements with schema {schema};

-- name: busiest
-- Statements of tenants' logins that touched many blocks each time, those first that took the longest.
-- $1 = calls at least, $2 = blocks for each call at least, $3 = statements at most. Values are no part of
-- the texts.
select s.query, s.calls, s.total_exec_time / 1000 as total_s,
       s.shared_blks_hit + s.shared_blks_read as blocks
from {schema}.pg_stat_statements(true) s join pg_roles r on r.oid = s.userid
where r.rolname ~ '^(tenancy_(rows|hybrid)|t_[0-9a-f]{20})$'
  and s.calls >= $1 and s.shared_blks_hit + s.shared_blks_read >= $2 * s.calls
order by s.total_exec_time desc
limit $3;
