-- The schema `tenancy` of one database: who is this session working for?
--
-- Every name in the body of tenancy.tenant() is qualified, operators too, so that no search_path and
-- no object of anybody's schema can mislead it; BETWEEN, IN, NULLIF and CASE with an operand look up
-- operators by themselves and do not occur. A SET clause would do the same but costs more on each
-- call, and so does a body of SQL, which PostgreSQL before 18 plans anew for every statement.

-- name: install_lock
-- One installer per database at a time; released with the transaction.
select pg_catalog.pg_advisory_xact_lock(8387227038471684978);

-- name: limit_waits
-- $1 = milliseconds that this transaction waits for a lock.
select pg_catalog.set_config('lock_timeout', $1, true);

-- name: work_as
-- $1 = a role, or 'none' for the admin itself; to the end of the transaction.
select pg_catalog.set_config('role', $1, true);

-- name: has_installation
select pg_catalog.to_regclass('tenancy.installation') is not null;

-- name: installation
create schema if not exists tenancy authorization tenancy_owner;

create table if not exists tenancy.installation (
    component   text primary key,
    version     int not null,
    changed_at  timestamptz not null default now()
);

-- name: installed_version
select version from tenancy.installation where component = $1;

-- name: record_version
insert into tenancy.installation as i (component, version) values ($1, $2)
on conflict (component) do update set version = excluded.version, changed_at = now();

-- name: binding_1
-- The keys that sign bindings here, as the two padded blocks of HMAC (RFC 2104): PostgreSQL has
-- SHA-256 but no HMAC. Retired keys stay as rows without blocks, so that no number is used twice.
create table tenancy.binding_key (
    key_id      int primary key check (key_id between 1 and 999999999),
    inner_pad   bytea check (length(inner_pad) = 64),
    outer_pad   bytea check (length(outer_pad) = 64),
    created_at  timestamptz not null default now(),
    retired_at  timestamptz,
    check ((retired_at is null) = (inner_pad is not null)),
    check ((retired_at is null) = (outer_pad is not null))
);

-- Which tenants may work here, and under which epoch of their placement. Updated in place (HOT): a
-- change of state touches no index.
create table tenancy.fence (
    tenant_no  bigint primary key check (tenant_no between 1 and 999999999999999999),
    epoch      bigint not null check (epoch between 1 and 999999999999999999),
    open       boolean not null
) with (fillfactor = 50);

-- The advisory lock of a tenant. Bit 62 keeps it apart from other users of advisory locks. Shared by
-- every statement of the tenant; exclusive for whoever drains them.
create function tenancy.lock_key(tenant_no bigint) returns bigint
language sql immutable strict parallel safe
begin atomic
    select lock_key.tenant_no | 4611686018427387904;
end;

-- Raises why a binding is refused.
create function tenancy.refuse(code text) returns bigint
language plpgsql volatile parallel restricted
set search_path = pg_catalog, pg_temp
as $$
declare
    reason constant text := case code
        when 'TN001' then 'this session is not bound to a tenant'
        when 'TN002' then 'the binding of this session is not valid'
        when 'TN003' then 'the binding of this session is out of date'
        when 'TN004' then 'the tenant is closed here'
        when '25006' then 'a read-only transaction above READ COMMITTED cannot check the tenant''s fence'
    end;
begin
    raise exception using errcode = code, message = reason;
end;
$$;

-- The tenant that this session works for; an error, never null. Policies call it once per statement.
--
-- 1. Take the tenant's lock, shared, to the end of the transaction: whoever gets the exclusive lock
--    has waited for this statement. The number is not verified yet, which harms nobody: when it is
--    refused below, the error undoes the (sub)transaction and the lock with it.
-- 2. Read the key and the fence by a statement that starts after the lock was granted. In READ
--    COMMITTED its snapshot is fresh. In REPEATABLE READ and SERIALIZABLE the snapshot may be older
--    than the lock, so there the fence is read with a row lock, which fails with 40001 when the
--    row has changed since.
-- 3. Only then compare. Hashes are compared, not signatures, so that the time that a comparison
--    takes says nothing about the right signature.
--
-- VOLATILE gives each query a fresh snapshot; PARALLEL RESTRICTED keeps it in the leader, whose
-- pid and locks count. No cast here can fail: it is made only of text that was seen to be digits.
create function tenancy.tenant() returns bigint
language plpgsql volatile parallel restricted security definer
as $$
declare
    -- key_id.tenant_no.epoch.pid.signature, the signature being 64 hexadecimal digits.
    binding    constant pg_catalog.text := pg_catalog.current_setting('tenancy.binding', true);
    message    constant pg_catalog.text := pg_catalog.left(binding, -65);
    key_text   constant pg_catalog.text := pg_catalog.split_part(message, '.', 1);
    number     constant pg_catalog.text := pg_catalog.split_part(message, '.', 2);
    key_no     pg_catalog.int4;
    bound_no   pg_catalog.int8;
    inner_pad  pg_catalog.bytea;
    outer_pad  pg_catalog.bytea;
    now_epoch  pg_catalog.int8;
    now_open   pg_catalog.bool;
    current    pg_catalog.bool;
