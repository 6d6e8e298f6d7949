"""A fleet on an installation of its own, with tenants at every level, for tests of the schema."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg

from support.install import SERVER, Install
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    SchemaName,
    TenantNo,
    opaque_name,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Placement,
    TenantContext,
    TenantStatus,
)
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceKind
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect
from tenancy.data_isolation.engine.fleet import Fleet
from tenancy.data_isolation.engine.layout import (
    APP_SCHEMA,
    ROWS_ROLE,
    template_database,
)
from tenancy.data_isolation.engine.login_roles import ensure_login_role
from tenancy.data_isolation.engine.migration import Migration
from tenancy.data_isolation.engine.namespace import Namespace


def migrations(*texts: str) -> list[Migration]:
    """Migrations 1, 2, ... with these texts."""
    return [
        Migration(number=number, name=f"step-{number}", sql=sql)
        for number, sql in enumerate(texts, 1)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedTenant:
    """A tenant, with the login that works for it."""

    tenant_no: TenantNo
    namespace: Namespace
    role: RoleName


@dataclass(slots=True)
class Stage:
    """A fleet and its surroundings. Everything it makes is gone with it."""

    install: Install
    settings: Settings
    admin: AdminConnections
    catalog: Catalog
    keys: BindingKeys
    fleet: Fleet
    #: The superuser's connection to the shared database.
    root: asyncpg.Connection
    _roles: list[str] = field(default_factory=list)
    _databases: list[str] = field(default_factory=list)

    async def migrate(self, *texts: str) -> None:
        """Register texts as migrations 1, 2, ... and bring them everywhere, successfully."""
        await self.fleet.register(migrations(*texts))
        report = await self.fleet.apply()
        assert report.complete, report.failures

    async def tenant(
        self,
        name: str,
        level: IsolationLevel = IsolationLevel.ROW,
        *,
        status: TenantStatus = TenantStatus.ACTIVE,
    ) -> StagedTenant:
        """A new tenant with its namespace, its first rows and an open fence."""
        tenant = await self.catalog.add_tenant(TenantContext(tenant_id=name))
        number = tenant.tenant_no
        namespace, role = await self._place(number, level)
        placement = Placement(
            level=level,
            server=SERVER,
            database=namespace.database,
            schema=namespace.schema,
            role=role,
            epoch=Epoch(1),
        )
        await self.catalog.set_placement(number, placement, expected_epoch=None)
        async with self.admin.session(SERVER, namespace.database) as connection:
            await connection.execute("insert into tenancy.fence values ($1, 1, true)", number)
            if level is not IsolationLevel.ROW:
                await self.fleet.create_namespace(connection, namespace)
            await self.fleet.seed_tenant(connection, namespace, number, Epoch(1))
        if status is not TenantStatus.CREATING:
            await self.catalog.set_status(
                number, TenantStatus.ACTIVE, expected=TenantStatus.CREATING
            )
        return StagedTenant(tenant_no=number, namespace=namespace, role=role)

    async def rows(self, tenant: StagedTenant, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement gives when the tenant's own login runs it, bound to the tenant."""
        namespace = tenant.namespace
        connection = await asyncpg.connect(
            self.install.role_dsn(tenant.role, namespace.database),
            server_settings={"search_path": namespace.schema},
        )
        try:
            binding = self.install.binding(
                tenant.tenant_no, 1, connection.get_server_pid(), database=namespace.database
            )
            await connection.execute("select set_config('tenancy.binding', $1, false)", binding)
            return [tuple(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    async def dump(self, database: str | None = None) -> list[tuple[str, ...]]:
        """Everything in the catalogs of a database that a migration could change."""
        if database is None:
            return await self._dump(self.root)
        async with self.admin.session(SERVER, DatabaseName(database)) as connection:
            return await self._dump(connection)

    async def _dump(self, connection: asyncpg.Connection) -> list[tuple[str, ...]]:
        rows = await connection.fetch(_DUMP)
        return [tuple(str(value) for value in row) for row in rows]

    async def _place(self, number: TenantNo, level: IsolationLevel) -> tuple[Namespace, RoleName]:
        shared = Namespace(
            server=SERVER,
            database=self.install.database,
            schema=APP_SCHEMA,
            kind=NamespaceKind.SHARED,
        )
        if level is IsolationLevel.ROW:
            return shared, ROWS_ROLE
        role = RoleName(opaque_name())
        own = replace(shared, kind=NamespaceKind.OWN, tenant_no=number, role=role)
        async with self.admin.session(SERVER) as server:
            return await self._place_own(server, own, role, level), role

    async def _place_own(
        self,
        server: asyncpg.Connection,
        own: Namespace,
        role: RoleName,
        level: IsolationLevel,
    ) -> Namespace:
        await ensure_login_role(
            server, master_key=self.install.master_key, server=SERVER, role=role
        )
        self._roles.append(role)
        if level is IsolationLevel.SCHEMA:
            await grant_connect(server, own.database, role)
            return replace(own, schema=SchemaName(opaque_name()))
        database = DatabaseName(opaque_name())
        async with self.fleet.template_idle():
            await ensure_database(server, database, template=template_database(self.settings))
        self._databases.append(database)
        await grant_connect(server, database, role)
        async with self.admin.session(SERVER, database) as connection:
            await self.keys.install(connection, self.catalog, server=SERVER, database=database)
        return replace(own, database=database)

    async def remove(self) -> None:
        """Drop what belongs to the whole server."""
        for database in self._databases:
            await self.root.execute(f'drop database if exists "{database}" with (force)')
        for role in self._roles:
            await self.root.execute(f'drop owned by "{role}"; drop role "{role}"')


@asynccontextmanager
async def open_stage(install: Install, **changes: Any) -> AsyncIterator[Stage]:
    """A stage on `install`, with some settings changed; its fleet is prepared."""
    settings = replace(install.settings, **changes)
    admin = AdminConnections(settings=settings, servers=(install.server_config,))
    catalog = await Catalog.open(
        settings=settings, master_key=install.master_key, server=install.server_config
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(catalog.close)
        root = await asyncpg.connect(install.admin_dsn())
        stack.push_async_callback(root.close)
        keys = BindingKeys(install.master_key)
        fleet = Fleet(settings=settings, catalog=catalog, admin=admin, keys=keys)
        stage = Stage(install, settings, admin, catalog, keys, fleet, root)
        stack.push_async_callback(stage.remove)
        await fleet.prepare()
        yield stage


def failures(report: Any) -> Sequence[str]:
    """The errors of a report."""
    return [outcome.error for outcome in report.failures]


_DUMP = """
select 'relation', n.nspname, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity,
       c.relacl, c.reloptions, pg_get_userbyid(c.relowner)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
union all
select 'column', n.nspname, c.relname, null, null, null, null, null,
       concat_ws(' ', a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                 a.attidentity, a.attgenerated, a.attacl, pg_get_expr(d.adbin, d.adrelid))
from pg_attribute a join pg_class c on c.oid = a.attrelid
join pg_namespace n on n.oid = c.relnamespace
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
union all
select 'constraint', n.nspname, con.conname, null, null, null, null, null,
       pg_get_constraintdef(con.oid)
from pg_constraint con join pg_namespace n on n.oid = con.connamespace
where n.nspname not in ('pg_catalog', 'information_schema')
union all
select 'index', n.nspname, c.relname, null, null, null, null, null, pg_get_indexdef(c.oid)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'i' and n.nspname not in ('pg_catalog', 'pg_toast')
union all
select 'policy', n.nspname, c.relname, null, null, null, null, null,
       concat_ws(' ', p.polname, p.polcmd, p.polroles, pg_get_expr(p.polqual, p.polrelid),
                 pg_get_expr(p.polwithcheck, p.polrelid))
from pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace
union all
select 'routine', n.nspname, p.proname, null, null, null, p.proacl, null, pg_get_functiondef(p.oid)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname not in ('pg_catalog', 'information_schema') and p.prokind = 'f'
union all
select 'type', n.nspname, t.typname, null, null, null, t.typacl, null,
       (select string_agg(e.enumlabel, ',' order by e.enumsortorder) from pg_enum e
        where e.enumtypid = t.oid)
from pg_type t join pg_namespace n on n.oid = t.typnamespace
where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
union all
select 'trigger', n.nspname, c.relname, null, null, null, null, null, pg_get_triggerdef(t.oid)
from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
where not t.tgisinternal
union all
select 'view', schemaname, viewname, null, null, null, null, null, definition
from pg_views where schemaname not in ('pg_catalog', 'information_schema')
union all
select 'schema', nspname, null, null, null, null, nspacl, null, null from pg_namespace
order by 1, 2, 3, 9
"""
