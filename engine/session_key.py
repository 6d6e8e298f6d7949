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

    @classmethod
    def of(cls, placement: Placement) -> SessionKey:
        """The key of the sessions that work at a placement."""
        return cls(placement.server, placement.database, placement.schema, placement.role)
