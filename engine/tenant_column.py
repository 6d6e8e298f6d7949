"""The column that tells tenants apart, and the other names that a user's schema may not use."""

from __future__ import annotations

from typing import Final

#: The column that every table of tenants has and no tenant sees.
TENANT_COLUMN: Final = "tenant_id"
#: The one policy of every table.
ISOLATION_POLICY: Final = "tenancy_isolation"
#: The runtime's table of applied migrations, in every namespace; it belongs to no tenant.
VERSION_TABLE: Final = "tenancy_schema_version"
#: The runtime's table of idempotency keys; it is scoped like a table of the user's.
IDEMPOTENCY_TABLE: Final = "tenancy_idempotency"


def is_runtime_name(name: str) -> bool:
    """Whether a name is kept for the runtime: nothing in a user's schema may bear it."""
    return name == TENANT_COLUMN or name.startswith("tenancy_")


def is_reserved(name: str) -> bool:
    """Whether an object of a user's schema may not be called `name`.

    PostgreSQL keeps names that begin with `pg_` for its catalogs, which a bare name would reach.
    """
    return is_runtime_name(name) or name.startswith("pg_")
