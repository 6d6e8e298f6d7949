-- Roles of the cluster and rights on databases. Run by the admin role.

-- name: roles_lock
-- Held by one bootstrap of a server at a time; released with the connection, however it ends.
select pg_catalog.pg_advisory_lock(8387227038471684977);

-- name: roles_unlock
select pg_catalog.pg_advisory_unlock(8387227038471684977);

-- name: facts
select current_setting('server_version_num')::int as version_num,
       current_setting('server_version') as version,
       current_user::text as admin,
       (select rolsuper from pg_roles where rolname = current_user) as superuser,
       (select rolcreaterole from pg_roles where rolname = current_user) as createrole,
       (select rolcreatedb from pg_roles where rolname = current_user) as createdb,
       pg_is_in_recovery() as replica;

-- name: role_exists
select exists (select from pg_roles where rolname = $1);

-- name: create_owner_text
-- The server quotes: the text that this returns is run as it is. INHERIT, since the rights on the
-- schema public come by the built-in role pg_database_owner, and before PostgreSQL 16 only so.
select format(
    'create role %I nologin inherit nosuperuser nocreatedb nocreaterole noreplication nobypassrls',
    $1::text);

-- name: join_group
-- Without SET ROLE: the login has the group's rights and stays itself (PostgreSQL 16).
grant {group} to {role} with inherit true, set false;

-- name: join_group_15
grant {group} to {role};

-- name: create_login_text
-- $2 is a SCRAM verifier (RFC 5803), so no password reaches the server or its log.
select format(
    'create role %I login %s nosuperuser nocreatedb nocreaterole noreplication nobypassrls '
    'connection limit %s password %L',
    $1::text, $4::text, $3::int, $2::text);

-- name: set_password_text
select format('alter role %I password %L', $1::text, $2::text);

-- name: stored_password
-- Readable by superusers only.
select rolpassword from pg_authid where rolname = $1;

-- name: role_comment
select shobj_description(oid, 'pg_authid') from pg_roles where rolname = $1;

-- name: comment_role_text
select format('comment on role %I is %L', $1::text, $2::text);

-- name: may_act_as
-- Whether the admin may work as the role and has its rights.
select pg_has_role(current_user, $1, 'USAGE') and pg_has_role(current_user, $1, $2);

-- name: join_owner_15
-- A role with CREATEROLE may grant any role that is no superuser (PostgreSQL 15).
grant {owner} to current_user;

-- name: join_owner
-- The maker of a role has the ADMIN OPTION on it and may grant itself the rest (PostgreSQL 16).
grant {owner} to current_user with inherit true, set true;

-- name: database
select datname, pg_get_userbyid(datdba) as owner, datallowconn as allows_connections,
       pg_encoding_to_char(encoding) as encoding
from pg_database where datname = $1;

-- name: create_database
-- No connection is allowed until CONNECT is revoked from PUBLIC. template0, so that nothing that
-- somebody put into template1 comes along.
create database {database} owner {owner} template template0 encoding 'UTF8' allow_connections false;

-- name: clone_database
create database {database} owner {owner} template {template} allow_connections false;

-- name: close_database_to_public
-- CONNECT and TEMP are PUBLIC's by default. A temporary table is an object that a tenant owns.
revoke all on database {database} from public;

-- name: allow_connections
alter database {database} with allow_connections true;

-- name: database_rights_lock
-- The rights of all roles on a database are one row of pg_database, and of two who change a row of a
-- catalog at the same time one fails. To the end of the transaction.
select pg_catalog.pg_advisory_xact_lock(8387227038471684982);

-- name: grant_connect
grant connect on database {database} to {role};

-- name: revoke_connect
revoke all on database {database} from {role};

-- name: locale
-- What decides the order of text. Tenants move between servers, and indexes and answers with them.
select concat_ws(' ', datlocprovider, datcollate, datctype) from pg_database where datname = $1;

-- name: databases_of_ours
-- $1 = the database and its template, $2 = the owner role: tenants' databases have opaque names
-- behind a prefix of the user's choice.
select datname::text from pg_database
where datname = any ($1::text[])
   or (datname ~ '^[a-z][a-z0-9_]*[0-9a-f]{20}$' and pg_get_userbyid(datdba) = $2)
order by datname;
