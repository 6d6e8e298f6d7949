-- How much data a tenant has. Run as the tenant.

-- name: column_size
-- As it is stored: of a value that stands apart (TOAST) only the pointer is read.
coalesce(pg_catalog.pg_column_size({column}), 0)

-- name: table_size
-- Rows, and bytes of their values, of at most $1 rows. The sum over columns is put in.
select pg_catalog.count(*), coalesce(pg_catalog.sum(%s), 0)::bigint
from (select * from {table} limit $1::bigint) as part;
