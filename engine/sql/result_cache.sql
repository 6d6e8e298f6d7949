-- Tenants whose results are kept; in the catalog (cache_switch.py). A period is the time in which one
-- nonce is in force.

-- name: want_cache
insert into catalog.result_cache (tenant_no) values ($1)
on conflict (tenant_no) do update set wanted = true;

-- name: unwant_cache
-- Ends the period, whichever it is, and lets no other begin.
update catalog.result_cache
set wanted = false, nonce = null, serving = false,
    changed_at = clock_timestamp(), ended_at = clock_timestamp()
where tenant_no = $1;

-- name: forget_cache
delete from catalog.result_cache where tenant_no = $1 and not wanted;

-- name: end_period
-- $1 = tenant, $2 = the period that is to end; another one stays.
update catalog.result_cache
set nonce = null, serving = false, changed_at = clock_timestamp(), ended_at = clock_timestamp()
where tenant_no = $1 and nonce = $2
returning tenant_no;

-- name: begin_period
-- A new period under a higher epoch, of an active tenant that is not being moved and whose tables are at
-- the newest version. $1 = tenant, $2 = its epoch, $3 = the next, $4 = the nonce, $5 = seconds after which
-- everybody has heard of the end of the one before.
with placed as (
    update catalog.placement p
    set epoch = $3, changed_at = clock_timestamp()
    from catalog.tenant t,
         (select coalesce(max(number), 0) as number from catalog.migration) newest
    where p.tenant_no = $1 and p.epoch = $2
      and t.tenant_no = p.tenant_no and t.status = 'active'
      and exists (select from catalog.result_cache c where c.tenant_no = $1 and c.nonce is null and c.wanted
                  and coalesce(c.ended_at < clock_timestamp() - make_interval(secs => $5), true))
      and not exists (
          select from catalog.move m
          where m.tenant_no = $1
            and not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back')))
      and not exists (
          select from catalog.namespace n
          where n.server = p.server and n.database = p.database
            and n.schema in (p.schema, p.sensitive_schema)
            and (n.version <> newest.number or n.state <> 'current'))
    returning p.tenant_no, newest.number
)
update catalog.result_cache c
set nonce = $4, version = placed.number, serving = false, changed_at = clock_timestamp()
from placed where c.tenant_no = placed.tenant_no
returning c.version;

-- name: serve
-- Every write that was not announced in this period has ended.
update catalog.result_cache set serving = true, changed_at = clock_timestamp()
where tenant_no = $1 and nonce = $2 and not serving
returning tenant_no;

-- name: one_pin_at_a_time
-- Until the end of the transaction; the statement after it sees what others have pinned.
select pg_advisory_xact_lock(8387227038471684991);

-- name: pin
-- $1 = tenant, $2 = a name for what it asks for, $3 = how many may be pinned. No row: it is one too many,
-- or its results are not kept.
update catalog.result_cache set pinned = coalesce(pinned, $2)
where tenant_no = $1
  and (pinned is not null
       or (select count(*) from catalog.result_cache where pinned is not null) < $3)
returning pinned;

-- name: unpin
-- The name that was in force.
update catalog.result_cache c set pinned = null
from (select tenant_no, pinned from catalog.result_cache where tenant_no = $1 for update) before
where c.tenant_no = before.tenant_no
returning before.pinned;

-- name: pinned
-- $1 = how many at most.
select t.tenant_id, c.tenant_no, c.pinned
from catalog.result_cache c join catalog.tenant t on t.tenant_no = c.tenant_no
where c.pinned is not null
order by c.tenant_no
limit $1;

-- name: try_keep_migrations_out
-- Shared, so that any number of periods can begin at the same time; goes with the session.
select pg_try_advisory_lock_shared(8387227038471684983);

-- name: let_migrations_in
select pg_advisory_unlock_shared(8387227038471684983);
