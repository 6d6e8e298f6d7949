"""The catalog: the one place that knows which tenants there are and where their data is.

Rules this module keeps:

* A change of state names the state it starts from (compare and swap), so that of two that race one
  learns that it lost.
* Listings are in the order of a unique key, start after a given one, and have a length limit of
  `Settings.catalog_page_rows_max`.
* A repeated addition of the same thing succeeds; of another thing under the same name it fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import Any

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    MigrationConflictError,
    OperationNotFoundError,
    PlacementChangedError,
    ServerNotFoundError,
    TenancyError,
    TenantNotFoundError,
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
    parse_word,
)
from tenancy.data_isolation.core.rules import STRATEGY_OF_LEVEL, StrategyName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.tenant_differences import unlike
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Placement,
    Tenant,
    TenantCache,
    TenantContext,
    TenantStatus,
    TenantType,
)
from tenancy.data_isolation.engine.catalog_pool import CatalogPool
from tenancy.data_isolation.engine.catalog_records import (
    KeyNumber,
    MigrationRecord,
    NamedOperation,
    NamespaceKind,
    NamespaceRecord,
    NamespaceState,
    placement_of_text,
)
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("catalog.sql")
#: Changes of the number of tenants that are read one by one; more are added up for good.
_CHANGES_MAX = 200


class Catalog:
    """The catalog's accessor.

    Durability: a method that changes something returns after PostgreSQL has committed it; when the
    answer is lost it raises `OutcomeUnknownError`. Concurrency: safe from any task of the event
    loop it was opened in, and from any number of processes. Every method may raise
    `ServerUnavailableError` or `OverloadedError`, and then nothing was done.
    """

    def __init__(self, *, settings: Settings, pool: CatalogPool) -> None:
        self._settings = settings
        #: The connections, for the other accessors of the same schema.
        self.pool = pool

    @classmethod
    async def open(
        cls, *, settings: Settings, master_key: MasterKey, server: ServerConfig
    ) -> Catalog:
        """The catalog on the control server, which must have been bootstrapped."""
        pool = await CatalogPool.open(settings=settings, master_key=master_key, server=server)
        return cls(settings=settings, pool=pool)

    async def close(self) -> None:
        """Close the connections."""
        await self.pool.close()

    # Tenants

    async def add_tenant(
        self, context: TenantContext, placement: Placement | None = None
    ) -> Tenant:
        """Make the tenant known, with status CREATING and, when it is new, that placement.

        Repeated with the same properties it returns the tenant as it stands; with others it raises
        `TenantExistsError`. `context.isolation_level` is a wish and not kept here.
        """
        values = (
            context.tenant_id,
            context.tenant_type,
            context.region,
            list(context.compliance),
            _json(context.metadata),
        )
        if placement is None:
            added = await self.pool.write(_SQL.statement("insert_tenant"), *values)
        else:
            try:
                added = await self.pool.write(
                    _SQL.statement("insert_placed_tenant"), *values, *_placement_values(placement)
                )
            except asyncpg.ForeignKeyViolationError as error:
                raise _missing(error, None, placement.server) from None
        if added is None:
            found = await self.pool.row(_SQL.statement("same_tenant"), *values)
            tenant = await self.tenant(TenantId(context.tenant_id))
            if found is None or not found["same"]:
                names = await self.unlike_metadata([context])
                raise unlike(context, tenant, names.get(tenant.tenant_id, ()))
            return tenant
        return await self.tenant(TenantId(context.tenant_id))

    async def add_row_tenants(
        self, contexts: Sequence[TenantContext], placement: Placement
    ) -> dict[TenantId, tuple[Tenant, bool]]:
        """As `add_tenant`, for many of level ROW that get the same placement, in one commit.

        Every one as it stands, and whether it has the properties that were given.
        """
        values = (
            [context.tenant_id for context in contexts],
            [context.tenant_type for context in contexts],
            [context.region for context in contexts],
            [json.dumps(context.compliance) for context in contexts],
            [_json(context.metadata) for context in contexts],
        )
        try:
            await self.pool.write(
                _SQL.statement("insert_row_tenants"), *values, *_placement_values(placement)
            )
        except asyncpg.ForeignKeyViolationError as error:
            raise _missing(error, None, placement.server) from None
        rows = await self.pool.rows(_SQL.statement("given_tenants"), *values)
        return {TenantId(row["tenant_id"]): (tenant_of_row(row), row["same"]) for row in rows}

    async def unlike_metadata(
        self, contexts: Sequence[TenantContext]
    ) -> dict[TenantId, Sequence[str]]:
        """Of those tenants that there are, the names in their metadata with other values."""
        rows = await self.pool.rows(
            _SQL.statement("unlike_metadata"),
            [context.tenant_id for context in contexts],
            [_json(context.metadata) for context in contexts],
        )
        return {TenantId(row["tenant_id"]): row["names"] for row in rows}

    async def tenants_named(self, names: Sequence[TenantId]) -> dict[TenantId, Tenant]:
        """Those of the tenants of these names that there are."""
        rows = await self.pool.rows(_SQL.statement("tenants_named"), list(names))
        return {TenantId(row["tenant_id"]): tenant_of_row(row) for row in rows}

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant of that name, or `TenantNotFoundError`."""
        row = await self.pool.row(_SQL.statement("tenant"), tenant_id)
        if row is None:
            raise TenantNotFoundError(f"there is no tenant {tenant_id}")
        return tenant_of_row(row)

    async def tenant_by_number(self, tenant_no: TenantNo) -> Tenant:
        """The tenant of that number, or `TenantNotFoundError`."""
        row = await self.pool.row(_SQL.statement("tenant_by_number"), tenant_no)
        if row is None:
            raise TenantNotFoundError(f"there is no tenant with number {tenant_no}")
        return tenant_of_row(row)

    async def moved(
        self, since: datetime | None, limit: int
    ) -> tuple[datetime, dict[TenantId, tuple[Epoch, str | None, bool]]]:
        """The catalog's time, and tenants whose placement or cache has changed since.

        Each with its epoch, the nonce of its cache and whether that serves. Those of the last ten
        seconds are always among them, and at most `limit`.
        """
        rows = await self.pool.rows(_SQL.statement("moved"), since, limit)
        moved = {
            TenantId(row["tenant_id"]): (Epoch(row["epoch"]), row["nonce"], bool(row["serving"]))
            for row in rows
            if row["epoch"]
        }
        return rows[0]["now"], moved

    async def moving(self, limit: int) -> dict[TenantId, Placement | None]:
        """Tenants that may change their place before long, and the places (epochs of before).

        None where it is too early to have anything ready there.
        """
        rows = await self.pool.rows(_SQL.statement("moving"), limit)
        return {
            TenantId(row["tenant_id"]): row["place"] and placement_of_text(row["place"])
            for row in rows
        }

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """Tenants in the order of their names, starting after `after`."""
        rows = await self.pool.rows(_SQL.statement("tenants"), after or "", self.page_length(limit))
        return [tenant_of_row(row) for row in rows]

    async def metadata(self, tenant_no: TenantNo) -> dict[str, Any]:
        """The tenant's metadata as it was given when the tenant was added."""
        text = await self.pool.value(_SQL.statement("metadata"), tenant_no)
        if text is None:
            raise TenantNotFoundError(f"there is no tenant with number {tenant_no}")
        found: dict[str, Any] = json.loads(text)
        return found

    async def known_tenants(self, numbers: list[TenantNo]) -> set[TenantNo]:
        """Those of these numbers that are tenants'."""
        rows = await self.pool.rows(_SQL.statement("known_tenants"), numbers)
        return {TenantNo(row["tenant_no"]) for row in rows}

    async def count_by_strategy(self) -> dict[StrategyName, int]:
        """How many tenants each strategy holds; those without a placement are not counted."""
        rows = await self.pool.rows(_SQL.statement("count_by_strategy"))
        if sum(row["changes"] for row in rows) > _CHANGES_MAX:
            # It makes the next count shorter; this one is right without.
            with suppress(TenancyError):
                await self.pool.write(_SQL.statement("fold_placement_changes"))
        return {
            StrategyName.HYBRID
            if row["hybrid"]
            else STRATEGY_OF_LEVEL[IsolationLevel(row["level"])]: row["tenants"]
            for row in rows
            if row["tenants"]
        }

    async def hybrid_counts(self) -> dict[ServerName, int]:
        """How many hybrid tenants each server has; servers without one are left out."""
        rows = await self.pool.rows(_SQL.statement("hybrid_counts"))
        return {ServerName(row["server"]): row["tenants"] for row in rows}

    async def set_status(
        self, tenant_no: TenantNo, status: TenantStatus, *, expected: TenantStatus
    ) -> None:
        """Change the status from `expected` to `status`; `ConflictError` when it is another one.

        A tenant that is being moved is neither suspended nor deleted. A move that begins at the
        same moment either sees the new status, or is seen here.
        """
        if await self.pool.write(_SQL.statement("set_status"), tenant_no, status, expected):
            if status not in (TenantStatus.SUSPENDED, TenantStatus.DELETING):
                return
            if not await self.pool.value(_SQL.statement("has_move"), tenant_no):
                return
            await self.pool.write(_SQL.statement("set_status"), tenant_no, expected, status)
            raise ConflictError(
                "a move of the tenant has just begun; nothing was changed: cancel it first"
            )
        found = await self.pool.value(_SQL.statement("status"), tenant_no)
        if found is None:
            raise TenantNotFoundError(f"there is no tenant with number {tenant_no}")
        raise ConflictError(f"the tenant's status is {found}, not {expected}")

    async def set_active(self, tenants: Sequence[TenantNo]) -> frozenset[TenantNo]:
        """Change the status of many from CREATING to ACTIVE; those of which that was the status."""
        changed = await self.pool.write(
            _SQL.statement("set_statuses"),
            list(tenants),
            TenantStatus.ACTIVE,
            TenantStatus.CREATING,
        )
        return frozenset(changed)

    async def set_placement(
        self, tenant_no: TenantNo, placement: Placement, *, expected_epoch: Epoch | None
    ) -> None:
        """Replace the placement of epoch `expected_epoch`; None when there must be none yet.

        The new epoch must be higher (`InvalidInputError`). Raises `PlacementChangedError` when
        the placement has another epoch: this is the moment at which of two moves one wins.
        """
        if expected_epoch is not None and placement.epoch <= expected_epoch:
            raise InvalidInputError(
                f"the epoch of a placement only rises: {placement.epoch} follows {expected_epoch}"
            )
        values = (tenant_no, *_placement_values(placement))
        try:
            if expected_epoch is None:
                done = await self.pool.write(_SQL.statement("first_placement"), *values)
            else:
                done = await self.pool.write(
                    _SQL.statement("next_placement"), *values, expected_epoch
                )
        except asyncpg.ForeignKeyViolationError as error:
            raise _missing(error, tenant_no, placement.server) from None
        if done is None:
            raise PlacementChangedError(
                f"the placement of tenant number {tenant_no} is not at epoch {expected_epoch}"
            )

    async def remove_tenant(self, tenant_no: TenantNo) -> None:
        """Forget a tenant with status DELETING, with its placement and API keys.

        Call it after its data and its namespaces are gone. A tenant that is gone already is no
        error; one with another status, or with a namespace, is `ConflictError`.
        """
        try:
            if await self.pool.write(_SQL.statement("remove_tenant"), tenant_no):
                return
        except asyncpg.ForeignKeyViolationError:
            raise ConflictError(f"tenant number {tenant_no} still has a namespace") from None
        found = await self.pool.value(_SQL.statement("status"), tenant_no)
        if found is not None:
            raise ConflictError(f"the tenant's status is {found}, not {TenantStatus.DELETING}")

    # Servers

    async def add_server(self, name: ServerName, region: Region | None) -> None:
        """Make a server known, or change its region."""
        await self.pool.write(_SQL.statement("add_server"), name, region)

    async def servers(self) -> dict[ServerName, Region | None]:
        """The servers that tenants may be on, with their regions."""
        rows = await self.pool.rows(_SQL.statement("servers"))
        return {ServerName(row["name"]): _region(row["region"]) for row in rows}

    async def types_of_logins(
        self, roles: Sequence[RoleName]
    ) -> dict[tuple[ServerName, RoleName], frozenset[TenantType]]:
        """Of which types the tenants are that these logins work for."""
        found: dict[tuple[ServerName, RoleName], set[TenantType]] = {}
        for row in await self.pool.rows(_SQL.statement("types_of_logins"), list(roles)):
            key = (ServerName(row["server"]), RoleName(row["role"]))
            found.setdefault(key, set()).add(TenantType(row["tenant_type"]))
        return {key: frozenset(types) for key, types in found.items()}

    # Namespaces

    async def record_namespace(self, record: NamespaceRecord) -> None:
        """Note where a schema stands; what was noted before is replaced."""
        try:
            await self.pool.write(
                _SQL.statement("record_namespace"),
                record.server,
                record.database,
                record.schema,
                record.kind,
                record.tenant_no,
                record.version,
                record.state,
                record.error,
            )
        except asyncpg.ForeignKeyViolationError as error:
            raise _missing(error, record.tenant_no, record.server) from None

    async def namespace(
        self, server: ServerName, database: DatabaseName, schema: SchemaName
    ) -> NamespaceRecord | None:
        """What is noted of one schema."""
        row = await self.pool.row(_SQL.statement("namespace"), server, database, schema)
        return None if row is None else _namespace(row)

    async def namespaces(
        self,
        *,
        after: NamespaceRecord | None = None,
        limit: int = 100,
        kind: NamespaceKind | None = None,
        behind: int | None = None,
    ) -> list[NamespaceRecord]:
        """Namespaces in the order of server, database and schema, starting after `after`.

        With `behind`, only those that are below that version or not in state CURRENT.
        """
        start = (after.server, after.database, after.schema) if after else ("", "", "")
        rows = await self.pool.rows(
            _SQL.statement("namespaces"), *start, kind, behind, self.page_length(limit)
        )
        return [_namespace(row) for row in rows]

    async def remove_namespace(
        self, server: ServerName, database: DatabaseName, schema: SchemaName
    ) -> None:
        """Forget a schema that is gone."""
        await self.pool.write(_SQL.statement("remove_namespace"), server, database, schema)

    # Migrations

    async def add_migration(self, migration: MigrationRecord) -> bool:
        """Register a migration; False when it was registered already.

        Raises `MigrationConflictError` when its number has another text.
        """
        added = await self.pool.write(
            _SQL.statement("insert_migration"),
            migration.number,
            migration.name,
            migration.sql,
            migration.checksum,
        )
        if added is not None:
            return True
        found = await self.pool.value(_SQL.statement("migration_checksum"), migration.number)
        if found != migration.checksum:
            raise MigrationConflictError(
                f"migration {migration.number} exists already with another text; add a new one"
            )
        return False

    async def migrations(
        self, *, after: int = 0, limit: int | None = None
    ) -> list[MigrationRecord]:
        """Registered migrations in the order of their numbers, starting after `after`.

        Without `limit`, one page of the greatest length.
        """
        length = self.page_length(limit or self._settings.catalog_page_rows_max)
        rows = await self.pool.rows(_SQL.statement("migrations"), after, length)
        return [MigrationRecord(**row) for row in rows]

    async def newest_migration(self) -> int:
        """The highest registered number; 0 when there is none."""
        found: int = await self.pool.value(_SQL.statement("newest_migration"))
        return found

    # Named operations

    async def named_operation(self, name: str) -> NamedOperation:
        """The operation of that name, or `OperationNotFoundError`."""
        sql = await self.pool.value(_SQL.statement("named_operation"), name)
        if sql is None:
            raise OperationNotFoundError(f"there is no named operation {name}")
        return NamedOperation(name=name, sql=sql)

    async def named_operations(
        self, *, after: str | None = None, limit: int = 100
    ) -> list[NamedOperation]:
        """Named operations in the order of their names, starting after `after`."""
        rows = await self.pool.rows(
            _SQL.statement("named_operations"), after or "", self.page_length(limit)
        )
        return [NamedOperation(**row) for row in rows]

    async def add_named_operation(self, operation: NamedOperation) -> bool:
        """Register an operation under a new name; False when there is one of that name."""
        name = parse_word(operation.name, "operation name")
        added = await self.pool.write(_SQL.statement("add_named_operation"), name, operation.sql)
        return added is not None

    async def set_named_operation(self, operation: NamedOperation) -> None:
        """Register an operation, or give it another text."""
        name = parse_word(operation.name, "operation name")
        await self.pool.write(_SQL.statement("set_named_operation"), name, operation.sql)

    async def remove_named_operation(self, name: str) -> None:
        """Forget an operation, or `OperationNotFoundError`."""
        if await self.pool.write(_SQL.statement("remove_named_operation"), name) is None:
            raise OperationNotFoundError(f"there is no named operation {name}")

    # Numbers of binding keys

    async def key_numbers(self) -> list[KeyNumber]:
        """The numbers of binding keys, in their order."""
        rows = await self.pool.rows(_SQL.statement("binding_key_numbers"))
        return [KeyNumber(**row) for row in rows]

    async def introduce_key(self) -> int:
        """Make the next number known; the number."""
        try:
            key_id: int = await self.pool.write(_SQL.statement("introduce_binding_key"))
        except asyncpg.UniqueViolationError:
            raise ConflictError("another rotation of the binding keys has just begun") from None
        return key_id

    async def start_signing(self, key_id: int) -> bool:
        """Mark a number as one to sign with; False when it is unknown or retired."""
        return await self.pool.write(_SQL.statement("start_signing"), key_id) is not None

    async def retire_key(self, key_id: int) -> bool:
        """Mark a number as retired; False unless a later one signs."""
        return await self.pool.write(_SQL.statement("retire_key_number"), key_id) is not None

    def page_length(self, limit: int) -> int:
        """`limit` when a page may be that long, or `InvalidInputError`."""
        longest = self._settings.catalog_page_rows_max
        if not 1 <= limit <= longest:
            raise InvalidInputError(f"limit is {limit}; use 1 to {longest}")
        return limit


