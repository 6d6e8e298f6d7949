-- Answers to writes that carry a key, in the tenant's own data. Run as the tenant.

-- name: take_key
-- One that is there already, or that another transaction is about to put there, gives no row; for
-- the latter this waits. $1 = key, $2 = hash of the request.
insert into tenancy_idempotency (key, request_hash) values ($1::text, $2::bytea)
on conflict do nothing
returning true;

-- name: forget_key
-- Answers are kept for a time: $1 = key, $2 = seconds.
delete from tenancy_idempotency
where key = $1::text
  and created_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2::double precision);

-- name: answer
select request_hash, response::text from tenancy_idempotency where key = $1::text;

-- name: keep_answer
update tenancy_idempotency set response = pg_catalog.to_jsonb($2::text) where key = $1::text;

-- name: forget_old_keys
-- A few at a time. Marks of the runtime's own, which have no hash, stay.
delete from tenancy_idempotency
where key in (
    select key from tenancy_idempotency
    where created_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1::double precision)
      and pg_catalog.length(request_hash) > 0
    limit 1000);
