"""A namespace: one schema of one database that holds the tables of the tenant-neutral schema.

The catalog's table `namespace` has a row for each. Its column `version` is a report; what counts is
the table `tenancy_schema_version` inside the namespace, which changes in the same transaction as
the tables do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.catalog_records import NamespaceKind, NamespaceRecord
from tenancy.data_isolation.engine.layout import (
    APP_SCHEMA,
    REFERENCE_SCHEMA,
    ROWS_ROLE,
    shared_database,
    template_database,
)

#: The tenant that the rows of a reference schema belong to. Real tenants start at 1, and nobody can
#: work for this one: it has no fence.
REFERENCE_TENANT: Final = TenantNo(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Namespace:
    """One schema of one database of one server.

    SHARED holds all ROW tenants of a server, OWN one SCHEMA or DATABASE tenant (`tenant_no`),
    TEMPLATE nobody (its database is cloned for DATABASE tenants), REFERENCE what a new tenant
    starts with. `role` is the login that works there: needed when a namespace of kind OWN is made;
    later the schema's own access list says it.
    """

    server: ServerName
    database: DatabaseName
    schema: SchemaName
    kind: NamespaceKind
    tenant_no: TenantNo | None = None
    role: RoleName | None = None

    @classmethod
    def of_record(cls, record: NamespaceRecord) -> Namespace:
        """The namespace that a row of the catalog is about."""
        return cls(
            server=record.server,
            database=record.database,
            schema=record.schema,
            kind=record.kind,
            tenant_no=record.tenant_no,
        )

    def reference(self) -> Namespace:
        """The reference in the same database."""
        return Namespace(
            server=self.server,
            database=self.database,
            schema=REFERENCE_SCHEMA,
            kind=NamespaceKind.REFERENCE,
        )

    def __str__(self) -> str:
        return f"{self.server}/{self.database}/{self.schema}"


def fixed_namespaces(settings: Settings, server: ServerName) -> Iterator[Namespace]:
    """The namespaces that every server has, references first."""
    shared = Namespace(
        server=server,
        database=shared_database(settings),
        schema=APP_SCHEMA,
        kind=NamespaceKind.SHARED,
        role=ROWS_ROLE,
    )
    template = Namespace(
        server=server,
        database=template_database(settings),
        schema=APP_SCHEMA,
        kind=NamespaceKind.TEMPLATE,
    )
    yield shared.reference()
    yield template.reference()
    yield shared
    yield template