begin
    if pg_catalog.translate(message, '0123456789', '') operator(pg_catalog.=) '...'
       and key_text operator(pg_catalog.<>) ''
       and pg_catalog.length(key_text) operator(pg_catalog.<=) 9
       and number operator(pg_catalog.<>) ''
       and pg_catalog.length(number) operator(pg_catalog.<=) 18
       and pg_catalog.split_part(message, '.', 4)
           operator(pg_catalog.=) pg_catalog.pg_backend_pid()::pg_catalog.text
    then
        key_no := key_text::pg_catalog.int4;
        bound_no := number::pg_catalog.int8;
        -- The lock's result is void, which is not null: an expression is cheaper than PERFORM.
        if pg_catalog.pg_advisory_xact_lock_shared(
               bound_no operator(pg_catalog.|) 4611686018427387904) is not null
           and pg_catalog.current_setting('transaction_isolation')
               operator(pg_catalog.=) 'read committed'
        then
            select k.inner_pad, k.outer_pad, f.epoch, f.open
            into inner_pad, outer_pad, now_epoch, now_open
            from tenancy.binding_key k
            left join tenancy.fence f on f.tenant_no operator(pg_catalog.=) bound_no
            where k.key_id operator(pg_catalog.=) key_no;
        else
            if pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' then
                return tenancy.refuse('25006');
            end if;
            select f.epoch, f.open into now_epoch, now_open
            from tenancy.fence f where f.tenant_no operator(pg_catalog.=) bound_no for share;
            select k.inner_pad, k.outer_pad into inner_pad, outer_pad
            from tenancy.binding_key k where k.key_id operator(pg_catalog.=) key_no;
        end if;
        -- With no key, or one that is retired, this is null and so not true.
        if pg_catalog.sha256(pg_catalog.convert_to(binding, 'UTF8')) operator(pg_catalog.=)
           pg_catalog.sha256(pg_catalog.convert_to(
               message operator(pg_catalog.||) '.' operator(pg_catalog.||) pg_catalog.encode(
                   pg_catalog.sha256(outer_pad operator(pg_catalog.||)
                       pg_catalog.sha256(inner_pad operator(pg_catalog.||)
                           pg_catalog.convert_to(message, 'UTF8'))), 'hex'), 'UTF8'))
        then
            current := pg_catalog.split_part(message, '.', 3)
                       operator(pg_catalog.=) now_epoch::pg_catalog.text;
            if current and now_open then
                return bound_no;
            end if;
            return tenancy.refuse(case when current then 'TN004' else 'TN003' end);
        end if;
    end if;
    return tenancy.refuse(
        case when binding is null or binding operator(pg_catalog.=) '' then 'TN001'
             else 'TN002' end);
end;
$$;

-- The number in the binding, not verified: a default for columns, whose rows the policies check. The
-- planner puts its body in its place.
create function tenancy.bound_tenant() returns bigint
language sql stable parallel safe
begin atomic
    select nullif(split_part(current_setting('tenancy.binding', true), '.', 2), '')::bigint;
end;

revoke all on all functions in schema tenancy from public;
grant execute on function tenancy.tenant(), tenancy.bound_tenant() to public;
grant usage on schema tenancy to public;

-- name: data_schemas_1
-- The schemas that hold tenants' tables, empty, and no rights for anybody yet.
create schema if not exists app authorization tenancy_owner;
create schema if not exists tenancy_reference authorization tenancy_owner;

-- Functions are executable by PUBLIC unless their maker says otherwise; ours says so beforehand.
alter default privileges for role tenancy_owner revoke execute on functions from public;

-- name: use_app
grant usage on schema app to tenancy_rows, tenancy_hybrid;

-- name: owner_rights
-- What tenancy.tenant() and whoever drains a tenant need once PUBLIC has lost it.
grant execute on function
    pg_catalog.pg_advisory_xact_lock_shared(bigint),
    pg_catalog.pg_advisory_xact_lock(bigint),
    pg_catalog.pg_try_advisory_xact_lock(bigint)
to tenancy_owner, tenancy_keeper;
-- Users write functions for triggers in their migrations, which run as the owner.
grant usage on language plpgsql, sql to tenancy_owner, tenancy_keeper;

-- name: keeper_may_lock
-- Whether tenancy.tenant() can take the tenant's lock as the keeper.
select pg_catalog.has_function_privilege(
    'tenancy_keeper', 'pg_catalog.pg_advisory_xact_lock_shared(bigint)', 'EXECUTE');

-- name: close_public_schema
-- Nobody needs it, and a search_path that falls back to it must find nothing (CVE-2018-1058).
revoke all on schema public from public;

-- name: close_languages
-- DO and CREATE FUNCTION need USAGE; functions and triggers that exist run without it.
revoke usage on language plpgsql, sql from public;

