"""Makes what a placement consists of, and takes it away: logins, databases, schemas, rows.

Rules this module keeps:

* Each step checks or tolerates what is there already, so that it can be killed and run again.
* Whoever works on a tenant holds its provisioning lock on the server (`locked`).
* A tenant has one fence per database. Where it goes on working in the same database, by another
  placement, the fence stays (`beside`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol, assert_never

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import OverloadedError
from tenancy.data_isolation.core.identifiers import (
    Epoch,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceKind
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect, revoke_connect
from tenancy.data_isolation.engine.fence import (
    drain,
    fence_epoch,
    open_fence,
    remove_fence,
)
from tenancy.data_isolation.engine.layout import (
    HYBRID_ROLE,
    ROWS_ROLE,
    shared_database,
    template_database,
)
from tenancy.data_isolation.engine.login_limits import limit_temp_files, login_connections_max
from tenancy.data_isolation.engine.login_roles import ensure_login_role, ensure_member
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.row_removal import forget_empty, remove_rows
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("provisioning.sql")
#: Attempts to clone the template while another process clones it or migrates it.
_CLONE_ATTEMPTS = 20
_CLONE_PAUSE_S = 0.05
#: Times that rows are removed which a migration has given a tenant meanwhile.
_REMOVAL_ATTEMPTS = 3


class NamespaceMaker(Protocol):
    """Makes the tables of a tenant. Each method can be run again after an interruption."""

    async def create_namespace(self, connection: asyncpg.Connection, namespace: Namespace) -> None:
        """Make the schema with all tables at the newest version, and note it in the catalog."""
        ...

    async def add_overlay(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        tenant_no: TenantNo,
        schema: SchemaName,
        role: RoleName,
    ) -> None:
        """Make a schema of a hybrid tenant's own with the sensitive tables, for `role`."""
        ...

    async def remove_overlay(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        tenant_no: TenantNo,
        schema: SchemaName,
    ) -> None:
        """Drop that schema and all rows in it."""
        ...

    async def seed_tenant(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        tenant_no: TenantNo,
        epoch: Epoch,
        *,
        overlay: SchemaName | None = None,
    ) -> bool:
        """Open the tenant's fence, and give it the rows that every new tenant starts with, once."""
        ...

    async def seed_tenants(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        epochs: Mapping[TenantNo, Epoch],
    ) -> bool:
        """The same for many tenants in one transaction; False = only singly, nothing was done."""
        ...

    def template_idle(self) -> AbstractAsyncContextManager[None]:
        """Keep migrations out of template databases: they can be cloned within the block."""
        ...


