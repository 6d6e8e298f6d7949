-- What is wrong with roles and rights. Every query returns subject, problem and the SQL that mends it,
-- and no row when all is well.

-- name: runtime_roles
-- The fixed logins, and the tenants' logins that have rights here: $1 = the fixed ones, $2 = our
-- databases. Grants are in pg_shdepend, for all databases of the server.
select r.rolname::text
from pg_roles r
where r.rolname = any ($1::text[])
   or (r.rolname ~ '^t_[0-9a-f]{20}$' and exists (
        select from pg_shdepend s
        where s.refclassid = 'pg_authid'::regclass and s.refobjid = r.oid and s.deptype = 'a'
        and (s.dbid in (select oid from pg_database where datname = any ($2::text[]))
             or s.classid = 'pg_database'::regclass
                and s.objid in (select oid from pg_database where datname = any ($2::text[])))))
order by 1;

-- name: attributes
-- $1 = logins, $2 = the owner role.
select format('role %I', rolname) as subject, problem,
       format('alter role %I %s', rolname, mend) as mend
from pg_roles, lateral (values
    (rolsuper, 'is superuser', 'nosuperuser'),
    (rolbypassrls, 'has BYPASSRLS', 'nobypassrls'),
    (rolcreaterole, 'has CREATEROLE', 'nocreaterole'),
    (rolcreatedb, 'has CREATEDB', 'nocreatedb'),
    (rolreplication, 'has REPLICATION', 'noreplication'),
    (rolcanlogin and rolname in ($2, 'tenancy_keeper', 'tenancy_hybrid'), 'may log in', 'nologin')
) as attribute (held, problem, mend)
where held and (rolname = any ($1::text[]) or rolname in ($2, 'tenancy_keeper', 'tenancy_hybrid')
                -- A superuser needs no rights here.
                or rolname ~ '^t_[0-9a-f]{20}$');

-- name: memberships
-- A login is a member of nothing and has no members, but that those of hybrid tenants belong to
-- tenancy_hybrid, which belongs to nothing; the owner and the keeper have admins as members only.
select format('role %I', m.rolname) as subject,
       format('is a member of %I', g.rolname) as problem,
       format('revoke %I from %I', g.rolname, m.rolname) as mend
from pg_auth_members a
join pg_roles m on m.oid = a.member
join pg_roles g on g.oid = a.roleid
where (m.rolname = any ($1::text[]) or m.rolname in ($2, 'tenancy_keeper', 'tenancy_hybrid')
       or m.rolname ~ '^t_[0-9a-f]{20}$')
      and not (g.rolname = 'tenancy_hybrid' and m.rolname ~ '^t_[0-9a-f]{20}$'
               and not a.admin_option
               -- A column of PostgreSQL 16.
               and not coalesce((to_jsonb(a) ->> 'set_option')::boolean, false))
   or ((g.rolname = any ($1::text[]) or g.rolname in ($2, 'tenancy_keeper', 'tenancy_hybrid'))
       and not m.rolsuper and m.rolname <> current_user
       and not (g.rolname = 'tenancy_hybrid' and m.rolname ~ '^t_[0-9a-f]{20}$'));

-- name: ownership
select format('role %I', r.rolname) as subject,
       format('owns %s object(s) in %s', count(*), coalesce('database ' || d.datname, 'the server'))
           as problem,
       format('reassign owned by %I to %I', r.rolname, $2::text) as mend,
       coalesce(d.datname, current_database())::text as database
from pg_shdepend s
join pg_roles r on r.oid = s.refobjid
left join pg_database d on d.oid = s.dbid
where s.refclassid = 'pg_authid'::regclass and s.deptype = 'o' and r.rolname = any ($1::text[])
  -- Default privileges, which a login can give for what it makes: these make nothing.
  and s.classid <> 'pg_default_acl'::regclass
group by r.rolname, d.datname;

