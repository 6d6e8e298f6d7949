"""Which sessions can stand in for each other: those on one database with one role and schema."""

from __future__ import annotations

from typing import NamedTuple

from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, SchemaName, ServerName
from tenancy.data_isolation.core.types import Placement


class SessionKey(NamedTuple):
    """What a session is opened with. All ROW tenants of a server share one."""

    server: ServerName
    database: DatabaseName
    schema: SchemaName
    role: RoleName
    #: A hybrid tenant's own schema, in front of the shared one.
    sensitive_schema: SchemaName | None = None

    @classmethod
    def of(cls, placement: Placement) -> SessionKey:
        """The key of the sessions that work at a placement."""
        return cls(
            placement.server,
            placement.database,
            placement.schema,
            placement.role,
            placement.sensitive_schema,
        )

    @property
    def search_path(self) -> str:
        """Where a bare name is looked up, after PostgreSQL's own; temporary tables come last."""
        schemas = (self.sensitive_schema, self.schema)
        return ", ".join([*(f'"{name}"' for name in schemas if name is not None), "pg_temp"])
