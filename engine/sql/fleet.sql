-- The order among changes of the schema, and the registered migrations; on the control server.
-- Locks belong to the session: they go with the connection, however it ends.

-- name: try_lock_run
-- One run over the fleet at a time.
select pg_try_advisory_lock(8387227038471684979);

-- name: unlock_run
select pg_advisory_unlock(8387227038471684979);

-- name: moves
-- Moves of tenants of which something is left to do; none is started while a run is under way.
select m.move_id, t.tenant_id, m.state
from catalog.move m join catalog.tenant t using (tenant_no)
where not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'))
order by m.created_at
limit 6;

-- name: lock_versions
-- Exclusive while a migration is registered: no namespace is being made meanwhile.
select pg_advisory_lock(8387227038471684980);

-- name: unlock_versions
select pg_advisory_unlock(8387227038471684980);

-- name: lock_versions_shared
-- Shared while a namespace is made and noted: no migration is registered meanwhile.
select pg_advisory_lock_shared(8387227038471684980);

-- name: unlock_versions_shared
select pg_advisory_unlock_shared(8387227038471684980);

-- name: lock_template
-- Exclusive while a migration works in a template database, which cannot be cloned then.
select pg_advisory_lock(8387227038471684981);

-- name: unlock_template
select pg_advisory_unlock(8387227038471684981);

-- name: lock_template_shared
-- Shared while a template database is cloned.
select pg_advisory_lock_shared(8387227038471684981);

-- name: unlock_template_shared
select pg_advisory_unlock_shared(8387227038471684981);

-- name: lock_caches
-- Exclusive while migrations are brought to tenants: no period of a result cache begins meanwhile.
select pg_advisory_lock(8387227038471684983);

-- name: unlock_caches
select pg_advisory_unlock(8387227038471684983);

-- name: end_cache_periods
-- Of all tenants whose results are kept; how many ended now, or so lately ($1 seconds) that not everybody
-- has heard of it.
with ended as (
    update catalog.result_cache
    set nonce = null, serving = false, changed_at = clock_timestamp(), ended_at = clock_timestamp()
    where nonce is not null
    returning tenant_no
)
select (select count(*) from ended)
     + (select count(*) from catalog.result_cache
        where ended_at > clock_timestamp() - make_interval(secs => $1));

-- name: set_lock_timeout
select set_config('lock_timeout', $1, false);

-- name: registered
select number, name, sql, script::text as script
from catalog.migration where number > $1 order by number;

-- name: register
insert into catalog.migration (number, name, sql, checksum, script)
values ($1, $2, $3, $4, $5::jsonb);

-- name: placed_rows
-- Tenants of level ROW with their rows in database $2 of server $1, after number $3.
select tenant.tenant_no, tenant.status
from catalog.placement as placement
join catalog.tenant as tenant using (tenant_no)
where placement.level = 'row' and placement.server = $1 and placement.database = $2
  and tenant.tenant_no > $3
order by tenant.tenant_no
limit $4;
