"""A namespace: one schema of one database that holds the tables of the tenant-neutral schema.

The catalog's table `namespace` has a row for each. Its column `version` is a report; what counts is
the table `tenancy_schema_version` inside the namespace, which changes in the same transaction as
the tables do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)

#: The schema of the shared tables, of the template, and of a tenant that has its own database.
APP_SCHEMA: Final = SchemaName("app")
#: The schema in which a migration is tried first and from which new tenants get their first rows.
REFERENCE_SCHEMA: Final = SchemaName("tenancy_reference")
#: The tenant that the rows of a reference schema belong to. Real tenants start at 1.
REFERENCE_TENANT: Final = TenantNo(0)


class NamespaceKind(StrEnum):
    """Whose rows a namespace holds."""

    #: All ROW tenants of a server.
    SHARED = "shared"
    #: One SCHEMA or DATABASE tenant.
    OWN = "own"
    #: Nobody: the database it is in is cloned for DATABASE tenants.
    TEMPLATE = "template"
    #: Tenant 0: what a new tenant starts with.
    REFERENCE = "reference"


class NamespaceState(StrEnum):
    """How the last migration of a namespace went."""

    CURRENT = "current"
    MIGRATING = "migrating"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Namespace:
    """One schema of one database of one server.

    `tenant_no` is set for the kind OWN alone. `role` is the login that works there; it is needed
    when the namespace is made, and later it is read from the schema's own grants.
    """

    server: ServerName
    database: DatabaseName
    schema: SchemaName
    kind: NamespaceKind
    tenant_no: TenantNo | None = None
    role: RoleName | None = None

    def __str__(self) -> str:
        return f"{self.server}/{self.database}/{self.schema}"


def template_database(database: str) -> DatabaseName:
    """The database that DATABASE tenants are cloned from, for `Settings.database`."""
    return DatabaseName(f"{database}_template")
