-- The functions in the schemas of the runtime's own.

-- name: functions
select p.oid::bigint as oid, n.nspname || '.' || p.proname as name,
       p.oid::regprocedure::text as signature, pg_get_userbyid(p.proowner)::text as owner,
       l.lanname::text as language, p.provolatile::text as volatility,
       p.proparallel::text as parallel, p.proisstrict as strict, p.proleakproof as leakproof,
       p.prosecdef as security_definer, p.proconfig as settings, p.prosrc as body,
       pg_get_function_sqlbody(p.oid) as sql_body
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
join pg_language l on l.oid = p.prolang
where n.nspname in ('tenancy', 'catalog');
