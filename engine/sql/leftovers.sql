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
-- of a single tenant has a reference that no migration changes, and which is not among them, and neither is
-- what is of no tenant's place: the target of a move, or what is left of one.
select n.database, n.schema, n.kind, version, newest, place.there as placed,
       kind in ('shared', 'own', 'template', 'reference') and state = 'current' and version = newest
       and (kind <> 'own' or place.there) as current
from catalog.namespace n
cross join lateral (
    select exists (select from catalog.placement p
                   where (p.server, p.database, p.schema) = (n.server, n.database, n.schema)) as there) as place
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

-- name: has_moves
-- Whether this release's table of moves is there.
select to_regclass('catalog.move') is not null;

-- name: moves
-- In the catalog's database: moves of which something is left to do, that changed within $2 seconds, or of
-- the ids $1; with the tenant's place now, and whether somebody works at them (its lock, as `try_own` in
-- move.sql takes it, seen without a touch).
select m.move_id, m.tenant_no, t.tenant_id, m.state, m.source, m.target, m.error, m.wish,
       m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back') as settled,
       extract(epoch from clock_timestamp() - m.changed_at)::float8 as age_s,
       extract(epoch from clock_timestamp() - m.opened_at)::float8 as open_s,
       p.server, p.database, p.epoch,
       exists (select from pg_locks l
               where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                 and l.database = (select oid from pg_database where datname = current_database())
                 and (l.classid::bigint << 32) | l.objid::bigint
                     = hashtextextended('tenancy move ' || m.move_id, 0) & 4611686018427387903) as owned
from catalog.move m
join catalog.tenant t using (tenant_no)
join catalog.placement p using (tenant_no)
where m.move_id = any ($1::text[])
   or not (m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back'))
   or m.changed_at > clock_timestamp() - make_interval(secs => $2)
order by m.created_at, m.move_id;

-- name: move_schemas
select nspname::text as name from pg_namespace where nspname ~ '^m_[0-9a-f]{20}$' order by 1;

-- name: move_triggers
-- Triggers that say they note changes for a move, and whether all but the function's body is as a move
-- makes it. The comparison with the reference leaves out just these.
select n.nspname::text as schema, c.relname::text as table, t.tgname::text as name,
       h.nspname::text as move_id, substring(p.proname from '^note_(.*)$') as label, p.prosrc as body,
       o.tenant_no::bigint as tenant_no,
       to_regclass(format('%I.%I', h.nspname, 'changed_' || substring(p.proname from '^note_(.*)$')))
           is not null as has_notes,
       coalesce(t.tgenabled = 'O' and pg_get_triggerdef(t.oid) in (
               format(d.text, o.tenant_no), format(d.text, quote_literal(o.tenant_no) || '::bigint'))
           and p.proname ~ '^note_(source|target)_[0-9]+$' and l.lanname = 'plpgsql'
           and p.prosecdef and p.proconfig is null and p.prorettype = 'trigger'::regtype
           and pg_get_userbyid(p.proowner) = 'tenancy_keeper'
           and pg_get_userbyid(h.nspowner) = 'tenancy_keeper'
           -- Nobody else may call it; with no list everybody may.
           and p.proacl is not null
           and not exists (select from aclexplode(p.proacl) a
                           where a.grantee not in (p.proowner, 'tenancy_owner'::regrole)), false) as sound
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
join pg_proc p on p.oid = t.tgfoid
join pg_language l on l.oid = p.prolang
join pg_namespace h on h.oid = p.pronamespace
cross join lateral (
    select substring(t.tgname from '_(insert|update|delete)$') as event,
           substring(pg_get_triggerdef(t.oid) from '[.]tenant_id = ''?([0-9]{1,18})') as tenant_no) as o
cross join lateral (
    select replace(format('CREATE TRIGGER %I AFTER %s ON %I.%I FOR EACH ROW WHEN ((%s.tenant_id = ', t.tgname,
                          upper(o.event), n.nspname, c.relname,
                          case o.event when 'insert' then 'new' else 'old' end), '%', '%%')
           || '%s' || replace(format(')) EXECUTE FUNCTION %I.%I()', h.nspname, p.proname), '%', '%%') as text) as d
where not t.tgisinternal and h.nspname ~ '^m_[0-9a-f]{20}$'
  and t.tgname ~ ('^tenancy_' || h.nspname || '_(insert|update|delete)$')
order by 1, 2, 3;

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

-- name: forget_namespace
delete from catalog.namespace where (server, database, schema) = ($1, $2, $3);

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

-- name: wait_briefly
-- In milliseconds, because everybody's writes queue up behind who waits for a table.
set local lock_timeout = $1;

-- name: drop_trigger
drop trigger if exists {trigger} on {schema}.{table};

-- name: drop_move_schema
drop schema if exists {schema} cascade;
