"""Making databases that nobody can enter before they are closed to the public.

Run again after an interruption at any step, these end in the same state.
"""

from __future__ import annotations

import asyncpg

from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName
from tenancy.data_isolation.engine.layout import OWNER_ROLE
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("roles.sql")


async def ensure_database(
    connection: asyncpg.Connection, database: DatabaseName, *, template: DatabaseName | None = None
) -> bool:
    """A database of ours, empty or cloned from `template`; whether it was made now.

    `connection` is the admin's, to any other database and outside a transaction. CONNECT and TEMP
    are PUBLIC's by default, also in a clone, so they are revoked before the first connection is
    allowed. Raises `SetupError` when a database of that name belongs to somebody else.
    """
    found = await connection.fetchrow(_SQL.statement("database"), database)
    if found is not None and found["owner"] != OWNER_ROLE:
        raise SetupError(
            f"database {database!r} exists and belongs to {found['owner']!r}; choose another name "
            f'with TENANCY_DATABASE, or run: alter database "{database}" owner to {OWNER_ROLE}'
        )
    if found is not None and found["encoding"] != "UTF8":
        raise SetupError(f"database {database!r} has encoding {found['encoding']}; UTF8 is needed")
    made = found is None and await _create(connection, database, template)
    await connection.execute(_SQL.statement("close_database_to_public", database=database))
    if found is None or not found["allows_connections"]:
        await connection.execute(_SQL.statement("allow_connections", database=database))
    return made


async def grant_connect(
    connection: asyncpg.Connection, database: DatabaseName, role: RoleName
) -> None:
    """Let a login role into a database. Many may do so at once in connections to one database."""
    async with connection.transaction():
        await connection.execute(_SQL.statement("database_rights_lock"))
        await connection.execute(_SQL.statement("grant_connect", database=database, role=role))


async def revoke_connect(
    connection: asyncpg.Connection, database: DatabaseName, role: RoleName
) -> None:
    """Take all rights on a database from a login role. As with `grant_connect`."""
    async with connection.transaction():
        await connection.execute(_SQL.statement("database_rights_lock"))
        await connection.execute(_SQL.statement("revoke_connect", database=database, role=role))


async def _create(
    connection: asyncpg.Connection, database: DatabaseName, template: DatabaseName | None
) -> bool:
    """CREATE DATABASE; False when somebody else made it meanwhile."""
    if template is None:
        text = _SQL.statement("create_database", database=database, owner=OWNER_ROLE)
    else:
        text = _SQL.statement(
            "clone_database", database=database, owner=OWNER_ROLE, template=template
        )
    try:
        await connection.execute(text)
    except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
        return False
    return True
