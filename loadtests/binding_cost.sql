-- What binding_cost.py lays beside the product's own table.

create schema bench;

-- The same rows under the policy that everybody else has: a setting, not signed, with no lock and no fence.
create table bench.notes (
    id         integer not null,
    body       text not null,
    tenant_id  bigint not null,
    primary key (tenant_id, id)
);
insert into bench.notes (id, body, tenant_id) select id, body, tenant_id from app.notes;
alter table bench.notes enable row level security, force row level security;
create policy plain on bench.notes
    using (tenant_id = (select nullif(current_setting('app.tenant', true), '')::bigint));

-- pgbench cannot sign, so each of its sessions asks for its bindings once, before it is timed.
create function bench.sign(tenant_no bigint) returns text language sql security definer as $$
    with key as (select * from tenancy.binding_key where retired_at is null limit 1),
    message as (
        select concat_ws('.', key_id, tenant_no, epoch, pg_backend_pid()) as text
        from key, tenancy.fence where fence.tenant_no = sign.tenant_no)
    select text || '.' || encode(
        sha256(outer_pad || sha256(inner_pad || convert_to(text, 'UTF8'))), 'hex')
    from key, message;
$$;

create role bench_login login;
grant usage on schema app, bench to bench_login;
grant select on app.notes, bench.notes to bench_login;
