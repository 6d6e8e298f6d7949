"""Deletes the rows of one tenant from tables that it shares with others.

Row security is what limits the work to that tenant: it is done as the owner under a binding of the
tenant, in batches, so that no transaction holds many locks and an interruption loses little.
"""

from __future__ import annotations

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import SchemaName, quote_identifier
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("provisioning.sql")


async def remove_rows(
    connection: asyncpg.Connection, schema: SchemaName, binding: str, batch_rows: int
) -> None:
    """Delete what `binding`'s tenant has in every table of `schema`. Can be run again.

    Tables are emptied in rounds: one whose rows are still pointed to waits for the next round. When
    a round gets nowhere the tables point to each other, and one statement empties them all, since
    PostgreSQL checks foreign keys at the end of a statement.
    """
    rows = await connection.fetch(_SQL.statement("scoped_tables"), schema)
    left = [row["name"] for row in rows]
    while left:
        blocked = [
            table
            for table in left
            if not await _empty(connection, schema, table, binding, batch_rows)
        ]
        if len(blocked) == len(left):
            await _empty_together(connection, schema, blocked, binding)
            return
        left = blocked


async def _empty(
    connection: asyncpg.Connection, schema: SchemaName, table: str, binding: str, batch_rows: int
) -> bool:
    """Delete batch after batch; False when a foreign key stands in the way."""
    text = _SQL.statement("delete_rows", schema=schema, table=table)
    while True:
        try:
            async with connection.transaction():
                await _act_for(connection, binding)
                tag = await connection.execute(text, batch_rows)
        except asyncpg.ForeignKeyViolationError:
            return False
        if int(tag.split()[-1]) < batch_rows:
            return True


async def _empty_together(
    connection: asyncpg.Connection, schema: SchemaName, tables: list[str], binding: str
) -> None:
    names = [f"{quote_identifier(schema)}.{quote_identifier(table)}" for table in tables]
    deletes = [f"d{index} as (delete from {name})" for index, name in enumerate(names)]  # noqa: S608
    try:
        async with connection.transaction():
            await _act_for(connection, binding)
            await connection.execute(f"with {', '.join(deletes)} select 1")
    except asyncpg.ForeignKeyViolationError as error:
        raise ConflictError(
            f"rows of the tenant cannot be deleted: constraint {error.constraint_name} forbids it"
        ) from None


async def _act_for(connection: asyncpg.Connection, binding: str) -> None:
    await connection.execute(_SQL.statement("work_as_owner"))
    await connection.execute(_SQL.statement("bind"), binding)
