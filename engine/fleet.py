"""The fleet: every namespace of every server, and how all of them get the same tables.

Rules this module keeps:

* A migration is registered once the control server's reference has taken it (`register`), and then
  brought to all other namespaces (`apply`): references and templates first, because new tenants are
  made from them, then shared and own namespaces, `Settings.migration_concurrency` at a time.
* Each namespace moves by itself, one transaction per migration. One that fails stays at its version
  and is reported; the others go on until `Settings.migration_failures_max` have failed. Running
  again takes up what is left: what is current is skipped, and the truth is read from the namespace.
* A namespace that is made meanwhile is made at the newest version.
* One run at a time; the lock goes with the connection of the process that holds it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg

from tenancy.data_isolation.core.errors import MigrationConflictError
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import TenantStatus
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import (
    NamespaceKind,
    NamespaceRecord,
    NamespaceState,
)
from tenancy.data_isolation.engine.fleet_run import (
    FleetProgress,
    FleetReport,
    FleetRun,
    NamespaceStatus,
    translated,
)
from tenancy.data_isolation.engine.layout import shared_database, template_database
from tenancy.data_isolation.engine.migration import Migration, in_order, parse_migration
from tenancy.data_isolation.engine.namespace import Namespace, fixed_namespaces
from tenancy.data_isolation.engine.namespace_schema import NamespaceSchema, Tenants
from tenancy.data_isolation.engine.schema_registry import SchemaRegistry
from tenancy.data_isolation.engine.schema_script import RegisteredMigration
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.seeding import seed, seed_many
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_databases import TenantDatabase, TenantDatabases
from tenancy.data_isolation.engine.tenant_rows import PlacedTenant

_SQL = SqlFile("fleet.sql")


class Fleet:
    """Registers migrations, brings them everywhere, and makes namespaces.

    Durability: what a method has returned from is committed. A process that is killed leaves every
    namespace at one version or the next, and `apply` takes it up. Concurrency: safe from any task
    of one event loop and from any number of processes.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._keys = keys
        self._registry = SchemaRegistry(settings=settings, admin=admin)
        self._databases = TenantDatabases(settings=settings, catalog=catalog, admin=admin)
        #: What the reference of a database looks like at a version.
        self._references: dict[tuple[ServerName, DatabaseName], tuple[int, SchemaSnapshot]] = {}

    async def prepare(self) -> None:
        """Make the fixed namespaces of every server, at the newest version; note them.

        Run it after the bootstrap and before anything else. Repeated, it changes nothing.
        """
        with translated(changing=True):
            async with self._registry.session() as control, self._registry.registering(control):
                registered = await self._registry.migrations(control)
                for config in self._admin.servers:
                    server = ServerName(config.name)
                    for database in (
                        shared_database(self._settings),
                        template_database(self._settings),
                    ):
                        await self._prepare(server, database, registered)

    async def register(self, migrations: Iterable[Migration]) -> tuple[Migration, ...]:
        """Try migrations on the reference and register them; those that were not yet registered.

        Registered ones are skipped. Raises `MigrationConflictError` when a number has another text
        or comes too late, `SchemaRefusedError` and `MigrationFailedError` for the first one that
        cannot be used; the ones before it are registered then.
        """
        wanted = in_order(migrations)
        added = []
        with translated(changing=True):
            async with self._registry.session() as control, self._registry.registering(control):
                known = await self._registry.migrations(control)
                fresh = _unregistered(wanted, known)
                if fresh:
                    await self._registry.check_no_moves(control)
                # All are read before one is tried. What is registered was allowed in its time.
                for migration in fresh:
                    parse_migration(migration)
                for migration in fresh:
                    reference = self._schema(control, self._control_reference())
                    await reference.work_out(migration, self._registry.adding(control, migration))
                    added.append(migration)
                    await self._note(self._control_reference(), migration.number)
        return tuple(added)

    async def migrations(self) -> tuple[Migration, ...]:
        """The registered migrations, in order."""
        with translated(changing=False):
            async with self._registry.session() as control:
                known = await self._registry.migrations(control)
        return tuple(item.migration for item in known)

    async def apply(
        self, *, progress: Callable[[FleetProgress], None] | None = None
    ) -> FleetReport:
        """Bring every namespace to the newest version.

        `progress` is called after each namespace, in this task's thread. Raises `ConflictError`
        when another run is under way. What fails in a namespace is in the report, not raised.
        """
        with translated(changing=True):
            async with self._registry.session() as control, self._registry.running(control):
                registered = await self._registry.migrations(control)
                newest = registered[-1].migration.number if registered else 0
                behind = await self._records(behind=newest)
                run = FleetRun(
                    settings=self._settings,
                    catalog=self._catalog,
                    admin=self._admin,
                    registered=registered,
                    ready=self._ready,
                    schema_of=self._schema,
                    tenants_of=self._tenants,
                    total=len(behind),
                    progress=progress or (lambda _: None),
                )
                if behind:
                    async with self._registry.caches_off(control):
                        await self._bring(control, run, behind)
                return run.report()

    async def _bring(
        self, control: asyncpg.Connection, run: FleetRun, behind: Sequence[NamespaceRecord]
    ) -> None:
        """Bring namespaces to the newest version, those first that others are made from."""
        firsts = sorted(
            (record for record in behind if _comes_first(record)),
            key=lambda record: record.kind is not NamespaceKind.REFERENCE,
        )
        async with self._registry.template_busy(control):
            await run.bring(firsts, at_once=1)
        if not run.failed:
            rest = [record for record in behind if not _comes_first(record)]
            await run.bring(rest, at_once=self._settings.migration_concurrency)

    async def status(self) -> list[NamespaceStatus]:
        """Where every namespace stands, as the catalog has it."""
        newest = await self._catalog.newest_migration()
        return [
            NamespaceStatus(
                namespace=Namespace.of_record(record),
                version=record.version,
                newest=newest,
                state=record.state,
                error=record.error,
            )
            for record in await self._records()
        ]

    async def create_namespace(self, connection: asyncpg.Connection, namespace: Namespace) -> None:
        """Make a namespace with all tables at the newest version, without rows, and note it.

        `connection` is the admin's, to the namespace's database; nobody else uses it meanwhile.
        A namespace of kind OWN needs `tenant_no` and `role`; the role gets its rights, and nobody
        else keeps any. Repeated, it brings the namespace to the newest version and mends the
        rights. Raises `SchemaError` when the tables are not those of the reference.
        """
        with translated(changing=True):
            await self._ready(connection, namespace)
            async with (
                self._controlling(connection, namespace) as control,
                self._registry.making(control),
            ):
                registered = await self._registry.migrations(control)
                await self._refresh_clone(connection, namespace, registered)
                like = await self._reference(connection, namespace, _newest(registered))
                await self._bring_up(connection, namespace, registered, like=like)
                await self._note(namespace, _newest(registered))

    async def add_overlay(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        tenant_no: TenantNo,
        schema: SchemaName,
        role: RoleName,
    ) -> None:
        """Make a schema of a hybrid tenant's own for its sensitive tables, in front of `namespace`.

        `connection` is the admin's, to the namespace's database; the tenant's fence there must be
        open. Repeated, it mends the rights. Raises `SchemaError` when the tables would not be like
        the shared ones.
        """
        with translated(changing=True):
            await self._schema(connection, namespace).add_overlay(tenant_no, schema, role)

    async def remove_overlay(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        tenant_no: TenantNo,
        schema: SchemaName,
    ) -> None:
        """Drop a hybrid tenant's own schema and all rows in it. Repeated, it changes nothing."""
        with translated(changing=True):
            await self._schema(connection, namespace).remove_overlay(tenant_no, schema)

    async def seed_tenant(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        tenant_no: TenantNo,
        epoch: Epoch,
        *,
        overlay: SchemaName | None = None,
    ) -> bool:
        """Open a new tenant's fence at `epoch` and give it the rows of the reference, once.

        Whether there were any to give. Those of sensitive tables go to the tenant's `overlay`,
        where it has one. `connection` is the admin's, to the namespace's database. Call it for
        every new tenant at every level, before it becomes active: it also notes that the tenant has
        its first rows, so that migrations change them from then on.
        """
        with translated(changing=True):
            return await seed(
                connection,
                namespace,
                tenant_no,
                epoch,
                settings=self._settings,
                keys=self._keys,
                overlay=overlay,
            )

    async def seed_tenants(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        epochs: Mapping[TenantNo, Epoch],
    ) -> bool:
        """As `seed_tenant`, for tenants without overlays in one transaction; False = only singly.

        In that case nothing was done.
        """
        with translated(changing=True):
            return await seed_many(
                connection, namespace, epochs, settings=self._settings, keys=self._keys
            )

    @asynccontextmanager
    async def template_idle(self) -> AsyncIterator[None]:
        """Keep migrations out of template databases: they can be cloned within this block."""
        async with self._registry.session() as control, self._registry.template_idle(control):
            yield

    # Parts

    async def _ready(self, connection: asyncpg.Connection, namespace: Namespace) -> None:
        """Bring a single tenant's database to this release before anything is done in it."""
        if namespace.tenant_no is None or namespace.database == shared_database(self._settings):
            return
        place = TenantDatabase(
            tenant_no=namespace.tenant_no, server=namespace.server, database=namespace.database
        )
        await self._databases.ensure_connected(connection, place)

    def _schema(self, connection: asyncpg.Connection, namespace: Namespace) -> NamespaceSchema:
        return NamespaceSchema(connection, namespace, settings=self._settings, keys=self._keys)

    def _control_reference(self) -> Namespace:
        return next(fixed_namespaces(self._settings, self._registry.control_server))

    @asynccontextmanager
    async def _controlling(
        self, connection: asyncpg.Connection, namespace: Namespace
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection to the control server's database: the given one where it is one."""
        here = (namespace.server, namespace.database)
        if here == (self._registry.control_server, shared_database(self._settings)):
            yield connection
        else:
            async with self._registry.session() as control:
                yield control

    async def _prepare(
        self,
        server: ServerName,
        database: DatabaseName,
        registered: Sequence[RegisteredMigration],
    ) -> None:
        """Make the fixed namespaces of one database."""
        async with self._admin.session(server, database) as connection:
            for namespace in fixed_namespaces(self._settings, server):
                if namespace.database != database:
                    continue
                schema = self._schema(connection, namespace)
                if await schema.version() is None:
                    # A reference's rows come from the statements.
                    rows = namespace.kind is NamespaceKind.REFERENCE
                    await schema.make(() if rows else registered)
                    if rows:
                        await self._bring_up(connection, namespace, registered)
                known = await self._catalog.namespace(server, database, namespace.schema)
                if known is None:
                    await self._note(namespace, await schema.version() or 0)
                elif namespace.kind is NamespaceKind.SHARED and await schema.lacks_rights():
                    # An older release has made it, without rights for hybrid tenants.
                    await schema.protect()

    async def _bring_up(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        registered: Sequence[RegisteredMigration],
        *,
        like: SchemaSnapshot | None = None,
    ) -> None:
        """Make a namespace, or apply what it lacks and mend its rights."""
        schema = self._schema(connection, namespace)
        if await schema.make(registered, like=like):
            return
        version = await schema.version() or 0
        for item in registered:
            if item.migration.number > version:
                await schema.upgrade(item, self._tenants(namespace))
        await schema.protect(like=like)

    async def _refresh_clone(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        registered: Sequence[RegisteredMigration],
    ) -> None:
        """Bring the reference that a tenant's database was cloned with to the newest version."""
        if namespace.database != shared_database(self._settings):
            await self._bring_up(connection, namespace.reference(), registered)

    async def _reference(
        self, connection: asyncpg.Connection, namespace: Namespace, newest: int
    ) -> SchemaSnapshot | None:
        """What the reference in the same database looks like.

        None while a run has not brought it to the newest version yet.
        """
        place = (namespace.server, namespace.database)
        version, known = self._references.get(place, (-1, None))
        if known is not None and version == newest:
            return known
        schema = self._schema(connection, namespace.reference())
        if await schema.version() != newest:
            return None
        found = await schema.snapshot()
        if namespace.database == shared_database(self._settings):
            # Only one per server: the databases of single tenants come and go.
            self._references[place] = (newest, found)
        return found

    async def _note(self, namespace: Namespace, version: int) -> None:
        await self._catalog.record_namespace(
            NamespaceRecord(
                server=namespace.server,
                database=namespace.database,
                schema=namespace.schema,
                kind=namespace.kind,
                tenant_no=namespace.tenant_no,
                version=version,
                state=NamespaceState.CURRENT,
            )
        )

    async def _records(self, *, behind: int | None = None) -> list[NamespaceRecord]:
        found: list[NamespaceRecord] = []
        page = self._settings.catalog_page_rows_max
        while True:
            after = found[-1] if found else None
            records = await self._catalog.namespaces(after=after, limit=page, behind=behind)
            found += records
            if len(records) < page:
                return found

    def _tenants(self, namespace: Namespace) -> Tenants:
        """Who has rows in a namespace, asked when they are needed."""

        async def placed() -> Sequence[PlacedTenant]:
            match namespace.kind:
                case NamespaceKind.SHARED:
                    return await self._row_tenants(namespace)
                case NamespaceKind.OWN if namespace.tenant_no is not None:
                    tenant = await self._catalog.tenant_by_number(namespace.tenant_no)
                    return [PlacedTenant(tenant_no=tenant.tenant_no, status=tenant.status)]
                case _:
                    return ()

        return placed

    async def _row_tenants(self, namespace: Namespace) -> list[PlacedTenant]:
        found: list[PlacedTenant] = []
        page = self._settings.catalog_page_rows_max
        while True:
            last = found[-1].tenant_no if found else 0
            rows = await self._catalog.pool.rows(
                _SQL.statement("placed_rows"), namespace.server, namespace.database, last, page
            )
            found += [
                PlacedTenant(
                    tenant_no=TenantNo(row["tenant_no"]), status=TenantStatus(row["status"])
                )
                for row in rows
            ]
            if len(rows) < page:
                return found


def _newest(registered: Sequence[RegisteredMigration]) -> int:
    return registered[-1].migration.number if registered else 0


def _comes_first(record: NamespaceRecord) -> bool:
    return record.kind in (NamespaceKind.REFERENCE, NamespaceKind.TEMPLATE)


def _unregistered(
    wanted: Sequence[Migration], known: Sequence[RegisteredMigration]
) -> list[Migration]:
    """Those of `wanted` that are new; `MigrationConflictError` when one does not fit."""
    by_number = {item.migration.number: item.migration for item in known}
    newest = _newest(known)
    fresh = []
    for migration in wanted:
        registered = by_number.get(migration.number)
        if registered is None and migration.number < newest:
            raise MigrationConflictError(
                f"{migration.title} comes too late: {by_number[newest].title} is registered "
                f"already; give it a number above {newest}"
            )
        if registered is None:
            fresh.append(migration)
        elif registered.checksum != migration.checksum:
            raise MigrationConflictError(
                f"{registered.title} exists already with another text; give the new one "
                f"({migration.name}) a number above {newest}"
            )
    return fresh
