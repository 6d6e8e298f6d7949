"""The names that the runtime adds to a tenant-neutral schema, and those it keeps for itself."""

from __future__ import annotations

from typing import Final

#: The column that every table gets.
TENANT_COLUMN: Final = "tenant_id"
#: The one policy of every table.
ISOLATION_POLICY: Final = "tenancy_isolation"
#: The runtime's table of applied migrations, in every namespace; it belongs to no tenant.
VERSION_TABLE: Final = "tenancy_schema_version"
#: The runtime's table of idempotency keys; it is scoped like a table of the user's.
IDEMPOTENCY_TABLE: Final = "tenancy_idempotency"

_RESERVED_PREFIXES: Final = ("tenancy_", "pg_")


def is_reserved(name: str) -> bool:
    """Whether a name belongs to the runtime or to PostgreSQL and not to a user's schema."""
    return name == TENANT_COLUMN or name.startswith(_RESERVED_PREFIXES)
