"""What a server is, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("roles.sql")

_OLDEST_MAJOR = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """A server as its admin connection sees it."""

    name: ServerName
    version: str
    version_num: int
    admin: str
    superuser: bool


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
    )
