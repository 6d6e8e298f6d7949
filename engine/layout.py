"""The fixed names inside every PostgreSQL server of the runtime."""

from __future__ import annotations

from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, SchemaName
from tenancy.data_isolation.core.settings import Settings

#: Owns databases, and tenants' schemas, tables and functions; nobody logs in as it. Users'
#: migrations work as this role.
OWNER_ROLE = RoleName("tenancy_owner")
#: Owns what the boundary rests on: the schemas `tenancy` and `catalog`. Nobody logs in as it, and
#: no migration can become it.
KEEPER_ROLE = RoleName("tenancy_keeper")
#: The login that works for all tenants of level ROW.
ROWS_ROLE = RoleName("tenancy_rows")
#: Nobody logs in as it: the logins of hybrid tenants are its members, and so may use the shared
#: tables that hold nothing sensitive. One role, because an access list of many has no room.
HYBRID_ROLE = RoleName("tenancy_hybrid")
#: The login that reads and writes the catalog, and nothing else.
CONTROL_ROLE = RoleName("tenancy_control")

#: Functions, keys and fence of the binding; in every database.
BINDING_SCHEMA = SchemaName("tenancy")
#: The tenants' tables: the shared ones of level ROW, a tenant's own at level DATABASE.
APP_SCHEMA = SchemaName("app")
#: The tables as users wrote them, to compare with.
REFERENCE_SCHEMA = SchemaName("tenancy_reference")
#: The overlay on which migrations are tried; it holds nobody's rows.
TRIAL_SCHEMA = SchemaName("tenancy_trial")
#: The catalog; in the first server's database only.
CATALOG_SCHEMA = SchemaName("catalog")

#: What opaque names of roles, schemas and databases look like (PostgreSQL regular expression).
OPAQUE_NAME_PATTERN = "^t_[0-9a-f]{20}$"


def shared_database(settings: Settings) -> DatabaseName:
    """The database of shared tables and own schemas; on the first server the catalog's too."""
    return DatabaseName(settings.database)


def template_database(settings: Settings) -> DatabaseName:
    """The database that those of tenants of level DATABASE are cloned from."""
    return DatabaseName(f"{settings.database}_template")
