"""Makes, suspends, resumes and deletes tenants: steps that can be killed anywhere and run again.

Rules this module keeps:

* The placement is recorded before anything is made, so that a second attempt finds the names that
  the first one chose: nothing is made twice and nothing is left behind under a name that is lost.
* Each step checks or tolerates what is there already. The status changes last: a tenant is active
  only when all of it is there, and forgotten only when all of it is gone.
* Whoever works on a tenant holds its provisioning lock on the tenant's server.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol, assert_never

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    OverloadedError,
    PlacementChangedError,
    ServerNotFoundError,
    TenantExistsError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    Region,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
    opaque_name,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Placement,
    Tenant,
    TenantContext,
    TenantStatus,
)
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceKind
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect, revoke_connect
from tenancy.data_isolation.engine.fence import (
    close_fence,
    drain,
    fence_epoch,
    open_fence,
    remove_fence,
)
from tenancy.data_isolation.engine.layout import (
    APP_SCHEMA,
    HYBRID_ROLE,
    ROWS_ROLE,
    shared_database,
    template_database,
)
from tenancy.data_isolation.engine.login_limits import limit_temp_files, login_connections_max
from tenancy.data_isolation.engine.login_roles import ensure_login_role, ensure_member
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.provisioning_errors import provisioning
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

    def template_idle(self) -> AbstractAsyncContextManager[None]:
        """Keep migrations out of template databases: they can be cloned within the block."""
        ...


class Provisioner:
    """The life of a tenant, from its first placement to its last trace.

    Safe for concurrent use by any number of processes. Every method may raise
    `ServerUnavailableError` or `OverloadedError`; running it again goes on where it stopped.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        master_key: MasterKey,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
        namespaces: NamespaceMaker,
    ) -> None:
        self._settings = settings
        self._tiers = settings.tier_limits
        self._master_key = master_key
        self._catalog = catalog
        self._admin = admin
        self._keys = keys
        self._namespaces = namespaces
        self._cloning = asyncio.Lock()

    async def create(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        """The tenant, made or finished. One that is there already is returned as it is.

        Raises `TenantExistsError` when it exists with other properties or at another place,
        `ServerNotFoundError` when no server has the name or the region, and `ConflictError` when
        no server has room for another hybrid tenant.
        """
        if hybrid and level is not IsolationLevel.ROW:
            raise InvalidInputError(f"a hybrid tenant is at level row, not {level}")
        candidates = await self._candidates(server, context.region)
        if hybrid:
            candidates = await self._with_room(context, candidates)
        chosen = _spread(TenantId(context.tenant_id), candidates)
        wanted = self._placement(level, chosen, database_prefix, hybrid=hybrid)
        tenant = await self._catalog.add_tenant(context, wanted)
        if tenant.status is TenantStatus.DELETING:
            raise TenantSuspendedError(f"tenant {tenant.tenant_id} is being deleted; wait for it")
        if tenant.placement is None:
            tenant = await self._place(tenant, wanted)
        placement = _placed(tenant)
        is_hybrid = placement.sensitive_schema is not None
        if (placement.level, is_hybrid) != (level, hybrid) or placement.server not in candidates:
            raise TenantExistsError(
                f"tenant {tenant.tenant_id} exists already at level {placement.level}"
                f"{', as a hybrid one' if is_hybrid else ''}"
            )
        if tenant.status is not TenantStatus.CREATING:
            return tenant
        with provisioning(tenant.tenant_id):
            async with self._locked(tenant, placement) as connection:
                await self._make(connection, tenant, placement)
                await self._change(tenant, TenantStatus.CREATING, TenantStatus.ACTIVE)
        return await self._catalog.tenant(tenant.tenant_id)

    async def suspend(self, tenant: Tenant) -> Tenant:
        """Refuse the tenant's statements from now on, whoever sends them, and wait for the last."""
        placement = _finished(tenant)
        if tenant.status is TenantStatus.ACTIVE:
            await self._change(tenant, TenantStatus.ACTIVE, TenantStatus.SUSPENDED)
        with provisioning(tenant.tenant_id):
            async with self._home(placement) as connection:
                await close_fence(connection, tenant.tenant_no, self._settings.statement_timeout_ms)
        return await self._catalog.tenant(tenant.tenant_id)

    async def resume(self, tenant: Tenant) -> Tenant:
        """Take the tenant's statements again, under a new epoch: old bindings stay worthless."""
        placement = _finished(tenant)
        if tenant.status is TenantStatus.ACTIVE:
            return tenant
        with provisioning(tenant.tenant_id):
            async with self._locked(tenant, placement):
                async with self._home(placement) as connection:
                    epoch = await self._next_epoch(connection, tenant, placement)
                    await open_fence(connection, tenant.tenant_no, epoch)
                await self._change(tenant, TenantStatus.SUSPENDED, TenantStatus.ACTIVE)
        return await self._catalog.tenant(tenant.tenant_id)

    async def delete(self, tenant: Tenant) -> None:
        """Erase the tenant's data, then what was made for it, then its name."""
        if tenant.status is not TenantStatus.DELETING:
            await self._change(tenant, tenant.status, TenantStatus.DELETING)
        placement = tenant.placement
        if placement is not None:
            with provisioning(tenant.tenant_id):
                async with self._locked(tenant, placement) as connection:
                    await self._unmake(connection, tenant, placement)
        await self._catalog.remove_tenant(tenant.tenant_no)

    # Making

    async def _make(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        """Everything of a placement; `connection` is to the server's shared database."""
        match placement.level:
            case IsolationLevel.ROW:
                await self._overlay(connection, tenant, placement)
                await self._seed(connection, tenant, placement)
            case IsolationLevel.SCHEMA:
                await self._login(connection, tenant, placement)
                await self._tables(connection, tenant, placement)
            case IsolationLevel.DATABASE:
                await self._login(connection, tenant, placement)
                await self._clone(connection, placement)
                async with self._home(placement) as own:
                    await self._keys.install(
                        own, self._catalog, server=placement.server, database=placement.database
                    )
                    await self._tables(own, tenant, placement)
            case _:
                assert_never(placement.level)

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
            _namespace(tenant, placement),
            tenant_no=tenant.tenant_no,
            schema=placement.sensitive_schema,
            role=placement.role,
        )

    async def _tables(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        await grant_connect(connection, placement.database, placement.role)
        await self._namespaces.create_namespace(connection, _namespace(tenant, placement))
        await self._seed(connection, tenant, placement)

    async def _seed(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        await self._namespaces.seed_tenant(
            connection,
            _namespace(tenant, placement),
            tenant.tenant_no,
            placement.epoch,
            overlay=placement.sensitive_schema,
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

    async def _unmake(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        match placement.level:
            case IsolationLevel.ROW:
                await self._unmake_overlay(connection, tenant, placement)
                await self._unmake_rows(connection, tenant, placement)
                if placement.sensitive_schema is not None:
                    await self._drop_role(connection, placement)
            case IsolationLevel.SCHEMA:
                await self._end_sessions(connection, placement)
                await connection.execute(_SQL.statement("drop_schema", schema=placement.schema))
                await remove_fence(connection, tenant.tenant_no)
                await self._drop_role(connection, placement)
            case IsolationLevel.DATABASE:
                await self._end_sessions(connection, placement)
                await connection.execute(
                    _SQL.statement("drop_database", database=placement.database)
                )
                await self._drop_role(connection, placement)
            case _:
                assert_never(placement.level)

    async def _unmake_overlay(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> None:
        if placement.sensitive_schema is not None:
            await self._end_sessions(connection, placement)
            await self._namespaces.remove_overlay(
                connection,
                _namespace(tenant, placement),
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

    async def _end_sessions(self, connection: asyncpg.Connection, placement: Placement) -> None:
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

    async def _candidates(
        self, server: ServerName | None, region: Region | str | None
    ) -> list[ServerName]:
        """The servers that a tenant with these wishes may be on."""
        known = await self._catalog.servers()
        configured = {ServerName(config.name) for config in self._admin.servers}
        usable = {name: region for name, region in known.items() if name in configured}
        if server is not None and server not in usable:
            raise ServerNotFoundError(
                f"there is no server {server!r}; the servers are {', '.join(sorted(usable))}"
            )
        found = [
            name
            for name, where in sorted(usable.items())
            if server in (None, name) and region in (None, where)
        ]
        if not found:
            regions = ", ".join(sorted({str(where) for where in usable.values() if where}))
            raise ServerNotFoundError(
                f"no server is in region {region!r}; the regions are: {regions or 'none named'}"
            )
        return found

    async def _with_room(
        self, context: TenantContext, candidates: list[ServerName]
    ) -> list[ServerName]:
        """The servers with room for another hybrid tenant; all, when this one has its place."""
        with suppress(TenantNotFoundError):
            if (await self._catalog.tenant(TenantId(context.tenant_id))).placement is not None:
                return candidates
        most = self._settings.hybrid_tenants_max
        counts = await self._catalog.hybrid_counts()
        found = [name for name in candidates if counts.get(name, 0) < most]
        if not found:
            raise ConflictError(
                f"no server has room for another hybrid tenant: {most} are the limit of one "
                "(TENANCY_HYBRID_TENANTS_MAX); use schema_level, or add a server"
            )
        return found

    def _placement(
        self,
        level: IsolationLevel,
        server: ServerName,
        database_prefix: str | None,
        *,
        hybrid: bool,
    ) -> Placement:
        """A first placement with fresh names."""
        database, schema, role = shared_database(self._settings), APP_SCHEMA, ROWS_ROLE
        own: SchemaName | None = None
        match level:
            case IsolationLevel.ROW:
                if hybrid:
                    own = SchemaName(opaque_name())
                    role = RoleName(own)
            case IsolationLevel.SCHEMA:
                schema = SchemaName(opaque_name())
                role = RoleName(schema)
            case IsolationLevel.DATABASE:
                role = RoleName(opaque_name())
                prefix = "t_" if database_prefix is None else database_prefix
                database = DatabaseName(prefix + role.removeprefix("t_"))
            case _:
                assert_never(level)
        return Placement(
            level=level,
            server=server,
            database=database,
            schema=schema,
            role=role,
            epoch=Epoch(1),
            sensitive_schema=own,
        )

    async def _place(self, tenant: Tenant, placement: Placement) -> Tenant:
        # When another process placed it first, go on with what that one chose.
        with suppress(PlacementChangedError):
            await self._catalog.set_placement(tenant.tenant_no, placement, expected_epoch=None)
        return await self._catalog.tenant(tenant.tenant_id)

    async def _next_epoch(
        self, connection: asyncpg.Connection, tenant: Tenant, placement: Placement
    ) -> Epoch:
        """A higher epoch than any so far, recorded in the catalog."""
        fenced = await fence_epoch(connection, tenant.tenant_no) or placement.epoch
        epoch = Epoch(max(fenced, placement.epoch) + 1)
        moved = replace(placement, epoch=epoch)
        await self._catalog.set_placement(tenant.tenant_no, moved, expected_epoch=placement.epoch)
        return epoch

    async def _change(self, tenant: Tenant, old: TenantStatus, new: TenantStatus) -> None:
        """Compare and swap; a process that got there first is no error."""
        try:
            await self._catalog.set_status(tenant.tenant_no, new, expected=old)
        except ConflictError:
            now = await self._catalog.tenant(tenant.tenant_id)
            if now.status is not new:
                raise

    @asynccontextmanager
    async def _locked(
        self, tenant: Tenant, placement: Placement
    ) -> AsyncIterator[asyncpg.Connection]:
        """An admin connection to the server's shared database that holds the tenant's lock."""
        shared = shared_database(self._settings)
        async with self._admin.session(placement.server, shared) as connection:
            wait_ms = str(self._settings.statement_timeout_ms)
            await connection.execute(_SQL.statement("set_lock_timeout"), wait_ms)
            try:
                await connection.execute(_SQL.statement("tenant_lock"), tenant.tenant_no)
            except asyncpg.LockNotAvailableError:
                raise OverloadedError(
                    f"another process has been working on tenant {tenant.tenant_id} "
                    f"for {wait_ms} ms"
                ) from None
            await connection.execute(_SQL.statement("set_lock_timeout"), "0")
            yield connection

    @asynccontextmanager
    async def _home(self, placement: Placement) -> AsyncIterator[asyncpg.Connection]:
        """An admin connection to the database that the tenant's data is in."""
        async with self._admin.session(placement.server, placement.database) as connection:
            yield connection


def _spread(tenant_id: str, candidates: list[ServerName]) -> ServerName:
    """The server for a new tenant: highest random weight, so that all get their share."""
    return max(candidates, key=lambda name: hashlib.sha256(f"{tenant_id}/{name}".encode()).digest())


def _namespace(tenant: Tenant, placement: Placement) -> Namespace:
    own = placement.level is not IsolationLevel.ROW
    return Namespace(
        server=placement.server,
        database=placement.database,
        schema=placement.schema,
        kind=NamespaceKind.OWN if own else NamespaceKind.SHARED,
        tenant_no=tenant.tenant_no if own else None,
        role=placement.role,
    )


def _placed(tenant: Tenant) -> Placement:
    assert tenant.placement is not None, "the catalog gave back what was recorded just now"  # noqa: S101
    return tenant.placement


def _finished(tenant: Tenant) -> Placement:
    """The placement of a tenant that was made whole; `TenantSuspendedError` otherwise."""
    if tenant.placement is None or tenant.status in (TenantStatus.CREATING, TenantStatus.DELETING):
        raise TenantSuspendedError(f"tenant {tenant.tenant_id} is {tenant.status} now")
    return tenant.placement
