-- What the catalog says is there, and what is there.

-- name: placements
-- In the catalog's database: the tenants of server $1, and for how long nothing has changed for them.
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance, t.metadata::text as metadata,
       extract(epoch from now() - t.updated_at)::float8 as age_s,
       p.level, p.database, p.schema, p.role, p.epoch, p.sensitive_schema
from catalog.placement p join catalog.tenant t using (tenant_no)
where p.server = $1
order by t.tenant_no;

-- name: unplaced
-- In the catalog's database: tenants that were never given a place.
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance, t.metadata::text as metadata,
       extract(epoch from now() - t.updated_at)::float8 as age_s
from catalog.tenant t
where not exists (select from catalog.placement p where p.tenant_no = t.tenant_no)
order by t.tenant_no;

-- name: namespaces
-- In the catalog's database: the namespaces of server $1, and which are at the newest version. A database
-- of a single tenant has a reference that no migration changes, and which is not among them.
select database, schema, version, newest,
       kind in ('shared', 'own', 'template', 'reference') and state = 'current' and version = newest as current
from catalog.namespace
cross join (select coalesce(max(number), 0) as newest from catalog.migration) m
where server = $1 order by 1, 2;

-- name: logins
-- $1 = our databases. Tenants' logins, whether they may log in, which of the databases they may connect
-- to by a right of their own, and whether they have rights there.
with door as (
    select a.grantee, array_agg(d.datname::text) as databases
    from pg_database d cross join lateral aclexplode(d.datacl) a
    where d.datname = any ($1::text[]) and a.privilege_type = 'CONNECT'
    group by a.grantee
)
select r.rolname::text as name, r.rolcanlogin as may_log_in,
       coalesce((select databases from door where grantee = r.oid), '{}') as connects_to, exists (
           select from pg_shdepend s
           where s.refclassid = 'pg_authid'::regclass and s.refobjid = r.oid
           and (s.dbid in (select oid from pg_database where datname = any ($1::text[]))
                or s.classid = 'pg_database'::regclass
                   and s.objid in (select oid from pg_database where datname = any ($1::text[]))))
       as has_rights
from pg_roles r where r.rolname ~ '^t_[0-9a-f]{20}$';

-- name: schemas
select nspname::text as name from pg_namespace where nspname ~ '^t_[0-9a-f]{20}$' or nspname = 'app';

-- name: overlays
select tenant_no, schema from tenancy.overlay;

-- name: fences
select tenant_no, epoch, open from tenancy.fence;

-- name: verifiers
-- Of the logins $1. For superusers.
select rolname::text as name, rolpassword as verifier from pg_authid
where rolname = any ($1::text[]) order by 1;

-- Mends, as texts for whoever runs them: the parameters are numbers, written into their places.

-- name: make_again
update catalog.tenant set status = 'creating' where tenant_no = $1 and status in ('active', 'suspended');

-- name: add_fence
insert into tenancy.fence (tenant_no, epoch, open) values ($1, $2, $3);

-- name: raise_fence
update tenancy.fence set epoch = $2 where tenant_no = $1;

-- name: raise_placement
update catalog.placement set epoch = $2 where tenant_no = $1;

-- name: open_fence
update tenancy.fence set open = true where tenant_no = $1;

-- name: close_fence
update tenancy.fence set open = false where tenant_no = $1;

-- name: remove_fence
delete from tenancy.fence where tenant_no = $1;

-- name: forget_overlay
delete from tenancy.overlay where tenant_no = $1;

-- name: drop_owned
drop owned by {role};

-- name: drop_role
drop role {role};

-- name: drop_schema
drop schema {schema} cascade;

-- name: drop_database
drop database {database} with (force);

-- name: allow_login
alter role {role} login;

-- name: allow_connect
grant connect on database {database} to {role};
