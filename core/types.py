"""The nouns of the product: tenants, where they are, and what they ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    Region,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
    parse_tenant_id,
)


class IsolationLevel(StrEnum):
    """How a tenant's data is physically kept apart."""

    ROW = "row"
    SCHEMA = "schema"
    DATABASE = "database"


class TenantType(StrEnum):
    """What the customer pays for. Feeds limits and choices, never the boundary."""

    FREE = "free"
    STANDARD = "standard"
    PREMIUM = "premium"
    ENTERPRISE = "enterprise"


class TenantStatus(StrEnum):
    """Where a tenant stands in its life."""

    CREATING = "creating"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETING = "deleting"


class StatementKind(StrEnum):
    """What a statement does to the data."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantContext:
    """A tenant as a caller names it, with what the caller wishes for it.

    `isolation_level` None leaves the choice to the orchestrator. `compliance` holds regimes in
    lower case (`hipaa`, `pci_dss`, `gdpr`, ...). Raises `InvalidInputError`.
    """

    tenant_id: TenantId | str
    isolation_level: IsolationLevel | None = None
    tenant_type: TenantType = TenantType.STANDARD
    region: Region | str | None = None
    compliance: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tenant_id", parse_tenant_id(self.tenant_id))
        object.__setattr__(
            self, "isolation_level", member(IsolationLevel, self.isolation_level, optional=True)
        )
        object.__setattr__(self, "tenant_type", member(TenantType, self.tenant_type))
        if isinstance(self.compliance, str):
            raise InvalidInputError("compliance must be a list of words, not one string")
        object.__setattr__(self, "compliance", tuple(str(word).lower() for word in self.compliance))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a tenant's data is now. `role` is the login that works there.

    `sensitive_schema` is set for a hybrid tenant: its tables that are marked sensitive are in that
    schema of its own, the others in `schema`, which it shares.
    """

    level: IsolationLevel
    server: ServerName
    database: DatabaseName
    schema: SchemaName
    role: RoleName
    epoch: Epoch
    sensitive_schema: SchemaName | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantCache:
    """That a tenant's results are kept, and how processes agree about it.

    `nonce` names one period in which every write is announced before it can be committed; None
    while there is none. `version` is the version of the tenant's tables in that period. `serving`
    says that every write that was not announced has ended, so that results may be kept and given.
    `ended_s` is when the last period ended (`time.monotonic` of the process that asked). `wanted`
    is false while the keeping is being switched off; `pinned`: the tenant is to be ready before it
    asks.
    """

    nonce: str | None = None
    version: int = 0
    serving: bool = False
    ended_s: float | None = field(default=None, compare=False)
    wanted: bool = field(default=True, compare=False)
    pinned: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """A tenant as the catalog knows it. `placement` is None until the first one was chosen.

    `cache` is None unless results are to be kept for it.
    """

    tenant_id: TenantId
    tenant_no: TenantNo
    tenant_type: TenantType
    status: TenantStatus
    region: Region | None
    compliance: tuple[str, ...]
    placement: Placement | None
    cache: TenantCache | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantSize:
    """How much data a tenant has: rows, and the bytes of their values, indexes left out.

    Counting stops at a limit; `complete` says that it did not get there, so that the figures are
    exact. Otherwise they are lower bounds.
    """

    rows: int
    bytes: int
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One statement of a tenant.

    `params` is a sequence for `$1` placeholders or a mapping for `:name` placeholders; values are
    in wire form (see `QueryResult`) or the Python objects that asyncpg takes. `deadline_s` is the
    time left, in seconds, and `idempotency_key` makes a write happen once.
    """

    query: str
    params: Sequence[Any] | Mapping[str, Any] = ()
    deadline_s: float | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a result: its name and its PostgreSQL type, as `format_type` spells it."""

    name: str
    type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryResult:
    """What one statement returned.

    `rows` hold values in wire form: what JSON can carry without loss. Booleans, numbers of types
    smallint to bigint, real and double precision, text, json and jsonb, and arrays of these are
    their JSON counterparts; every other type is the text that PostgreSQL writes for it (so numeric
    keeps its digits). NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".
    `row_count` is the number of rows returned, or changed when nothing is returned.
    """

    columns: tuple[Column, ...]
    rows: list[list[Any]]
    row_count: int


def member(kind: type[StrEnum], value: object, *, optional: bool = False) -> StrEnum | None:
    """The member of `kind` that `value` is or spells; `InvalidInputError` names the choices."""
    if value is None and optional:
        return None
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        choices = ", ".join(kind)
        raise InvalidInputError(f"{kind.__name__} {value!r} is unknown; use {choices}") from None
