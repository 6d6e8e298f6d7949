"""What a server is, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("roles.sql")

_OLDEST_MAJOR = 15
_NEWEST_TESTED_MAJOR = 18
#: The releases of 2025-08-14 (CVE-2025-8713, -8714, -8715: statistics that leak rows past row
#: security, and dumps that run code). Earlier ones of these majors have known holes.
_SAFE_MINOR = {15: 14, 16: 10, 17: 6}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """A server as its admin connection sees it."""

    name: ServerName
    version: str
    version_num: int
    admin: str
    superuser: bool
    notes: tuple[str, ...]

    @property
    def major_version(self) -> int:
        """15, 16, ..."""
        return self.version_num // 10_000


async def read_facts(connection: asyncpg.Connection, server: ServerName) -> ServerFacts:
    """The facts; `SetupError` when the server or its admin role cannot be used."""
    (row,) = await connection.fetch(_SQL.statement("facts"))
    version_num: int = row["version_num"]
    if version_num < _OLDEST_MAJOR * 10_000:
        raise SetupError(
            f"server {server!r} is PostgreSQL {row['version']}; {_OLDEST_MAJOR} or later is needed"
        )
    if row["replica"]:
        raise SetupError(f"server {server!r} is a read replica; give the DSN of the primary")
    if not row["superuser"] and not (row["createrole"] and row["createdb"]):
        raise SetupError(
            f"the admin role of server {server!r} needs more rights; let a superuser run: "
            f"alter role {row['admin']} createrole createdb"
        )
    return ServerFacts(
        name=server,
        version=row["version"],
        version_num=version_num,
        admin=row["admin"],
        superuser=row["superuser"],
        notes=(*version_notes(server, version_num), *await _hba_notes(connection, server)),
    )


def version_notes(server: ServerName, version_num: int) -> tuple[str, ...]:
    """What to say about a version that can be used."""
    major, minor = divmod(version_num, 10_000)
    if minor < _SAFE_MINOR.get(major, 0):
        return (
            f"{server}: PostgreSQL {major}.{minor} has known security holes; "
            f"upgrade to {major}.{_SAFE_MINOR[major]} or later",
        )
    if major > _NEWEST_TESTED_MAJOR:
        return (f"{server}: PostgreSQL {major} is newer than what this release was tested with",)
    return ()


async def _hba_notes(connection: asyncpg.Connection, server: ServerName) -> tuple[str, ...]:
    """Lines of pg_hba.conf that let somebody in without a password; none when it is unreadable."""
    try:
        rows = await connection.fetch(_SQL.statement("trusting_lines"))
    except asyncpg.InsufficientPrivilegeError:
        return ()
    return tuple(
        f"{server}: pg_hba.conf line {row['line_number']} lets {', '.join(row['user_name'])} into "
        f"{', '.join(row['database'])} without a password; use scram-sha-256"
        for row in rows
    )
