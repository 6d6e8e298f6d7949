-- The databases of single tenants, and the versions that they are at. In the catalog.

-- name: behind
-- Those that are not known to be at version $1, of tenants after number $2.
select p.tenant_no, p.server, p.database
from catalog.placement p
join catalog.tenant t using (tenant_no)
left join catalog.database d using (tenant_no, server, database)
where p.level = 'database' and t.status in ('active', 'suspended')
  and coalesce(d.version, 0) < $1 and p.tenant_no > $2
order by p.tenant_no
limit $3;

-- name: version
-- Null when nothing is known.
select version from catalog.database where (tenant_no, server, database) = ($1, $2, $3);

-- name: record
-- A tenant that has been deleted meanwhile has no row to refer to.
insert into catalog.database as d (tenant_no, server, database, version)
select tenant_no, $2, $3, $4 from catalog.tenant where tenant_no = $1
on conflict (tenant_no, server, database) do update
set version = excluded.version, changed_at = now()
where d.version <> excluded.version;
