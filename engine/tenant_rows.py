"""The data of a migration: each statement runs once for every tenant of a namespace.

Rules this module keeps:

* A statement runs under the binding of one tenant, and forced row security shows the owner no other
  tenant's rows. So `insert into plan values ('free')` gives every tenant its row, and a subselect
  counts within one tenant, as in a database of its own.
* Deferred constraints and triggers are settled before the next tenant's turn.
* A tenant that is suspended or being deleted is included, since its rows must fit the new schema
  too; its fence is open within the transaction only. A tenant that is being created is included
  once it has its first rows, which come from the reference.
* Every signed binding costs a lock to the end of the transaction, and a server has room for a few
  thousand. Beyond `Settings.migration_bound_tenants_max` tenants, the policies of the namespace
  believe the binding for the time being: nobody else gets at its tables until the transaction has
  put them back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError, UnavailableError
from tenancy.data_isolation.core.identifiers import Epoch, SchemaName, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import TenantStatus
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.namespace import REFERENCE_TENANT, Namespace
from tenancy.data_isolation.engine.runner import ask
from tenancy.data_isolation.engine.scoping import as_keeper, run_all, set_path
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("namespace.sql")
#: The idempotency key under which a tenant's data says that it has its first rows. It moves along
#: with the tenant, and is gone with it.
SEED_MARK: Final = "tenancy:seed"
#: Lets nothing wait for the end of the transaction.
SETTLE: Final = "set constraints all immediate"
#: The overlays (`overlay`) of a namespace that has none.
NO_OVERLAYS: Final[Mapping[TenantNo, SchemaName]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedTenant:
    """A tenant whose rows are in a namespace."""

    tenant_no: TenantNo
    status: TenantStatus


class TenantRows:
    """Works on rows of tenants, in the caller's transaction, as the owner, in the schema."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        settings: Settings,
        keys: BindingKeys,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._settings = settings
        self._keys = keys

    async def run_for_reference(self, statements: Sequence[str]) -> None:
        """Run statements for tenant 0, in a reference whose row security is not forced."""
        await self._bind_unsigned(REFERENCE_TENANT)
        await self._run(await self._turn_of(statements))
        await self._unbind()

    async def run(
        self,
        statements: Sequence[str],
        tenants: Sequence[PlacedTenant],
        overlays: Mapping[TenantNo, SchemaName] = NO_OVERLAYS,
    ) -> None:
        """Run statements for each of `tenants`; those with an overlay have it before the namespace.

        Raises `UnavailableError` when one of them is being moved; errors of a statement pass
        through with a note that names the tenant.
        """
        if not tenants:
            return
        fences = await self._fences(tenants)
        signed = len(tenants) <= self._settings.migration_bound_tenants_max
        if not signed:
            await self._run_texts("open_policies", overlays.values())
        for tenant in tenants:
            fence = fences.get(tenant.tenant_no)
            if fence is None:
                continue
            overlay = overlays.get(tenant.tenant_no)
            texts = await self._turn_of(statements, overlay)
            try:
                async with self._in_front(overlay):
                    await self._turn(tenant, fence, texts, signed=signed)
            except asyncpg.PostgresError as error:
                error.add_note(f"tenant number {tenant.tenant_no}")
                raise
        if not signed:
            await self._run_texts("close_policies", overlays.values())
        await self._unbind()

    @asynccontextmanager
    async def working_for(self, tenant_no: TenantNo) -> AsyncIterator[None]:
        """Work for a tenant within the block, also while it is suspended.

        Raises `ConflictError` when it has no fence here.
        """
        row = await self._fence(tenant_no)
        if row is None:
            raise ConflictError(f"tenant number {tenant_no} has no fence in {self._namespace}")
        if not row["open"]:
            await self._set_fence(tenant_no, True)
        await self._bind_signed(tenant_no, Epoch(row["epoch"]))
        yield
        await self._unbind()
        if not row["open"]:
            await self._set_fence(tenant_no, False)

    async def bind(self, tenant_no: TenantNo) -> None:
        """Work for a tenant whose fence is open, to the end of the transaction."""
        row = await self._fence(tenant_no)
        if row is None or not row["open"]:
            raise ConflictError(
                f"tenant number {tenant_no} has no open fence in {self._namespace}; open it first"
            )
        await self._bind_signed(tenant_no, Epoch(row["epoch"]))

    async def bind_to(self, tenant_no: TenantNo, epoch: Epoch) -> None:
        """The same, for who knows the epoch of the open fence."""
        await self._bind_signed(tenant_no, epoch)

    async def open_epochs(self, tenants: Collection[TenantNo]) -> dict[TenantNo, Epoch]:
        """The epochs of the open fences of some tenants; `ConflictError` when one is not open."""
        async with as_keeper(self._connection):
            rows = await self._connection.fetch(_SQL.statement("fences"), list(tenants))
        found = {TenantNo(row["tenant_no"]): Epoch(row["epoch"]) for row in rows if row["open"]}
        for tenant_no in tenants:
            if tenant_no not in found:
                raise ConflictError(
                    f"tenant number {tenant_no} has no open fence in {self._namespace}"
                )
        return found

    async def _turn(
        self,
        tenant: PlacedTenant,
        fence: asyncpg.Record,
        statements: Sequence[str],
        *,
        signed: bool,
    ) -> None:
        closed = signed and not fence["open"]
        if closed:
            await self._set_fence(tenant.tenant_no, True)
        if signed:
            await self._bind_signed(tenant.tenant_no, Epoch(fence["epoch"]))
        else:
            await self._bind_unsigned(tenant.tenant_no)
        new = tenant.status is TenantStatus.CREATING
        if not new or await ask(self._connection, _SQL.statement("has_mark"), SEED_MARK):
            await self._run(statements)
        if closed:
            await self._set_fence(tenant.tenant_no, False)

    async def _turn_of(
        self, statements: Sequence[str], overlay: SchemaName | None = None
    ) -> list[str]:
        """The statements of one tenant's turn: what shall wait waits, and is settled at the end.

        To settle is to let nothing wait any more, also in the turns that follow, so each one begins
        with saying what waits: in the namespace, and in the tenant's `overlay` if it has one.
        """
        schemas = [name for name in (self._namespace.schema, overlay) if name is not None]
        rows = await self._connection.fetch(_SQL.statement("deferrable_constraints"), schemas)
        deferred = ", ".join(row["name"] for row in rows if row["deferred"])
        begin = [f"set constraints {deferred} deferred"] if deferred else []
        return [*begin, *statements, *([SETTLE] if rows else [])]

    async def _run(self, statements: Sequence[str]) -> None:
        for text in statements:
            await self._connection.fetchval(_SQL.statement("run"), text)

    async def _fences(self, tenants: Sequence[PlacedTenant]) -> dict[TenantNo, asyncpg.Record]:
        """The fences of `tenants`; a tenant that is being created may have none yet."""
        numbers = [tenant.tenant_no for tenant in tenants]
        async with as_keeper(self._connection):
            rows = await self._connection.fetch(_SQL.statement("fences"), numbers)
        found = {TenantNo(row["tenant_no"]): row for row in rows}
        for tenant in tenants:
            fence = found.get(tenant.tenant_no)
            moving = tenant.status is TenantStatus.ACTIVE and not (fence and fence["open"])
            if moving or (fence is None and tenant.status is TenantStatus.SUSPENDED):
                raise UnavailableError(
                    f"tenant number {tenant.tenant_no} is closed in {self._namespace}, so it is "
                    "being moved; run the migration again when the move is over"
                )
        return found

    async def _fence(self, tenant_no: TenantNo) -> asyncpg.Record | None:
        async with as_keeper(self._connection):
            return await self._connection.fetchrow(_SQL.statement("fences"), [tenant_no])

    async def _set_fence(self, tenant_no: TenantNo, is_open: bool) -> None:
        async with as_keeper(self._connection):
            await self._connection.execute(_SQL.statement("set_fence"), tenant_no, is_open)

    async def _bind_signed(self, tenant_no: TenantNo, epoch: Epoch) -> None:
        binding = self._keys.sign(
            self._namespace.server,
            self._namespace.database,
            tenant_no,
            epoch,
            self._connection.get_server_pid(),
        )
        await self._connection.execute(_SQL.statement("bind"), binding)

    async def _bind_unsigned(self, tenant_no: TenantNo) -> None:
        """Enough for the default of the tenant's column, and for nobody's policy."""
        await self._connection.execute(_SQL.statement("bind"), f"0.{tenant_no}.0.0.")

    async def _unbind(self) -> None:
        await self._connection.execute(_SQL.statement("bind"), "")

    async def _run_texts(self, name: str, overlays: Iterable[SchemaName]) -> None:
        for schema in (None, *overlays):
            async with self._in_front(schema):
                rows = await self._connection.fetch(_SQL.statement(name))
                await run_all(self._connection, (row[0] for row in rows))

    @asynccontextmanager
    async def _in_front(self, schema: SchemaName | None) -> AsyncIterator[None]:
        """Let bare names mean what is in `schema`, where there is one, before the namespace."""
        if schema is None:
            yield
            return
        await set_path(self._connection, schema, self._namespace.schema)
        yield
        # After an error the transaction, and the setting with it, is undone.
        await set_path(self._connection, self._namespace.schema)
