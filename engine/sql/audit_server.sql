-- How a server is set up: what the rules of server_audit.py look at.

-- name: settings
-- $1 = names. Of the session: what a DSN or a role sets shows here as well.
select name, setting, source, context, sourcefile, sourceline from pg_settings where name = any ($1::text[]);

-- name: session
-- How this very session reaches the server. Without an address it is a socket of the machine.
select coalesce(s.ssl, false) as encrypted, s.version as protocol,
       host(inet_client_addr()) as client_address
from (select pg_backend_pid() as pid) self
left join pg_stat_ssl s using (pid);

-- name: access_rules
-- pg_hba.conf as it is on the disk. `file_name` is a column of PostgreSQL 16.
select coalesce(to_jsonb(h) ->> 'file_name', current_setting('hba_file')) as file, line_number as line,
       type, database::text[] as databases, user_name::text[] as users, address, netmask,
       auth_method as method, error, current_setting('ssl') as ssl
from pg_hba_file_rules h
order by 1, 2;

-- name: connection_room
select current_setting('max_connections')::int as most,
       current_setting('superuser_reserved_connections')::int
       + coalesce(current_setting('reserved_connections', true), '0')::int as kept;