class PlacementMaker:
    """Makes placements and takes them away. Safe for concurrent use by any number of processes."""

    def __init__(
        self,
        *,
        settings: Settings,
        master_key: MasterKey,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
        namespaces: NamespaceMaker,
        silent_max_ms: int = 0,
    ) -> None:
        """Who holds a tenant's lock and is silent for `silent_max_ms` loses it; 0 = never."""
        self._silent_max_ms = silent_max_ms
        self._settings = settings
        self._tiers = settings.tier_limits
        self._master_key = master_key
        self._catalog = catalog
        self._admin = admin
        self._keys = keys
        self._namespaces = namespaces
        self._cloning = asyncio.Lock()

    def over(self, admin: AdminConnections, *, silent_max_ms: int) -> PlacementMaker:
        """The same over other connections."""
        return PlacementMaker(
            settings=self._settings,
            master_key=self._master_key,
            catalog=self._catalog,
            admin=admin,
            keys=self._keys,
            namespaces=self._namespaces,
            silent_max_ms=silent_max_ms,
        )

    # Making

    async def make(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        """Everything of a new tenant's placement, its first rows included; the fence is open then.

        `connection` is to the server's shared database.
        """
        if placement.level is IsolationLevel.ROW:
            await self._overlay(connection, tenant, placement)
        else:
            await self.make_empty(connection, tenant, placement)
        async with self._at_home(connection, placement) as home:
            await self._namespaces.seed_tenant(
                home,
                namespace_of(tenant, placement),
                tenant.tenant_no,
                placement.epoch,
                overlay=placement.sensitive_schema,
            )

    async def make_rows(self, connection: asyncpg.Connection, tenants: Sequence[Tenant]) -> None:
        """As `make`, for tenants that share the tables of one server, in one transaction.

        Where their first rows cannot come so, in one for each.
        """
        epochs: dict[TenantNo, Epoch] = {}
        for tenant in tenants:
            assert tenant.placement is not None  # noqa: S101 - asked for such alone.
            namespace = namespace_of(tenant, tenant.placement)
            epochs[tenant.tenant_no] = tenant.placement.epoch
        if not epochs or await self._namespaces.seed_tenants(connection, namespace, epochs):
            return
        for tenant_no, epoch in epochs.items():
            await self._namespaces.seed_tenant(connection, namespace, tenant_no, epoch)

    async def make_empty(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        """The login, the database and the tables of a placement, without rows and without a fence.

        `connection` is to the server's shared database.
        """
        match placement.level:
            case IsolationLevel.ROW:
                return
            case IsolationLevel.SCHEMA:
                await self._login(connection, tenant, placement)
            case IsolationLevel.DATABASE:
                await self._login(connection, tenant, placement)
                await self._clone(connection, placement)
            case _:
                assert_never(placement.level)
        async with self._at_home(connection, placement) as home:
            if placement.level is IsolationLevel.DATABASE:
                await self._keys.install(
                    home, self._catalog, server=placement.server, database=placement.database
                )
            await grant_connect(home, placement.database, placement.role)
            await self._namespaces.create_namespace(home, namespace_of(tenant, placement))

    async def _login(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        limits = self._tiers.of(tenant.tenant_type)
        await ensure_login_role(
            connection,
            master_key=self._master_key,
            server=placement.server,
            role=placement.role,
            connection_limit=login_connections_max(limits),
            inherits=placement.sensitive_schema is not None,
        )
        await limit_temp_files(connection, placement.role, limits)

    async def _overlay(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        """A hybrid tenant's login, and its own schema for what is sensitive."""
        if placement.sensitive_schema is None:
            return
        # Before the overlay is there, because migrations work for all tenants that have one.
        await open_fence(connection, tenant.tenant_no, placement.epoch)
        await self._login(connection, tenant, placement)
        await ensure_member(connection, placement.role, HYBRID_ROLE)
        await self._namespaces.add_overlay(
            connection,
            namespace_of(tenant, placement),
            tenant_no=tenant.tenant_no,
            schema=placement.sensitive_schema,
            role=placement.role,
        )

    async def _clone(self, connection: asyncpg.Connection, placement: Placement) -> None:
        """CREATE DATABASE from the template, in which nobody else may be at work meanwhile.

        With the default strategy (WAL_LOG): FILE_COPY forces two checkpoints and took 1.1 to 1.8
        times as long for the small template, with fsync as without.
        """
        template = template_database(self._settings)
        async with self._cloning, self._namespaces.template_idle():
            for _ in range(_CLONE_ATTEMPTS):
                try:
                    await ensure_database(connection, placement.database, template=template)
                except asyncpg.ObjectInUseError:
                    await asyncio.sleep(_CLONE_PAUSE_S)
                else:
                    return
        raise OverloadedError("the template database is in use; try again", "55006", 1.0)

    # Taking away

    async def unmake(
        self,
        connection: asyncpg.Connection,
        tenant: Tenant,
        placement: Placement,
        *,
        beside: Placement | None = None,
    ) -> None:
        """Take away everything of a placement, rows first; `connection` is as for `make`.

        `beside` is another placement by which the tenant goes on working: in the same database it
        keeps the fence.
        """
        if beside is not None and _same_database(placement, beside):
            await self._unmake_beside(connection, tenant, placement, beside)
            return
        match placement.level:
            case IsolationLevel.ROW:
                await self._unmake_overlay(connection, tenant, placement)
                await self._unmake_rows(connection, tenant, placement)
                if placement.sensitive_schema is not None:
                    await self._drop_role(connection, placement)
            case IsolationLevel.SCHEMA:
                await self._drop_own_schema(connection, placement)
                await remove_fence(connection, tenant.tenant_no)
                await self._drop_role(connection, placement)
            case IsolationLevel.DATABASE:
                await self.end_sessions(connection, placement)
                await connection.execute(
                    _SQL.statement("drop_database", database=placement.database)
                )
                await self._drop_role(connection, placement)
            case _:
                assert_never(placement.level)

    async def _unmake_beside(
        self,
        connection: asyncpg.Connection,
        tenant: Tenant,
        placement: Placement,
        beside: Placement,
    ) -> None:
        """A schema, or shared rows, in the database in which the tenant works by `beside`."""
        if placement.level is IsolationLevel.SCHEMA:
            await self._drop_own_schema(connection, placement)
            await self._drop_role(connection, placement)
            return
        pid = connection.get_server_pid()
        epoch = await fence_epoch(connection, tenant.tenant_no) or beside.epoch
        binding = self._keys.sign(
            placement.server, placement.database, tenant.tenant_no, epoch, pid
        )
        batch_rows = self._settings.removal_batch_rows_max
        await remove_rows(connection, placement.schema, binding, batch_rows)

    async def _drop_own_schema(self, connection: asyncpg.Connection, placement: Placement) -> None:
        await self.end_sessions(connection, placement)
        await connection.execute(_SQL.statement("drop_schema", schema=placement.schema))

    async def _unmake_overlay(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        if placement.sensitive_schema is not None:
            await self.end_sessions(connection, placement)
            await self._namespaces.remove_overlay(
                connection,
                namespace_of(tenant, placement),
                tenant_no=tenant.tenant_no,
                schema=placement.sensitive_schema,
            )

    async def _unmake_rows(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        """Under an epoch of its own, so that no binding that is out there can work meanwhile."""
        epoch = await fence_epoch(connection, tenant.tenant_no)
        if epoch is None:
            return
        wait_ms = self._settings.statement_timeout_ms
        await open_fence(connection, tenant.tenant_no, Epoch(epoch + 1))
        await drain(connection, tenant.tenant_no, wait_ms)
        pid = connection.get_server_pid()
        binding = self._keys.sign(
            placement.server, placement.database, tenant.tenant_no, Epoch(epoch + 1), pid
        )
        batch_rows = self._settings.removal_batch_rows_max
        for _ in range(_REMOVAL_ATTEMPTS):
            await remove_rows(connection, placement.schema, binding, batch_rows)
            if await forget_empty(connection, placement.schema, binding, tenant.tenant_no):
                return
        raise OverloadedError(f"migrations give tenant {tenant.tenant_id} new rows; try again")

    async def forget(self, placement: Placement) -> None:
        """Forget a placement on a server that is lost: migrations do not wait for it."""
        if placement.level is not IsolationLevel.ROW:
            await self._catalog.remove_namespace(
                placement.server, placement.database, placement.schema
            )

    async def end_sessions(self, connection: asyncpg.Connection, placement: Placement) -> None:
        """Let the placement's own login in no more, and end its sessions."""
        if placement.role == ROWS_ROLE:
            return
        if await connection.fetchval(_SQL.statement("has_role"), placement.role):
            await connection.execute(_SQL.statement("forbid_login", role=placement.role))
            await connection.execute(_SQL.statement("end_sessions"), placement.role)

    async def _drop_role(self, connection: asyncpg.Connection, placement: Placement) -> None:
        if placement.level is not IsolationLevel.ROW:
            await self._catalog.remove_namespace(
                placement.server, placement.database, placement.schema
            )
        if not await connection.fetchval(_SQL.statement("has_role"), placement.role):
            return
        if placement.level is IsolationLevel.SCHEMA:
            await revoke_connect(connection, placement.database, placement.role)
        if placement.level is not IsolationLevel.DATABASE:
            # An admin that is no superuser may not; then there is seldom anything to drop.
            with suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute(_SQL.statement("drop_owned", role=placement.role))
        await connection.execute(_SQL.statement("drop_role", role=placement.role))

    # Where

    @asynccontextmanager
    async def locked(
        self, tenant: Tenant, placement: Placement
    ) -> AsyncIterator[asyncpg.Connection]:
        """An admin connection to the server's shared database that holds the tenant's lock."""
        async with self.locked_all([tenant], placement.server) as connection:
            yield connection

    @asynccontextmanager
    async def locked_all(
        self, tenants: Sequence[Tenant], server: ServerName
    ) -> AsyncIterator[asyncpg.Connection]:
        """The same with the locks of several tenants of one server."""
        numbers = sorted(tenant.tenant_no for tenant in tenants)
        shared = shared_database(self._settings)
        async with self._admin.session(server, shared) as connection:
            wait_ms = str(self._settings.statement_timeout_ms)
            await connection.execute(_SQL.statement("set_lock_timeout"), wait_ms)
            try:
                await connection.execute(_SQL.statement("tenant_locks"), numbers)
            except asyncpg.LockNotAvailableError:
                others = f" or {len(tenants) - 1} others" if len(tenants) > 1 else ""
                raise OverloadedError(
                    f"another process has been working on tenant {tenants[0].tenant_id}{others} "
                    f"for at least {wait_ms} ms"
                ) from None
            await connection.execute(_SQL.statement("set_lock_timeout"), "0")
            await connection.execute(_SQL.statement("end_when_silent"), f"{self._silent_max_ms}ms")
            yield connection

    @asynccontextmanager
    async def _at_home(
        self, connection: asyncpg.Connection, placement: Placement
    ) -> AsyncIterator[asyncpg.Connection]:
        """`connection`, which is to the server's shared database, or one to the placement's own."""
        if placement.level is not IsolationLevel.DATABASE:
            yield connection
            return
        async with self.home(placement) as own:
            yield own

    @asynccontextmanager
    async def home(self, placement: Placement) -> AsyncIterator[asyncpg.Connection]:
        """An admin connection to the database that the tenant's data is in."""
        async with self._admin.session(placement.server, placement.database) as connection:
            yield connection


def namespace_of(tenant: Tenant, placement: Placement) -> Namespace:
    """The namespace that a placement's tables are in."""
    own = placement.level is not IsolationLevel.ROW
    return Namespace(
        server=placement.server,
        database=placement.database,
        schema=placement.schema,
        kind=NamespaceKind.OWN if own else NamespaceKind.SHARED,
        tenant_no=tenant.tenant_no if own else None,
        role=placement.role,
    )


def _same_database(one: Placement, other: Placement) -> bool:
    return (one.server, one.database) == (other.server, other.database)
