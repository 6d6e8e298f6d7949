"""Whether logins still have the passwords that the runtime gave them.

A login can change its own password (ALTER ROLE CURRENT_USER): whoever knows the new one can come
in by himself, and the runtime cannot. Roles have SCRAM verifiers (RFC 5803) that are derived from
the master key, so that the right one is known without anything being stored.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, role_password, role_salt, scram_verifier
from tenancy.data_isolation.core.identifiers import RoleName, ServerName
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.sql_files import SqlFile

CHECK = "passwords"

_SQL = SqlFile("leftovers.sql")
#: The derivation is slow on purpose; another thread leaves the event loop alone.
_AT_ONCE = 50


async def password_findings(
    connection: asyncpg.Connection, *, key: MasterKey, server: ServerName, roles: Sequence[str]
) -> list[Finding]:
    """Logins among `roles` whose password is another one.

    Raises `asyncpg.InsufficientPrivilegeError` when the admin is no superuser.
    """
    rows = await connection.fetch(_SQL.statement("verifiers"), list(roles))
    findings: list[Finding] = []
    for begin in range(0, len(rows), _AT_ONCE):
        part = [(str(row["name"]), str(row["verifier"])) for row in rows[begin : begin + _AT_ONCE]]
        for role in await asyncio.to_thread(_changed, key, server, part):
            findings.append(_finding(server, role))
    return findings


def _changed(key: MasterKey, server: ServerName, rows: Sequence[tuple[str, str]]) -> list[str]:
    return [
        role
        for role, stored in rows
        if not hmac.compare_digest(_verifier(key, server, role), stored)
    ]


def _finding(server: ServerName, role: str) -> Finding:
    # No SQL: it would have to show the verifier.
    return Finding(
        check=CHECK,
        severity=Severity.BROKEN,
        server=server,
        database="",
        subject=f"role {role}",
        problem="has another password than the runtime gave it",
        advice="tenancy doctor --mend",
    )


def _verifier(key: MasterKey, server: ServerName, role: str) -> str:
    name = RoleName(role)
    return scram_verifier(role_password(key, server, name), role_salt(key, server, name))
