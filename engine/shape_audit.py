"""The audit of shapes: is every table of tenants kept apart by its own columns and keys?

Scoping makes tables right (`scope_plan`); this finds what somebody has changed since. Each database
has a reference of the tables as they should be, and what differs from it is found as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.layout import APP_SCHEMA
from tenancy.data_isolation.engine.roles import findings_of
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("audit_shape.sql")
_OVERLAY_SQL = SqlFile("overlay.sql")
#: Foreign keys before the keys that they depend on: the mends are run in this order.
_RULES = ("tenant_columns", "foreign_keys", "keys", "rules", "inheritance")


async def audit_shape(
    connection: asyncpg.Connection,
    *,
    triggers: Mapping[tuple[str, str], str],
    server: ServerName,
) -> list[Finding]:
    """What is not scoped in the database that `connection`, the admin's, is in.

    `triggers` are those on the runtime's own tables: (table, trigger) → what makes it.
    """
    findings: list[Finding] = []
    for name in _RULES:
        findings += await findings_of(connection, _SQL, name, server=server)
    tables, names = [table for table, _ in triggers], [name for _, name in triggers]
    known = (tables, names, list(triggers.values()))
    return [*findings, *await findings_of(connection, _SQL, "own_triggers", *known, server=server)]


async def audit_defaults(connection: asyncpg.Connection, *, server: ServerName) -> list[Finding]:
    """Tables that do not fill in the tenant. No danger, and dear to find: not for every start."""
    return await findings_of(connection, _SQL, "tenant_defaults", server=server)


async def compare_with_reference(
    connection: asyncpg.Connection, schemas: Sequence[str], *, version: int, server: ServerName
) -> list[Finding] | None:
    """In what `schemas`, which are at `version`, differ from the reference beside them.

    None when that is at another version: migrations do not reach the references in the databases of
    single tenants.
    """
    if not await connection.fetchval(_SQL.statement("has_reference")):
        return None
    if await connection.fetchval(_SQL.statement("reference_version")) != version:
        return None
    return await findings_of(connection, _SQL, "unlike_reference", list(schemas), server=server)


async def compare_overlays(
    connection: asyncpg.Connection, *, server: ServerName, database: str
) -> list[Finding]:
    """In what the schemas of hybrid tenants differ from the shared one, as far as they have it."""
    overlays = await connection.fetch(_OVERLAY_SQL.statement("overlays"))
    schemas = [row["schema"] for row in overlays]
    rows = await connection.fetch(_OVERLAY_SQL.statement("unlike"), APP_SCHEMA, schemas)
    return [
        Finding(
            check="unlike_reference",
            severity=Severity.BROKEN,
            server=server,
            database=database,
            subject=f"{row['what']} in schema {row['overlay']}",
            problem=f"is not as in schema {APP_SCHEMA}",
            advice=f"make it as it is in schema {APP_SCHEMA}, or export the tenant, erase it and "
            "make it anew",
            by_hand=True,
        )
        for row in rows
    ]
