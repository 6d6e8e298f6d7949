"""The audit of shapes: is every table of tenants kept apart by its own columns and keys?

Scoping makes tables right (`scope_plan`); this finds what somebody has changed since. What differs
from the schema of the users is found by comparison (`shape_comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.roles import findings_of
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("audit_shape.sql")
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
