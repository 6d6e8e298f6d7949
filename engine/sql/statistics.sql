-- What servers have noted of statements (pg_stat_statements; in the maintenance database, which the DSN
-- names) and of tables (statement_statistics.py, table_statistics.py).

-- name: loaded
-- Its settings are there where the library was loaded when the server started.
select current_setting('pg_stat_statements.max', true) is not null;

-- name: installed
-- The schema of the extension, whether the role may see what others ask, and whether planning is counted.
select (select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pg_stat_statements') as schema,
       current_database() as database, current_user as role,
       (select rolsuper from pg_roles where rolname = current_user)
       or pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all,
       coalesce(current_setting('pg_stat_statements.track_planning', true), 'off')::boolean
           as planning_counted;

-- name: make_schema
create schema {schema};

-- name: make_extension
create extension pg_stat_statements with schema {schema};

-- name: busiest
-- Statements of tenants' logins that touched many blocks each time, wrote temporary files or took longer
-- to plan than to run, those first that took the longest. $1 = calls at least, $2 = blocks for each call at
-- least, $3 = plans at least, $4 = statements at most. Values are no part of the texts.
select s.query, s.queryid, d.datname::text as database, r.rolname::text as role, s.calls,
       s.total_exec_time / 1000 as total_s, s.shared_blks_hit + s.shared_blks_read as blocks,
       s.temp_blks_written as temp_blocks, s.plans, s.total_plan_time / 1000 as plan_s
from {schema}.pg_stat_statements(true) s
join pg_roles r on r.oid = s.userid
join pg_database d on d.oid = s.dbid
where r.rolname ~ '^(tenancy_(rows|hybrid)|t_[0-9a-f]{20})$'
  and s.calls >= $1
  and (s.shared_blks_hit + s.shared_blks_read >= $2 * s.calls or s.temp_blks_written > 0
       or (s.plans >= $3 and s.total_plan_time > s.total_exec_time))
order by s.total_exec_time + s.total_plan_time desc
limit $4;

-- name: stale_tables
-- Of the tables $2 that the logins $1 mean (their own first, else the shared one), those of which more has
-- changed than PostgreSQL itself waits for (manual, 24.1.3), or that it has never looked at though they
-- have $3 blocks and more.
with meant as (
    select distinct on (w.role, w.name) w.role, c.oid, n.nspname, c.relname, c.reltuples, c.reloptions
    from unnest($1::name[], $2::name[]) as w (role, name)
    join pg_namespace n on n.nspname = w.role or n.nspname = 'app'
    join pg_class c on c.relnamespace = n.oid and c.relname = w.name and c.relkind = 'r'
    order by w.role, w.name, n.nspname = 'app'
), known as (
    select oid, nspname, relname, reltuples, reloptions, array_agg(role::text) as roles
    from meant
    group by oid, nspname, relname, reltuples, reloptions
)
select k.nspname::text as schema, k.relname::text as name, k.roles,
       greatest(k.reltuples, 0)::float8 as rows, changed, waits_for
from known k
cross join lateral (
    select pg_stat_get_mod_since_analyze(k.oid)::float8 as changed,
           coalesce(max(option_value) filter (where option_name = 'autovacuum_analyze_threshold'),
                    current_setting('autovacuum_analyze_threshold'))::float8
           + coalesce(max(option_value) filter (where option_name = 'autovacuum_analyze_scale_factor'),
                      current_setting('autovacuum_analyze_scale_factor'))::float8
             * greatest(k.reltuples, 0) as waits_for
    from pg_options_to_table(k.reloptions)
) o
where changed > waits_for
   or (k.reltuples < 0
       and pg_relation_size(k.oid) >= $3 * current_setting('block_size')::bigint);

-- name: table_place
-- A table of tenants, which belongs to the role $3; none of the runtime's own.
select c.oid, pg_stat_get_analyze_count(c.oid) as analyzed
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2 and c.relkind = 'r'
  and pg_get_userbyid(c.relowner) = $3
  and n.nspname ~ '^(app|t_[0-9a-f]{20})$';

-- name: analyzed
select c.reltuples::float8 as rows, pg_stat_get_analyze_count(c.oid) as analyzed
from pg_class c where c.oid = $1;