-- name: role_settings
-- A login can set things for itself: ALTER ROLE CURRENT_USER SET. The runtime sets only what a login
-- cannot: temp_file_limit. No tenant must be able to keep everybody from starting in that way, hence
-- it is not unsafe: sessions pin what matters when they begin, and the watchdog takes the rest back.
select format('role %I', r.rolname) as subject, 'broken' as severity,
       format('has settings of its own: %s', string_agg(c, ', ' order by c)) as problem,
       string_agg(format('alter role %I %sreset %I', r.rolname,
              coalesce('in database ' || quote_ident(d.datname) || ' ', ''), split_part(c, '=', 1)),
              '; ' order by c) as mend
from pg_db_role_setting s
join pg_roles r on r.oid = s.setrole
left join pg_database d on d.oid = s.setdatabase
cross join unnest(s.setconfig) c
where (r.rolname = any ($1::text[]) or r.rolname = $2)
  and (s.setdatabase <> 0 or c not like 'temp\_file\_limit=%')
group by r.rolname, d.datname;

-- name: database_rights
-- $3 = our databases, $4 = the shared one. TEMP lets a tenant own objects; CREATE is for schemas.
select format('database %I', d.datname) as subject,
       format('%s has %s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type) as problem,
       format('revoke %s on database %I from %s', a.privilege_type, d.datname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_database d
cross join lateral aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
left join pg_roles r on r.oid = a.grantee
where d.datname = any ($3::text[])
  -- One that lets nobody in is being made: PUBLIC's rights go before it is opened (databases.py).
  and ((a.grantee = 0 and d.datallowconn)
       or (r.rolname = any ($1::text[])
           and (a.privilege_type <> 'CONNECT' or a.is_grantable
                or (r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid') and d.datname <> $4))))
union all
select format('database %I', d.datname),
       format('belongs to %I', pg_get_userbyid(d.datdba)),
       format('alter database %I owner to %I', d.datname, $2::text)
from pg_database d
where d.datname = any ($3::text[]) and pg_get_userbyid(d.datdba) <> $2;

-- name: schema_owners
-- Whoever owns a schema can drop what is in it. Own schemas belong to the owner, not to their logins.
select format('schema %I', n.nspname) as subject,
       format('belongs to %I', pg_get_userbyid(n.nspowner)) as problem,
       format('alter schema %I owner to %I', n.nspname, o.owner) as mend
from pg_namespace n
cross join lateral (select case when n.nspname in ('tenancy', 'catalog') then 'tenancy_keeper'
                                else 'tenancy_owner' end as owner) o
where (n.nspname in ('tenancy', 'catalog', 'app', 'tenancy_reference')
       or n.nspname ~ '^t_[0-9a-f]{20}$')
  and pg_get_userbyid(n.nspowner) <> o.owner;

-- name: schema_rights
-- CREATE for anybody but the owner; a schema that is open to somebody it is not for. What belongs to
-- the keeper is closed to tenancy_owner, but for what everybody has.
select format('schema %I', n.nspname) as subject,
       format('%s has %s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type) as problem,
       format('revoke %s on schema %I from %s', a.privilege_type, n.nspname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from pg_namespace n
cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
cross join lateral (select case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end as rolname) r
where a.grantee <> n.nspowner
  and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid', 'tenancy_owner')
       or r.rolname ~ '^t_[0-9a-f]{20}$')
  and (a.privilege_type = 'CREATE'
       or (n.nspname in ('tenancy', 'catalog') and r.rolname = 'tenancy_owner')
       or n.nspname = 'public'
       or (n.nspname = 'catalog' and r.rolname is distinct from 'tenancy_control')
       or (n.nspname = 'app' and (a.grantee = 0 or r.rolname = 'tenancy_control'))
       or (n.nspname = 'tenancy_reference')
       or (n.nspname ~ '^t_[0-9a-f]{20}$'
           and (a.grantee = 0 or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid'))));

-- name: shared_own_schemas
-- An own schema is for one login, which has its name.
select format('schema %I', g.nspname) as subject,
       format('is open to several logins: %s', string_agg(g.rolname, ', ' order by g.rolname)) as problem,
       format('revoke usage on schema %I from %s', g.nspname, coalesce(
           string_agg(quote_ident(g.rolname), ', ') filter (where g.rolname <> g.nspname),
           string_agg(quote_ident(g.rolname), ', '))) as mend
from (
    select n.nspname, pg_get_userbyid(a.grantee) as rolname
    from pg_namespace n
    cross join lateral aclexplode(n.nspacl) a
    where n.nspname ~ '^t_[0-9a-f]{20}$' and a.privilege_type = 'USAGE' and a.grantee <> 0
    -- Kept apart: a join with all roles would be tried for every schema.
    offset 0
) g
where g.rolname ~ '^t_[0-9a-f]{20}$'
group by g.nspname
having count(*) > 1;

-- name: relation_owners
select format('%s %I.%I',
              case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
                   when 'S' then 'sequence' when 'f' then 'foreign table' else 'table' end,
              n.nspname, c.relname) as subject,
       format('belongs to %I', pg_get_userbyid(c.relowner)) as problem,
       format('alter table %I.%I owner to %I', n.nspname, c.relname, o.owner) as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (select case when n.nspname in ('tenancy', 'catalog') then 'tenancy_keeper'
                                else 'tenancy_owner' end as owner) o
where (n.nspname in ('app', 'tenancy', 'catalog') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  and pg_get_userbyid(c.relowner) <> o.owner;

-- name: row_security
-- Not forced in the reference: nobody but the owner has any right there, and its rows are copied.
select format('table %I.%I', n.nspname, c.relname) as subject,
       case when not c.relrowsecurity then 'has no row security'
            else 'does not force row security' end as problem,
       format('alter table %I.%I enable row level security%s', n.nspname, c.relname,
              case when n.nspname <> 'tenancy_reference' then ', force row level security' end) as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and c.relkind in ('r', 'p')
  and not (c.relrowsecurity and (c.relforcerowsecurity or n.nspname = 'tenancy_reference'));

-- name: policies
-- At least one policy, and of those that let rows through (PERMISSIVE ones are or-ed) only ours.
select format('table %I.%I', n.nspname, c.relname) as subject,
       'has no tenant policy' as problem,
       case when exists (select from pg_attribute t
                         where t.attrelid = c.oid and t.attname = 'tenant_id')
            then array[format('create policy tenancy_isolation on %I.%I '
                              'using (tenant_id = (select tenancy.tenant())) '
                              'with check (tenant_id = (select tenancy.tenant()))',
                              n.nspname, c.relname)]
            -- It did not come by a migration, so it is nobody's rows that have to be kept apart.
            else array[format('alter table %I.%I set schema public', n.nspname, c.relname)]
       end as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and c.relkind in ('r', 'p')
  and not exists (select from pg_policy p where p.polrelid = c.oid and p.polpermissive)
union all
select format('table %I.%I', n.nspname, c.relname),
       format('policy %I lets through rows by another rule', p.polname),
       -- Ours is never gone without its successor.
       array_remove(array[
           format('drop policy %I on %I.%I', p.polname, n.nspname, c.relname),
           case when p.polname = 'tenancy_isolation' and exists (
                    select from pg_attribute t where t.attrelid = c.oid and t.attname = 'tenant_id')
                then format('create policy tenancy_isolation on %I.%I '
                            'using (tenant_id = (select tenancy.tenant())) '
                            'with check (tenant_id = (select tenancy.tenant()))',
                            n.nspname, c.relname) end], null)
from pg_policy p
join pg_class c on c.oid = p.polrelid
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (
    select pg_get_expr(p.polqual, p.polrelid) as visible, pg_get_expr(p.polwithcheck, p.polrelid) as allowed
    offset 0
) e
where (n.nspname in ('app', 'tenancy_reference') or n.nspname ~ '^t_[0-9a-f]{20}$')
  and p.polpermissive
  -- What only the owner may see is the runtime's own bookkeeping.
  and p.polroles <> array[c.relowner]
  and (p.polcmd <> '*' or p.polroles <> '{0}'
       or e.visible is distinct from '(tenant_id = ( SELECT tenancy.tenant() AS tenant))'
       or coalesce(e.allowed, e.visible) is distinct from '(tenant_id = ( SELECT tenancy.tenant() AS tenant))');

-- name: table_rights
-- SELECT, INSERT, UPDATE, DELETE, to logins. TRUNCATE knows no row security, TRIGGER runs code in
-- another's session, REFERENCES tells of rows, MAINTAIN locks.
select format('table %I.%I', n.nspname, c.relname) as subject,
       format('%s has %s%s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type,
              case when a.is_grantable then ' with grant option' else '' end) as problem,
       format('revoke %s on %I.%I from %s', a.privilege_type, n.nspname, c.relname,
              coalesce(quote_ident(r.rolname), 'public')) as mend
from (
    select g.oid, x.grantee, x.privilege_type, x.is_grantable
    from pg_class g cross join lateral aclexplode(g.relacl) x
    union all
    select t.attrelid, x.grantee, x.privilege_type, x.is_grantable
    from pg_attribute t cross join lateral aclexplode(t.attacl) x where t.attacl is not null
) a
join pg_class c on c.oid = a.oid
join pg_namespace n on n.oid = c.relnamespace
cross join lateral (select case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end as rolname) r
where c.relkind in ('r', 'p', 'v', 'm', 'f')
  and a.grantee <> c.relowner
  -- Of the two conditions the one that few rows meet comes first.
  and (((a.grantee = 0 or a.is_grantable
         or a.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
         or r.rolname = 'tenancy_control')
        and (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$'))
       or (n.nspname = 'tenancy'
           and (a.grantee = 0
                or r.rolname in ('tenancy_rows', 'tenancy_control', 'tenancy_hybrid', 'tenancy_owner')
                or r.rolname ~ '^t_[0-9a-f]{20}$'))
       or (n.nspname = 'catalog' and (a.grantee = 0 or a.is_grantable
           or a.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
           or r.rolname in ('tenancy_rows', 'tenancy_hybrid', 'tenancy_owner')
           or r.rolname ~ '^t_[0-9a-f]{20}$')));

-- name: exempt_relations
-- Row security cannot hold for these, or is checked as their owner.
select format('%s %I.%I',
              case c.relkind when 'v' then 'view' when 'm' then 'materialized view'
                   else 'foreign table' end, n.nspname, c.relname) as subject,
       case c.relkind when 'v' then 'is checked with its owner''s rights'
            else 'cannot have row security' end as problem,
       case c.relkind
            when 'v' then format('alter view %I.%I set (security_invoker = true)',
                                 n.nspname, c.relname)
            when 'm' then format('drop materialized view %I.%I', n.nspname, c.relname)
            else format('drop foreign table %I.%I', n.nspname, c.relname) end as mend
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where (n.nspname = 'app' or n.nspname ~ '^t_[0-9a-f]{20}$')
  and (c.relkind in ('m', 'f')
       or (c.relkind = 'v' and not lower(coalesce(c.reloptions, '{}')::text)::text[] && array[
            'security_invoker=true', 'security_invoker=on', 'security_invoker=yes', 'security_invoker=1']));

-- name: definer_functions
-- A function that runs with its owner's rights is a way around row security; one is ours.
select format('function %s', p.oid::regprocedure) as subject,
       'runs with the rights of its owner' as problem,
       format('alter function %s security invoker', p.oid::regprocedure) as mend
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where p.prosecdef
  and n.nspname not in ('pg_catalog', 'information_schema')
  and p.oid <> 'tenancy.tenant()'::regprocedure
  and exists (
      select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      where a.grantee <> p.proowner and a.privilege_type = 'EXECUTE'
        -- What notes changes for a move: the owner of the tables makes triggers of it, and it can be
        -- called by triggers alone.
        and not (a.grantee = 'tenancy_owner'::regrole and p.prorettype = 'trigger'::regtype
                 and pg_get_userbyid(p.proowner) = 'tenancy_keeper' and n.nspname ~ '^m_[0-9a-f]{20}$'));