-- name: close_functions
-- Takes functions of PostgreSQL away from PUBLIC, in this database only, so that they are out of a
-- tenant's reach even when its SQL comes straight to its own connection. An allow-list: of the
-- VOLATILE ones only those stay that are named here.
--
--   advisory locks            hold off, or wait on, another tenant's drain
--   lo_*, loread, lowrite     large objects know no row security and belong to whoever makes them
--   pg_cancel/terminate_backend  reach every session of the same role, so every tenant of ROW
--   query_to_xml, cursor_to_xml, table_to_xml, ts_stat, ts_rewrite, ...  SQL hidden in a string
--   pg_notify                 a channel between tenants, and a queue that can be filled
--   pg_sleep*                 hold a connection for nothing
--   pg_stat_get_*, pg_lock_status, pg_*_size  other tenants' statements, locks and sizes
--   pg_export_snapshot, pg_logical_emit_message, *_wal_*, replication, binary_upgrade_*  not for tenants
--   dblink                    a way out of the session, should the extension ever be installed
--
-- Rights on functions are checked as the caller even inside a view: pg_stat_activity and pg_locks are
-- closed by this too.
do $close$
declare
    kept constant text[] := array[
        -- The runtime binds with it, and SET cannot be taken away anyhow.
        'set_config', 'current_query', 'pg_is_in_recovery',
        -- Drivers call it when they reset a connection; it frees what this very session holds.
        'pg_advisory_unlock_all',
        -- Time, chance and identifiers.
        'clock_timestamp', 'timeofday', 'random', 'random_normal', 'setseed', 'gen_random_uuid',
        'uuidv4', 'uuidv7', 'array_sample', 'array_shuffle',
        -- Rights on the sequence itself are checked.
        'nextval', 'currval', 'lastval', 'setval',
        'pg_xact_status', 'txid_status', 'pg_partition_tree', 'pg_partition_ancestors'];
    function record;
begin
    for function in
        select p.oid::regprocedure as signature
        from pg_proc p
        where exists (
            select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            where a.grantee = 0 and a.privilege_type = 'EXECUTE')
        and (
            p.pronamespace = 'pg_catalog'::regnamespace
            and p.prokind = 'f'
            -- Arguments or results of these types make a function unreachable from SQL.
            and p.prorettype not in (
                'trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype,
                'language_handler'::regtype, 'tsm_handler'::regtype, 'index_am_handler'::regtype,
                'table_am_handler'::regtype, 'fdw_handler'::regtype)
            and not 'internal'::regtype = any (p.proargtypes::regtype[])
            and (
                (p.provolatile = 'v' and p.proname <> all (kept))
                or p.proname like 'pg\_stat\_get\_%'
                or p.proname ~ '^(query|cursor|table|schema|database)_to_xml')
            or exists (
                select from pg_depend d join pg_extension e on e.oid = d.refobjid
                where d.classid = 'pg_proc'::regclass and d.objid = p.oid
                and d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
                and e.extname = 'dblink'))
    loop
        execute format('revoke execute on function %s from public', function.signature);
    end loop;
end;
$close$;

-- name: left_open
-- What the two statements above should have closed and PUBLIC still has (an admin that is no
-- superuser cannot revoke it: PostgreSQL only warns).
select 'function ' || p.oid::regprocedure::text as what
from pg_proc p
where p.pronamespace = 'pg_catalog'::regnamespace
  and p.proname in ('pg_advisory_lock', 'pg_advisory_xact_lock', 'pg_terminate_backend',
                    'pg_cancel_backend', 'query_to_xml', 'pg_notify', 'lo_create', 'pg_sleep',
                    'pg_stat_get_activity')
  and exists (
      select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee = 0 and a.privilege_type = 'EXECUTE')
union all
select 'language ' || l.lanname
from pg_language l
where l.lanname in ('plpgsql', 'sql')
  and exists (
      select from aclexplode(coalesce(l.lanacl, acldefault('l', l.lanowner))) a
      where a.grantee = 0)
order by 1;

-- name: binding_keys
select key_id, retired_at is not null as retired from tenancy.binding_key order by key_id;

-- name: add_binding_key
-- A key that is retired stays so. One that was derived for another name of the server signs nothing that
-- this one could check.
insert into tenancy.binding_key as k (key_id, inner_pad, outer_pad) values ($1, $2, $3)
on conflict (key_id) do update set inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad
where k.retired_at is null
  and (k.inner_pad, k.outer_pad) is distinct from (excluded.inner_pad, excluded.outer_pad);

-- name: retire_binding_key
update tenancy.binding_key
set retired_at = now(), inner_pad = null, outer_pad = null
where key_id = $1 and retired_at is null;

-- name: adopt_binding_keys
-- A database that was copied from another one has the other one's keys. Keys are derived from the
-- database's name, so here they are replaced: $1 = ids, $2 and $3 = their blocks.
with fresh as (
    select * from unnest($1::int[], $2::bytea[], $3::bytea[]) as t (key_id, inner_pad, outer_pad)
), gone as (
    delete from tenancy.binding_key k
    where not exists (select from fresh f where f.key_id = k.key_id)
)
insert into tenancy.binding_key as k (key_id, inner_pad, outer_pad) select * from fresh
on conflict (key_id) do update
set inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad, retired_at = null;
