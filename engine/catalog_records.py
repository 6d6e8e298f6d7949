"""What the catalog's rows are in Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.core.types import IsolationLevel, Placement


class NamespaceKind(StrEnum):
    """What a schema with tenants' tables is for."""

    SHARED = "shared"
    OWN = "own"
    TEMPLATE = "template"
    REFERENCE = "reference"


class NamespaceState(StrEnum):
    """Whether a namespace has the tables that its version promises."""

    CURRENT = "current"
    MIGRATING = "migrating"
    FAILED = "failed"


class CredentialScope(StrEnum):
    """How far an API key reaches."""

    ADMIN = "admin"
    TENANT = "tenant"


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceRecord:
    """A schema with tenants' tables: where it is, and up to which migration it has come."""

    server: ServerName
    database: DatabaseName
    schema: SchemaName
    kind: NamespaceKind
    tenant_no: TenantNo | None = None
    version: int = 0
    state: NamespaceState = NamespaceState.CURRENT
    error: str | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationRecord:
    """A registered migration."""

    number: int
    name: str
    sql: str
    checksum: bytes
    registered_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedOperation:
    """SQL that tenants may run by a name."""

    name: str
    sql: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyNumber:
    """A number of binding keys, and where it stands in its life."""

    key_id: int
    signing: bool
    retired: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKeyRecord:
    """An API key without its secret."""

    key_id: str
    scope: CredentialScope
    tenant_no: TenantNo | None
    tenant_id: TenantId | None
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    #: When it got its present secret, and until when the one before is good as well.
    rotated_at: datetime | None
    previous_until: datetime | None
    #: Give or take `Settings.credential_use_interval_s`; None = never.
    last_used_at: datetime | None


def placement_text(placement: Placement) -> str:
    """A placement as JSON."""
    return json.dumps({name: getattr(placement, name) for name in placement.__slots__})


def placement_of_text(text: str) -> Placement:
    """The placement that a JSON text is."""
    found = json.loads(text)
    sensitive = found["sensitive_schema"]
    return Placement(
        level=IsolationLevel(found["level"]),
        server=ServerName(found["server"]),
        database=DatabaseName(found["database"]),
        schema=SchemaName(found["schema"]),
        role=RoleName(found["role"]),
        epoch=Epoch(found["epoch"]),
        sensitive_schema=None if sensitive is None else SchemaName(sensitive),
    )
