"""Makes, suspends, resumes and deletes tenants: steps that can be killed anywhere and run again.

Rules this module keeps:

* The placement is recorded before anything is made, so that a second attempt finds the names that
  the first one chose: nothing is made twice and nothing is left behind under a name that is lost.
* Each step checks or tolerates what is there already. The status changes last: a tenant is active
  only when all of it is there, and forgotten only when all of it is gone.
* Whoever works on a tenant holds its provisioning lock on the tenant's server.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import assert_never

import asyncpg

from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
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
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.fence import close_fence, fence_epoch, open_fence
from tenancy.data_isolation.engine.layout import APP_SCHEMA, ROWS_ROLE, shared_database
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.provisioning_errors import provisioning


class Provisioner:
    """The life of a tenant, from its first placement to its last trace.

    Safe for concurrent use by any number of processes. Every method may raise
    `ServerUnavailableError` or `OverloadedError`; running it again goes on where it stopped.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        maker: PlacementMaker,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._maker = maker

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
        candidates = await self.candidates(server, context.region)
        if hybrid:
            candidates = await self._with_room(context, candidates)
        chosen = spread(TenantId(context.tenant_id), candidates)
        wanted = self.first_placement(level, chosen, database_prefix, hybrid=hybrid)
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
            async with self._maker.locked(tenant, placement) as connection:
                await self._maker.make(connection, tenant, placement)
                await self._change(tenant, TenantStatus.CREATING, TenantStatus.ACTIVE)
        return await self._catalog.tenant(tenant.tenant_id)

    async def suspend(self, tenant: Tenant) -> Tenant:
        """Refuse the tenant's statements from now on, whoever sends them, and wait for the last."""
        placement = _finished(tenant)
        if tenant.status is TenantStatus.ACTIVE:
            await self._change(tenant, TenantStatus.ACTIVE, TenantStatus.SUSPENDED)
        with provisioning(tenant.tenant_id):
            async with self._maker.home(placement) as connection:
                await close_fence(connection, tenant.tenant_no, self._settings.statement_timeout_ms)
        return await self._catalog.tenant(tenant.tenant_id)

    async def resume(self, tenant: Tenant) -> Tenant:
        """Take the tenant's statements again, under a new epoch: old bindings stay worthless."""
        placement = _finished(tenant)
        if tenant.status is TenantStatus.ACTIVE:
            return tenant
        with provisioning(tenant.tenant_id):
            async with self._maker.locked(tenant, placement):
                async with self._maker.home(placement) as connection:
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
                async with self._maker.locked(tenant, placement) as connection:
                    await self._maker.unmake(connection, tenant, placement)
        await self._catalog.remove_tenant(tenant.tenant_no)

    # Where

    async def candidates(
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

    def first_placement(
        self,
        level: IsolationLevel,
        server: ServerName,
        database_prefix: str | None = None,
        *,
        hybrid: bool = False,
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


def spread(tenant_id: str, candidates: list[ServerName]) -> ServerName:
    """The server for a new tenant: highest random weight, so that all get their share."""
    return max(candidates, key=lambda name: hashlib.sha256(f"{tenant_id}/{name}".encode()).digest())


def _placed(tenant: Tenant) -> Placement:
    assert tenant.placement is not None, "the catalog gave back what was recorded just now"  # noqa: S101
    return tenant.placement


def _finished(tenant: Tenant) -> Placement:
    """The placement of a tenant that was made whole; `TenantSuspendedError` otherwise."""
    if tenant.placement is None or tenant.status in (TenantStatus.CREATING, TenantStatus.DELETING):
        raise TenantSuspendedError(f"tenant {tenant.tenant_id} is {tenant.status} now")
    return tenant.placement
