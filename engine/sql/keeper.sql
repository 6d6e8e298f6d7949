-- Another owner for what the boundary rests on.
--
-- Users' migrations work as tenancy_owner, and so does every function that they call. What they must
-- not change belongs to tenancy_keeper: it is a member of nothing, and nobody but admins is a member
-- of it. tenancy_owner has there what every login has: USAGE on the schema, tenancy.tenant() and
-- tenancy.bound_tenant(). Each object is named, because what somebody else has put into the schema
-- must not get the keeper's rights.
--
-- Run by the admin itself: who gives an object to another role has to be a member of both.

-- name: keeper_3
-- First the functions, in a transaction of their own: a statement that waits while the tables change
-- hands reads them as the keeper afterwards.
grant usage, create on schema tenancy to tenancy_keeper;
grant select, update on tenancy.binding_key, tenancy.fence to tenancy_keeper;
alter function tenancy.lock_key(bigint) owner to tenancy_keeper;
alter function tenancy.refuse(text) owner to tenancy_keeper;
alter function tenancy.tenant() owner to tenancy_keeper;
alter function tenancy.bound_tenant() owner to tenancy_keeper;
alter default privileges for role tenancy_keeper revoke execute on functions from public;

-- name: keeper_4
-- The keys come before the fence, as in tenancy.tenant().
alter table tenancy.binding_key owner to tenancy_keeper;
alter table tenancy.fence owner to tenancy_keeper;
alter table tenancy.overlay owner to tenancy_keeper;
alter table tenancy.installation owner to tenancy_keeper;
alter schema tenancy owner to tenancy_keeper;
grant usage, create on schema tenancy to tenancy_owner;
set local role tenancy_owner;
-- Runs SQL of the users' migrations. A statement can call functions of theirs, in triggers, checks
-- and defaults, and inside a SECURITY DEFINER function none of them can change the role: `reset
-- role` would make it the admin. So this one function here belongs to tenancy_owner. The search_path
-- is the caller's on purpose: it is the schema.
create or replace function tenancy.run(statement text) returns void
language plpgsql volatile security definer
as $$
begin
    execute statement;
end;
$$;
revoke all on function tenancy.run(text) from public;
set local role none;
revoke all on schema tenancy from tenancy_owner;
