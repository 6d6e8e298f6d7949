-- Further rights that would let a tenant cross its boundary, or reach what it has no use for. As in
-- audit.sql a query returns subject, problem and the SQL that mends it, and no row when all is well;
-- here with the severity in front, and `by_hand` where a person has to decide.
--
-- The runtime's logins are known by their names: the fixed ones, and tenants' (t_ and 20 digits).

-- name: parameter_rights
-- Of the server. SET on session_replication_role switches triggers and foreign keys off (manual, 5.8).
select 'unsafe' as severity, format('parameter %s', p.parname) as subject,
       format('%s has %s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type) as problem,
       format('revoke %s on parameter %s from %s', a.privilege_type, p.parname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_parameter_acl p
cross join lateral aclexplode(p.paracl) a
left join pg_roles r on r.oid = a.grantee
where a.grantee = 0
   or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid', 'tenancy_owner', 'tenancy_keeper')
   or r.rolname ~ '^t_[0-9a-f]{20}$'
union all
select 'unsafe', format('tablespace %I', t.spcname),
       format('%s has %s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type),
       format('revoke %s on tablespace %I from %s', a.privilege_type, t.spcname,
              coalesce(quote_ident(r.rolname), 'public'))
from pg_tablespace t
cross join lateral aclexplode(t.spcacl) a
left join pg_roles r on r.oid = a.grantee
where a.grantee <> t.spcowner
  and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid')
       or r.rolname ~ '^t_[0-9a-f]{20}$');

-- name: database_settings
-- Of the server. $1 = our databases. What a database sets holds for every session in it; these
-- change what a statement means, who it works as, or what is loaded into it.
select case when s.setconfig::text ~
            '(row_security|session_replication_role|search_path|role|session_authorization|preload_libraries|tenancy\.[a-z_]+|standard_conforming_strings)='
            then 'unsafe' else 'warning' end as severity,
       coalesce('database ' || quote_ident(d.datname), 'all databases') as subject,
       format('has settings of its own: %s', array_to_string(s.setconfig, ', ')) as problem,
       coalesce('alter database ' || quote_ident(d.datname) || ' reset all', 'alter role all reset all') as mend
from pg_db_role_setting s
left join pg_database d on d.oid = s.setdatabase
where s.setrole = 0 and (s.setdatabase = 0 or d.datname = any ($1::text[]));

-- name: login_limits
-- Of the server. $1 = logins. What keeps a login of ours out; no tenant can do that to itself.
select 'broken' as severity, format('role %I', rolname) as subject, 'may not log in' as problem,
       format('alter role %I login', rolname) as mend
from pg_roles where rolname = any ($1::text[]) and rolname <> 'tenancy_hybrid' and not rolcanlogin
union all
select 'broken', format('role %I', rolname),
       format('has a password that is good until %s only', rolvaliduntil),
       format('alter role %I valid until ''infinity''', rolname)
from pg_roles where rolname = any ($1::text[]) and rolvaliduntil < 'infinity'
union all
select 'broken', format('role %I', rolname), format('may have %s connections', rolconnlimit),
       format('alter role %I connection limit -1', rolname)
-- The watchdog limits tenancy_rows while it runs.
from pg_roles where rolname = 'tenancy_control' and rolconnlimit <> -1;

-- name: sequence_rights
-- USAGE gives numbers out. SELECT tells of others' activity, UPDATE turns the sequence back.
select 'unsafe' as severity, format('sequence %I.%I', n.nspname, c.relname) as subject,
       format('%s has %s%s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type,
              case when a.is_grantable then ' with grant option' else '' end) as problem,
       format('revoke %s on sequence %I.%I from %s', a.privilege_type, n.nspname, c.relname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
cross join lateral aclexplode(c.relacl) a
left join pg_roles r on r.oid = a.grantee
where c.relkind = 'S' and a.grantee <> c.relowner
  and (n.nspname in ('app', 'tenancy', 'catalog', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and (a.grantee = 0 or a.is_grantable or a.privilege_type <> 'USAGE'
       or n.nspname in ('tenancy', 'tenancy_reference')
       or (n.nspname <> 'catalog' and r.rolname = 'tenancy_control')
       or (n.nspname = 'catalog' and r.rolname is distinct from 'tenancy_control'));

-- name: function_rights
-- Functions of the runtime are nobody's but two; those of users are for the roles of their schema.
select 'unsafe' as severity, format('function %s', p.oid::regprocedure) as subject,
       format('%s has EXECUTE%s', coalesce(r.rolname, 'PUBLIC'),
              case when a.is_grantable then ' with grant option' else '' end) as problem,
       format('revoke execute on routine %s from %s', p.oid::regprocedure,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
left join pg_roles r on r.oid = a.grantee
where a.grantee <> p.proowner
  and (n.nspname in ('app', 'tenancy', 'catalog', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and not (n.nspname = 'tenancy' and p.proname in ('tenant', 'bound_tenant') and p.pronargs = 0
           and a.grantee = 0)
  and (a.grantee = 0 or a.is_grantable or n.nspname in ('tenancy', 'catalog', 'tenancy_reference')
       or r.rolname = 'tenancy_control');

-- name: closed_functions
-- What the start takes from PUBLIC (close_functions in binding.sql has the reasons and the same list of
-- what stays), and what nobody but the owner was ever given. An admin that is no superuser cannot take it
-- away from PUBLIC: that is told as one warning.
with given as (
select p.oid::regprocedure::text as name, r.rolname,
       (select rolsuper from pg_roles where rolname = current_user) as super
from pg_proc p
cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
left join pg_roles r on r.oid = a.grantee
where p.pronamespace = 'pg_catalog'::regnamespace
  and a.privilege_type = 'EXECUTE'
  and (r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid')
       or r.rolname ~ '^t_[0-9a-f]{20}$'
       or (a.grantee = 0 and p.prokind = 'f'
           and p.prorettype not in (
               'trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype,
               'language_handler'::regtype, 'tsm_handler'::regtype, 'index_am_handler'::regtype,
               'table_am_handler'::regtype, 'fdw_handler'::regtype)
           and not 'internal'::regtype = any (p.proargtypes::regtype[])
           and ((p.provolatile = 'v' and p.proname <> all (array[
                    'set_config', 'current_query', 'pg_is_in_recovery', 'pg_advisory_unlock_all',
                    'clock_timestamp', 'timeofday', 'random', 'random_normal', 'setseed',
                    'gen_random_uuid', 'uuidv4', 'uuidv7', 'array_sample', 'array_shuffle',
                    'nextval', 'currval', 'lastval', 'setval', 'pg_xact_status', 'txid_status',
                    'pg_partition_tree', 'pg_partition_ancestors']))
                or p.proname like 'pg\_stat\_get\_%'
                or p.proname ~ '^(query|cursor|table|schema|database)_to_xml')))
)
select 'unsafe' as severity, format('function %s', name) as subject,
       format('%s has EXECUTE', coalesce(rolname, 'PUBLIC')) as problem,
       format('revoke execute on function %s from %s', name, coalesce(quote_ident(rolname), 'public')) as mend,
       null as advice, false as by_hand
from given where super or rolname is not null
union all
select 'warning', format('%s functions of PostgreSQL', count(*)),
       format('are open to PUBLIC, and the admin may not change that (%s, ...)',
              (array_agg(name order by name ~ 'advisory|terminate|notify|query_to_xml' desc, name))[1]),
       null, 'start once with the DSN of a superuser, who can', true
from given where not super and rolname is null
having count(*) > 0;

-- name: language_rights
-- A trusted language lets its user make functions and run DO.
select case when (select rolsuper from pg_roles where rolname = current_user)
            then 'unsafe' else 'warning' end as severity,
       format('language %I', l.lanname) as subject,
       format('%s has USAGE', coalesce(r.rolname, 'PUBLIC')) as problem,
       format('revoke usage on language %I from %s', l.lanname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_language l
cross join lateral aclexplode(coalesce(l.lanacl, acldefault('l', l.lanowner))) a
left join pg_roles r on r.oid = a.grantee
where l.lanpltrusted
  and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid')
       or r.rolname ~ '^t_[0-9a-f]{20}$');

-- name: default_rights
-- What somebody makes from now on would be given away at once. Of types, PUBLIC has USAGE anyhow.
with default_ as (
    select d.*, format('alter default privileges for role %I%s', pg_get_userbyid(d.defaclrole),
                       coalesce(' in schema ' || quote_ident(n.nspname), '')) as head,
           case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
                when 'T' then 'types' when 'n' then 'schemas' else 'large objects' end as kind
    from pg_default_acl d
    left join pg_namespace n on n.oid = d.defaclnamespace
)
select case when pg_get_userbyid(d.defaclrole) ~ '^(tenancy_(rows|control|hybrid)|t_[0-9a-f]{20})$'
            then 'warning' else 'unsafe' end as severity,
       format('default privileges of %I', pg_get_userbyid(d.defaclrole)) as subject,
       format('give %s on %s to %s', a.privilege_type, d.kind, coalesce(r.rolname, 'PUBLIC')) as problem,
       format('%s revoke %s on %s from %s', d.head, a.privilege_type, d.kind,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from default_ d
cross join lateral aclexplode(d.defaclacl) a
left join pg_roles r on r.oid = a.grantee
where a.grantee <> d.defaclrole
  and not (d.defaclobjtype = 'T' and a.grantee = 0)
  and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid')
       or r.rolname ~ '^t_[0-9a-f]{20}$')
union all
select 'unsafe', 'default privileges of tenancy_owner', 'give EXECUTE on functions to PUBLIC',
       'alter default privileges for role tenancy_owner revoke execute on functions from public'
where not exists (
    select from pg_default_acl
    where defaclrole = 'tenancy_owner'::regrole and defaclobjtype = 'f' and defaclnamespace = 0);

-- name: type_rights
select 'warning' as severity, format('type %s', format_type(t.oid, null)) as subject,
       format('%s has %s', r.rolname, a.privilege_type) as problem,
       format('revoke %s on type %s from %I', a.privilege_type, format_type(t.oid, null), r.rolname) as mend
from pg_type t
cross join lateral aclexplode(t.typacl) a
join pg_roles r on r.oid = a.grantee
where a.grantee <> t.typowner
  and (r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid') or r.rolname ~ '^t_[0-9a-f]{20}$');

-- name: stray_schemas
-- Schemas that are not ours and are open to a login of ours: nothing in them is kept apart.
select 'unsafe' as severity, format('schema %I', n.nspname) as subject,
       format('is none of the runtime''s, and %s has %s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type)
           as problem,
       format('revoke %s on schema %I from %s', a.privilege_type, n.nspname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_namespace n
cross join lateral aclexplode(n.nspacl) a
left join pg_roles r on r.oid = a.grantee
where n.nspname not in ('app', 'tenancy', 'catalog', 'tenancy_reference', 'public', 'information_schema')
  and n.nspname !~ '^(pg_|t_[0-9a-f]{20}$)'
  and a.grantee <> n.nspowner
  and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid')
       or r.rolname ~ '^t_[0-9a-f]{20}$');

-- name: foreign_access
-- Ways out of the database. A user mapping holds a password.
select case when u.umuser = 0 or u.usename ~ '^(tenancy_(rows|control|hybrid)|t_[0-9a-f]{20})$'
            then 'unsafe' else 'warning' end as severity,
       format('user mapping of %s', coalesce(nullif(u.usename, 'public')::text, 'PUBLIC')) as subject,
       format('leads to the foreign server %I', u.srvname) as problem,
       format('drop user mapping for %s server %I',
              case when u.umuser = 0 then 'public' else quote_ident(u.usename) end, u.srvname) as mend
from pg_user_mappings u
union all
select case when open_to.grantee is null then 'warning' else 'unsafe' end,
       format('foreign server %I', s.srvname),
       coalesce('is open to ' || open_to.grantee, 'is in a database of the runtime'),
       coalesce(format('revoke usage on foreign server %I from ', s.srvname) || open_to.grantee,
                format('drop server %I cascade', s.srvname))
from pg_foreign_server s
left join lateral (
    select coalesce(quote_ident(r.rolname), 'public') as grantee
    from aclexplode(s.srvacl) a left join pg_roles r on r.oid = a.grantee
    where a.grantee = 0 or r.rolname ~ '^(tenancy_(rows|control|hybrid)|t_[0-9a-f]{20})$'
) open_to on true
union all
select 'unsafe', format('foreign data wrapper %I', w.fdwname),
       format('is open to %s', coalesce(quote_ident(r.rolname), 'PUBLIC')),
       format('revoke usage on foreign data wrapper %I from %s', w.fdwname,
              coalesce(quote_ident(r.rolname), 'public'))
from pg_foreign_data_wrapper w
cross join lateral aclexplode(w.fdwacl) a
left join pg_roles r on r.oid = a.grantee
where a.grantee = 0 or r.rolname ~ '^(tenancy_(rows|control|hybrid)|t_[0-9a-f]{20})$';

-- name: large_objects
-- They know no row security.
select case when bool_or(l.open) then 'unsafe' else 'warning' end as severity,
       format('%s large object(s)', count(*)) as subject,
       case when bool_or(l.open) then 'are open to tenants' else 'are in a database of the runtime' end
           as problem,
       'select count(pg_catalog.lo_unlink(oid)) from pg_catalog.pg_largeobject_metadata' as mend,
       true as by_hand
from (
    select exists (
        select from aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a
        left join pg_roles r on r.oid = a.grantee
        where a.grantee = 0 or r.rolname ~ '^(tenancy_(rows|control|hybrid)|t_[0-9a-f]{20})$') as open
    from pg_largeobject_metadata m
) l
having count(*) > 0;

-- name: extensions
-- Not one is needed. Those told as unsafe give SQL a way to files, other servers or other rights.
select case when e.extname in (
                'dblink', 'postgres_fdw', 'file_fdw', 'adminpack', 'pageinspect', 'pg_walinspect',
                'pg_visibility', 'pg_buffercache', 'pg_surgery', 'lo', 'plpython3u', 'plperlu', 'plperl',
                'pltcl', 'pltclu', 'refint', 'insert_username', 'autoinc', 'moddatetime', 'sslinfo',
                'amcheck', 'pg_freespacemap', 'pgrowlocks', 'pgstattuple', 'pg_stat_statements', 'xml2')
            then 'unsafe' else 'warning' end as severity,
       format('extension %I', e.extname) as subject,
       'is in a database of the runtime, which needs none' as problem,
       format('drop extension %I', e.extname) as mend, true as by_hand
from pg_extension e
where e.extname <> 'plpgsql';

-- name: event_triggers
-- They run in whosever session it is; one for logins (PostgreSQL 17) in every tenant's.
select case when evtevent = 'login' then 'unsafe' else 'warning' end as severity,
       format('event trigger %I', evtname) as subject,
       format('runs %s on %s', evtfoid::regprocedure, evtevent) as problem,
       format('alter event trigger %I disable', evtname) as mend
from pg_event_trigger where evtenabled <> 'D';

-- name: replication
-- Rows on their way out of, or into, this database, past row security.
select 'warning' as severity, format('publication %I', pubname) as subject,
       'sends rows of tenants elsewhere' as problem, array[format('drop publication %I', pubname)] as mend
from pg_publication
union all
select 'warning', format('subscription %I', subname), 'writes rows past row security',
       array[format('alter subscription %I disable', subname),
             format('alter subscription %I set (slot_name = none)', subname),
             format('drop subscription %I', subname)]
from pg_subscription
where subdbid = (select oid from pg_database where datname = current_database())
union all
select 'warning', format('replication slot %I', slot_name), 'reads every change of this database',
       array[format('select pg_catalog.pg_drop_replication_slot(%L)', slot_name)]
from pg_replication_slots
where database = current_database();

-- name: idle_slots
-- Of the server.
select 'warning' as severity, format('replication slot %I', slot_name) as subject,
       'is not used, and the server keeps its log for it until the disk is full' as problem,
       format('select pg_catalog.pg_drop_replication_slot(%L)', slot_name) as mend
from pg_replication_slots where not active and database is null;

-- name: hidden_rights
-- Functions that run with other rights when somebody else calls them, a trigger among them, and
-- functions that may see rows before row security removes them.
select 'unsafe' as severity, format('function %s', p.oid::regprocedure) as subject,
       'runs with the rights of its owner' as problem,
       format('alter function %s security invoker', p.oid::regprocedure) as mend
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where p.prosecdef and (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
union all
select 'unsafe', format('function %s', p.oid::regprocedure),
       'is LEAKPROOF: it may see rows before row security removes them',
       format('alter function %s not leakproof', p.oid::regprocedure)
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where p.proleakproof and n.nspname not in ('pg_catalog', 'information_schema', 'tenancy', 'catalog')
union all
select 'unsafe', format('function %s', p.oid::regprocedure),
       format('changes %s while it runs', split_part(s.setting, '=', 1)),
       format('alter function %s reset %s', p.oid::regprocedure, split_part(s.setting, '=', 1))
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
cross join lateral unnest(p.proconfig) as s (setting)
where (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and split_part(s.setting, '=', 1) in ('role', 'session_authorization', 'row_security', 'search_path',
      'session_replication_role', 'tenancy.binding');
