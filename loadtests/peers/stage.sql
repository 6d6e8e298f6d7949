-- The database of everything but this product: one table of rows under row security for each library,
-- each with the policy that the library makes or asks for, and the same rows in a schema per tenant.
-- bench.tenants and bench.rows say how many; bench.mixed and bench.schemas how many take part.

create schema rl;
create table rl.users (
    tenant_id int not null, id int not null, email text not null, bal bigint not null,
    primary key (tenant_id, id)
);
insert into rl.users
select t, i, 'user' || i || '@tenant' || t || '.example', t * 1000 + i
from generate_series(1, current_setting('bench.tenants')::int) t,
     generate_series(1, current_setting('bench.rows')::int) i;
alter table rl.users enable row level security;
alter table rl.users force row level security;

-- By hand.
create role app login;
create policy by_hand on rl.users to app
using (tenant_id = nullif(current_setting('app.tenant', true), '')::int);
-- The same table without a boundary.
create role bare login;
create policy bare on rl.users to bare using (true);
-- fastapi-tenancy's sample policy, with nullif because the tenant is a number here.
create role ft login;
create policy fastapi_tenancy on rl.users to ft
using (tenant_id = nullif(current_setting('app.current_tenant', true), '')::int);
-- The text that RLSConstraint of django-rls-tenants generates.
create role dj login;
create policy users_tenant_isolation_policy on rl.users to dj
using (
    case when (select current_setting('rls.is_admin', true)) = 'true' then true
    else tenant_id = nullif((select current_setting('rls.current_tenant', true)), '')::int end
);
grant usage on schema rl to app, bare, ft, dj;
grant select on rl.users to app, bare, ft, dj;
alter role app set search_path = rl;
alter role bare set search_path = rl;
alter role ft set search_path = rl;
alter role dj set search_path = rl;

-- The rival: binds and reads for each pair, in one round trip.
create function rl.read_batch(tenants int[], keys int[]) returns bigint[] language plpgsql as $$
declare
    found bigint[];
    value bigint;
begin
    for n in 1 .. cardinality(tenants) loop
        perform set_config('app.tenant', tenants[n]::text, true);
        select bal into strict value from users where id = keys[n];
        found[n] := value;
    end loop;
    return found;
end $$;

-- sqlalchemy-tenants: a role per tenant; function and policy as the library generates them.
create schema sa;
create table sa.users (
    tenant int not null, id int not null, email text not null, bal bigint not null,
    primary key (tenant, id)
);
insert into sa.users select * from rl.users;
create function sa.sqlalchemy_tenants_get_tenant() returns text
language sql security invoker stable as
$$ select replace(current_user, 'tenant_', '') $$;
alter table sa.users enable row level security;
alter table sa.users force row level security;
create policy sqlalchemy_tenants_all on sa.users as permissive for all
using (tenant = (select sa.sqlalchemy_tenants_get_tenant()::integer))
with check (tenant = (select sa.sqlalchemy_tenants_get_tenant()::integer));
create role sat login;
grant usage on schema sa to sat;
grant select on sa.users to sat;
alter role sat set search_path = sa;
do $$
begin
    for t in 1 .. current_setting('bench.mixed')::int loop
        execute format('create role tenant_%s', t);
        execute format('grant tenant_%s to sat', t);
        execute format('grant usage on schema sa to tenant_%s', t);
        execute format('grant select, insert, update, delete on sa.users to tenant_%s', t);
    end loop;
end $$;

-- A schema per tenant, for fastapi-tenancy and django-tenants.
create role schemas login;
do $$
begin
    for t in 1 .. current_setting('bench.schemas')::int loop
        execute format('create schema t_tenant_%s', t);
        execute format(
            'create table t_tenant_%s.users as select id, email, bal from rl.users where tenant_id = %s',
            t, t);
        execute format('alter table t_tenant_%s.users add primary key (id)', t);
        execute format('grant usage on schema t_tenant_%s to schemas', t);
        execute format('grant select on t_tenant_%s.users to schemas', t);
    end loop;
end $$;
