-- A copy of the shared database with one thing wrong with each table.

create policy open_door on app.customers using (true) with check (false);
create policy open_write on app.staff for insert with check (true);
drop policy tenancy_isolation on app.products;
alter table app.addresses no force row level security;
alter table app.shops disable row level security;
alter policy tenancy_isolation on app.tenancy_idempotency
    using (tenant_id = (select tenancy.tenant()) or key = 'public');
create unique index on app.orders (id);
alter table app.sold_items drop constraint sold_items_order_id_fkey;
alter table app.sold_items add foreign key (order_id) references app.orders (id);
drop policy tenancy_isolation on app.journal;
-- What other products do: an unsigned setting, and nobody without one sees everything.
create policy tenancy_isolation on app.journal using (
    tenant_id = nullif(current_setting('app.tenant', true), '')::bigint
    or current_setting('app.tenant', true) is null);

create view app.definer as select * from app.orders;
alter view app.definer owner to test_admin;
grant select on app.definer to public;
create materialized view app.frozen as select * from app.orders;
create function app.all_orders() returns setof app.orders language sql security definer
    as 'select * from app.orders';
alter function app.all_orders() owner to test_admin;
grant execute on function app.all_orders() to public;
alter default privileges for role tenancy_owner in schema app grant select on tables to public;