def _placement_values(placement: Placement) -> tuple[str | int | None, ...]:
    """A placement in the order of its columns."""
    return (
        placement.level,
        placement.server,
        placement.database,
        placement.schema,
        placement.role,
        placement.epoch,
        placement.sensitive_schema,
    )


def tenant_of_row(row: asyncpg.Record) -> Tenant:
    """The tenant that a row of the catalog is, joined with its placement."""
    placement = None
    if row["level"] is not None:
        placement = Placement(
            level=IsolationLevel(row["level"]),
            server=ServerName(row["server"]),
            database=DatabaseName(row["database"]),
            schema=SchemaName(row["schema"]),
            role=RoleName(row["role"]),
            epoch=Epoch(row["epoch"]),
            sensitive_schema=SchemaName(row["sensitive_schema"])
            if row["sensitive_schema"]
            else None,
        )
    return Tenant(
        tenant_id=TenantId(row["tenant_id"]),
        tenant_no=TenantNo(row["tenant_no"]),
        tenant_type=TenantType(row["tenant_type"]),
        status=TenantStatus(row["status"]),
        region=_region(row["region"]),
        compliance=tuple(row["compliance"]),
        placement=placement,
        cache=_cache(row),
    )


def _cache(row: asyncpg.Record) -> TenantCache | None:
    """Whether results are kept, where the row tells of it."""
    serving = row.get("cache_serving")
    if serving is None:
        return None
    ended_s = row["cache_ended_s"]
    return TenantCache(
        nonce=row["cache_nonce"],
        version=row["cache_version"],
        serving=bool(serving),
        wanted=row["cache_wanted"],
        pinned=row["cache_pinned"],
        ended_s=None if ended_s is None else monotonic() - ended_s,
    )


def _namespace(row: asyncpg.Record) -> NamespaceRecord:
    values = dict(row)
    values["kind"] = NamespaceKind(values["kind"])
    values["state"] = NamespaceState(values["state"])
    return NamespaceRecord(**values)


def _region(text: str | None) -> Region | None:
    return None if text is None else Region(text)


def _json(metadata: Any) -> str:
    try:
        return json.dumps(dict(metadata), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"metadata must be what JSON can carry: {error}") from None


def _missing(
    error: asyncpg.ForeignKeyViolationError, tenant_no: TenantNo | None, server: ServerName
) -> TenantNotFoundError | ServerNotFoundError:
    """Which of the two that a row refers to is not there."""
    if "tenant" in (error.constraint_name or ""):
        return TenantNotFoundError(f"there is no tenant with number {tenant_no}")
    return ServerNotFoundError(f"server {server!r} is not in the catalog")
