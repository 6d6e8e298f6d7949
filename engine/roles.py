"""The audit of roles and rights: would anything here let a tenant cross its boundary?

It reads the system catalogs and changes nothing. A finding names the object, what is wrong with it
and the SQL that mends it; the runtime does not start while there is an unsafe one. The rules are
the queries of `sql/audit.sql` and `sql/audit_rights.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.findings import Finding, Severity, by_owner
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
_RIGHTS_SQL = SqlFile("audit_rights.sql")
_ROLES_SQL = SqlFile("roles.sql")
#: The name of a server where there is but one.
_ONE = ServerName("main")

_OF_A_SERVER = ("attributes", "memberships", "ownership", "role_settings")
_OF_A_DATABASE = (
    "schema_owners",
    "schema_rights",
    "shared_own_schemas",
    "relation_owners",
    "row_security",
    "policies",
    "table_rights",
    "exempt_relations",
    "definer_functions",
)
_RIGHTS_OF_A_DATABASE = (
    "sequence_rights",
    "function_rights",
    "closed_functions",
    "language_rights",
    "default_rights",
    "type_rights",
    "stray_schemas",
    "foreign_access",
    "large_objects",
    "extensions",
    "event_triggers",
    "replication",
    "hidden_rights",
)
#: Whose mends may hold rows against definitions that are users', or make such definitions.
_OWNERS_MENDS = frozenset(
    {
        "row_security",
        "policies",
        "exempt_relations",
        "tenant_columns",
        "tenant_defaults",
        "foreign_keys",
        "keys",
        "inheritance",
        "unlike_reference",
    }
)


async def audit_server(
    connection: asyncpg.Connection, *, settings: Settings, server: ServerName = _ONE
) -> list[Finding]:
    """The attributes, memberships, possessions and settings of all logins; rights on databases."""
    shared = shared_database(settings)
    ours = await connection.fetch(
        _ROLES_SQL.statement("databases_of_ours"),
        [shared, template_database(settings)],
        OWNER_ROLE,
    )
    databases = [row["datname"] for row in ours]
    roles = await runtime_roles(connection, databases)
    findings: list[Finding] = []
    for name in _OF_A_SERVER:
        findings += await findings_of(
            connection, _SQL, name, roles, OWNER_ROLE, server=server, whole=True
        )
    rights = ("database_rights", roles, OWNER_ROLE, databases, shared)
    findings += await findings_of(connection, _SQL, *rights, server=server, whole=True)
    for name, *values in (
        ("parameter_rights",),
        ("database_settings", databases),
        ("login_limits", roles),
        ("idle_slots",),
    ):
        findings += await findings_of(
            connection, _RIGHTS_SQL, name, *values, server=server, whole=True
        )
    return findings


async def audit_database(
    connection: asyncpg.Connection, *, server: ServerName = _ONE
) -> list[Finding]:
    """Schemas, tables, policies and functions of the database that `connection` is in.

    The connection's search path must hold nothing but `pg_catalog`, as the admin's does: rules are
    compared as PostgreSQL writes them, with qualified names.
    """
    findings: list[Finding] = []
    for name in _OF_A_DATABASE:
        findings += await findings_of(connection, _SQL, name, server=server)
    seen = {(finding.subject, finding.problem) for finding in findings}
    for name in _RIGHTS_OF_A_DATABASE:
        # A function can be wrong by two rules and needs one mend.
        for finding in await findings_of(connection, _RIGHTS_SQL, name, server=server):
            if (finding.subject, finding.problem) not in seen:
                findings.append(finding)
    return findings


async def runtime_roles(connection: asyncpg.Connection, databases: Sequence[str]) -> list[str]:
    """The fixed logins, and the tenants' logins that have rights in `databases`."""
    rows = await connection.fetch(
        _SQL.statement("runtime_roles"), [ROWS_ROLE, CONTROL_ROLE, HYBRID_ROLE], databases
    )
    return [row["rolname"] for row in rows]


async def findings_of(
    connection: asyncpg.Connection,
    file: SqlFile,
    name: str,
    *values: object,
    server: ServerName = _ONE,
    whole: bool = False,
) -> list[Finding]:
    """What a query of findings says: subject, problem, mend, and what else it has columns for.

    A mend of several statements is an array. `whole`: it is about the server as a whole, whatever
    database the connection is in.
    """
    rows = await connection.fetch(file.statement(name), *values)
    inside = bool(rows) and not whole
    here = str(await connection.fetchval("select current_database()")) if inside else ""
    return [finding_of(row, check=name, server=server, database=here) for row in rows]


def finding_of(row: asyncpg.Record, *, check: str, server: ServerName, database: str) -> Finding:
    """What a row of a query of findings says."""
    mend = _statements(row["mend"])
    return Finding(
        check=check,
        severity=Severity(row.get("severity", Severity.UNSAFE)),
        server=server,
        database=row.get("database", database),
        subject=row["subject"],
        problem=row["problem"],
        statements=by_owner(mend) if check in _OWNERS_MENDS else mend,
        advice=row.get("advice") or "",
        by_hand=row.get("by_hand", False),
    )


def _statements(mend: str | Sequence[str] | None) -> tuple[str, ...]:
    return (mend,) if mend and isinstance(mend, str) else tuple(mend or ())
