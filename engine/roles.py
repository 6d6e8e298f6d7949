"""The audit of roles and rights: would anything here let a tenant cross its boundary?

It reads the system catalogs and changes nothing. A finding names the object, what is wrong with it
and the SQL that mends it; the runtime does not start while there is one. The rules are the queries
of `sql/audit.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.layout import (
    CONTROL_ROLE,
    HYBRID_ROLE,
    OWNER_ROLE,
    ROWS_ROLE,
    shared_database,
    template_database,
)
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("audit.sql")
_ROLES_SQL = SqlFile("roles.sql")

_OF_A_SERVER = ("attributes", "memberships", "ownership", "role_settings")
_OF_A_DATABASE = (
    "schema_rights",
    "shared_own_schemas",
    "relation_owners",
    "row_security",
    "policies",
    "table_rights",
    "exempt_relations",
    "definer_functions",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleFinding:
    """Something that would let a tenant cross its boundary."""

    #: The database it was found in.
    database: str
    #: The role, database, schema, table or function.
    subject: str
    problem: str
    #: SQL that mends it.
    mend: str

    def __str__(self) -> str:
        return f"{self.subject} {self.problem} (database {self.database}); mend: {self.mend};"


async def audit_roles(connection: asyncpg.Connection, *, settings: Settings) -> list[RoleFinding]:
    """Everything about the server's roles, and about the database that `connection` is in."""
    return [
        *await audit_server(connection, settings=settings),
        *await audit_database(connection),
    ]


async def audit_server(connection: asyncpg.Connection, *, settings: Settings) -> list[RoleFinding]:
    """The attributes, memberships, possessions and settings of all logins; rights on databases."""
    shared = shared_database(settings)
    ours = await connection.fetch(
        _ROLES_SQL.statement("databases_of_ours"),
        [shared, template_database(settings)],
        OWNER_ROLE,
    )
    databases = [row["datname"] for row in ours]
    rows = await connection.fetch(
        _SQL.statement("runtime_roles"), [ROWS_ROLE, CONTROL_ROLE, HYBRID_ROLE], databases
    )
    roles = [row["rolname"] for row in rows]
    findings: list[RoleFinding] = []
    for name in _OF_A_SERVER:
        findings += await _findings(connection, name, roles, OWNER_ROLE)
    findings += await _findings(connection, "database_rights", roles, OWNER_ROLE, databases, shared)
    return findings


async def audit_database(connection: asyncpg.Connection) -> list[RoleFinding]:
    """Schemas, tables, policies and functions of the database that `connection` is in.

    The connection's search path must hold nothing but `pg_catalog`, as the admin's does: rules are
    compared as PostgreSQL writes them, with qualified names.
    """
    findings: list[RoleFinding] = []
    for name in _OF_A_DATABASE:
        findings += await _findings(connection, name)
    return findings


async def _findings(
    connection: asyncpg.Connection, name: str, *values: str | Sequence[str]
) -> list[RoleFinding]:
    rows = await connection.fetch(_SQL.statement(name), *values)
    database = str(await connection.fetchval("select current_database()")) if rows else ""
    return [
        RoleFinding(database=database, subject=row[0], problem=row[1], mend=row[2]) for row in rows
    ]
