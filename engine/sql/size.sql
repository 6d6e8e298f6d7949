-- How much data a tenant has. Run as the tenant.

-- name: table_size
-- Rows, and bytes of their values as they are stored, of at most $1 rows.
select pg_catalog.count(*), coalesce(pg_catalog.sum(pg_catalog.pg_column_size(part)), 0)::bigint
from (select * from {table} limit $1::bigint) as part;
