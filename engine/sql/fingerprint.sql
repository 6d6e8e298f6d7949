-- What an installation looks like, object by object: kind, name, the schema it is in, and a text that
-- changes when somebody changes what counts for the boundary. Compared with the last time (drift.py).

-- name: server_traits
-- $1 = our databases, $2 = our logins. Logins of tenants of other installations are left out; those of
-- ours come and go in the access lists of databases.
with role_ as (
    select * from pg_roles
    where rolname !~ '^pg_' and (rolname !~ '^t_[0-9a-f]{20}$' or rolname = any ($2::text[]))
)
select 'role' as kind, rolname::text as name, '' as space, concat_ws(' ',
    case when rolsuper then 'superuser' end, case when rolbypassrls then 'bypassrls' end,
    case when rolcreaterole then 'createrole' end, case when rolcreatedb then 'createdb' end,
    case when rolreplication then 'replication' end, case when rolcanlogin then 'login' end,
    case when rolinherit then 'inherit' end,
    -- The watchdog limits the shared login while it runs, and no longer.
    case when rolname <> 'tenancy_rows' then concat('connections ', rolconnlimit) end,
    rolvaliduntil, rolconfig) as value
from role_
union all
select 'membership', format('%s in %s', m.rolname, g.rolname), '', concat_ws(' ',
    'admin', a.admin_option, to_jsonb(a) ->> 'set_option', to_jsonb(a) ->> 'inherit_option')
from pg_auth_members a
join role_ m on m.oid = a.member
join pg_roles g on g.oid = a.roleid
group by 2, 4
union all
select 'database', datname::text, '', concat_ws(' ',
    pg_get_userbyid(datdba), datallowconn, datconnlimit,
    (select string_agg(acl::text, ',' order by acl::text) from unnest(datacl) acl
     where acl::text !~ '^t_[0-9a-f]{20}='))
from pg_database where datname = any ($1::text[])
union all
select 'settings', concat_ws(' ', 'of ' || r.rolname, 'in', coalesce(d.datname, 'all databases')), '', s.setconfig::text
from pg_db_role_setting s
left join pg_database d on d.oid = s.setdatabase
left join pg_roles r on r.oid = s.setrole
where s.setdatabase = 0 or d.datname = any ($1::text[])
union all
select 'setting', name, '', setting
from pg_settings
where source not in ('default', 'session', 'client', 'override', 'environment variable', 'database', 'user')
  -- What is another one at each start of an embedded server, or follows the machine.
  and name not in ('port', 'unix_socket_directories', 'config_file', 'hba_file', 'ident_file',
                   'data_directory', 'external_pid_file', 'log_timezone', 'TimeZone')
union all
select 'parameter', parname, '', paracl::text from pg_parameter_acl
union all
select 'release', 'PostgreSQL', '', current_setting('server_version');

-- name: access_traits
select 'access rule' as kind,
       concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address, netmask,
                 auth_method, array_to_string(options, ',')) as name,
       '' as space, count(*)::text as value
from pg_hba_file_rules where error is null
group by 2;

-- name: database_traits
with space as (
    select oid, nspname, nspowner, nspacl from pg_namespace
    where nspname !~ '^pg_' and nspname <> 'information_schema'
)
select 'schema' as kind, nspname::text as name, nspname::text as space,
       concat_ws(' ', pg_get_userbyid(nspowner), nspacl) as value
from space
union all
select case c.relkind when 'r' then 'table' when 'p' then 'table' when 'v' then 'view' when 'S' then 'sequence'
            else 'relation' end,
       format('%s.%s', n.nspname, c.relname), n.nspname,
       concat_ws(' ', c.relkind, pg_get_userbyid(c.relowner),
                 case when c.relrowsecurity then 'row security' end,
                 case when c.relforcerowsecurity then 'forced' end, c.reloptions, c.relacl)
from pg_class c join space n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
union all
select 'column', format('%s.%s.%s', n.nspname, c.relname, a.attname), n.nspname, a.attacl::text
from pg_attribute a
join pg_class c on c.oid = a.attrelid
join space n on n.oid = c.relnamespace
where a.attacl is not null
union all
select 'policy', format('%s on %s.%s', p.polname, n.nspname, c.relname), n.nspname,
       concat_ws(' ', p.polcmd, p.polpermissive,
                 array(select coalesce(r.rolname, 'public') from unnest(p.polroles) as given
                       left join pg_roles r on r.oid = given order by 1)::text,
                 pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
from pg_policy p
join pg_class c on c.oid = p.polrelid
join space n on n.oid = c.relnamespace
union all
select 'function', format('%s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
       n.nspname,
       concat_ws(' ', pg_get_userbyid(p.proowner), p.prokind, p.provolatile, p.proparallel,
                 case when p.prosecdef then 'security definer' end,
                 case when p.proleakproof then 'leakproof' end, p.proconfig,
                 md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)), p.proacl)
from pg_proc p join space n on n.oid = p.pronamespace
union all
select 'trigger', format('%s on %s.%s', t.tgname, n.nspname, c.relname), n.nspname,
       concat_ws(' ', t.tgenabled, pg_get_triggerdef(t.oid))
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join space n on n.oid = c.relnamespace
where not t.tgisinternal
union all
select 'default privileges', format('of %s on %s%s', pg_get_userbyid(d.defaclrole), d.defaclobjtype,
                                    coalesce(' in ' || n.nspname, '')),
       coalesce(n.nspname, ''), d.defaclacl::text
from pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace
union all
select 'extension', extname, '', extversion from pg_extension
union all
select 'event trigger', evtname, '', concat_ws(' ', evtevent, evtenabled, evtfoid::regprocedure) from pg_event_trigger
union all
select 'publication', pubname, '', concat_ws(' ', puballtables, pubinsert, pubupdate, pubdelete) from pg_publication
union all
select 'language', lanname, '', concat_ws(' ', lanpltrusted, lanacl) from pg_language
union all
select 'foreign server', srvname, '', concat_ws(' ', srvoptions, srvacl) from pg_foreign_server
union all
-- Of PostgreSQL's own functions as a whole: a database has some thousand of them.
select 'rights', 'on functions of PostgreSQL', '',
       md5(string_agg(concat(p.oid::regprocedure, p.proacl), ' ' order by p.oid))
from pg_proc p where p.pronamespace = 'pg_catalog'::regnamespace and p.proacl is not null;
