"""Deletes the rows of one tenant from tables that it shares with others.

Rules this module keeps:

* Row security is what limits the work to that tenant: it is done as the owner under a binding of
  the tenant, in batches, so that no transaction holds many locks.
* Users' code has no part in it. Triggers stay silent where the admin may say so; where it may not,
  what they call runs inside `tenancy.run`, in which no role can be changed.
* It ends only when every table was seen to be empty for the tenant.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import SchemaName, TenantNo, quote_identifier
from tenancy.data_isolation.engine.fence import remove_fence
from tenancy.data_isolation.engine.runner import ask_query, check_runner
from tenancy.data_isolation.engine.scoping import as_keeper, enter_schema
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("provisioning.sql")
_NAMESPACE_SQL = SqlFile("namespace.sql")
_SETTLE = "set constraints all immediate"


async def remove_rows(
    connection: asyncpg.Connection, schema: SchemaName, binding: str, batch_rows: int
) -> None:
    """Delete what `binding`'s tenant has in every table of `schema`. Can be run again.

    Tables are emptied in rounds: one whose rows are still pointed to waits for the next round. When
    a round gets nowhere the tables point to each other, and one statement empties them all, since
    PostgreSQL checks foreign keys at the end of a statement. Raises `ConflictError` when rows stay.
    """
    removal = _Removal(connection, schema, binding, batch_rows)
    left = await removal.filled()
    for _ in range(len(left) + 1):
        for table in left:
            # Another table's rows still point here: its turn comes first.
            with suppress(asyncpg.ForeignKeyViolationError):
                await removal.empty(table)
        before, left = left, await removal.filled()
        if not left:
            return
        if left == before:
            break
    with suppress(asyncpg.ForeignKeyViolationError):
        await removal.empty_together(left)
    left = await removal.filled()
    if left:
        raise ConflictError(
            f"rows of the tenant stay in {', '.join(left)}: a trigger or a foreign key of the "
            "schema keeps them; change that by a migration, then delete the tenant again"
        )


async def forget_empty(
    connection: asyncpg.Connection, schema: SchemaName, binding: str, tenant_no: TenantNo
) -> bool:
    """Remove the tenant's fence if it has no row in `schema`; False when it has some again.

    No migration can give it rows between the two, and none works for it after that.
    """
    removal = _Removal(connection, schema, binding, 1)
    async with connection.transaction():
        await connection.execute(_NAMESPACE_SQL.statement("lock_shared"), schema)
        if await removal.filled():
            return False
        # The look has made this transaction one that works as the owner.
        async with as_keeper(connection):
            await remove_fence(connection, tenant_no)
    return True


class _Removal:
    """The statements, each in a transaction that works for the tenant."""

    def __init__(
        self, connection: asyncpg.Connection, schema: SchemaName, binding: str, batch_rows: int
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._binding = binding
        self._batch_rows = batch_rows

    async def filled(self) -> list[str]:
        """The tables that have rows of the tenant, those first that no other one points to."""
        rows = await self._connection.fetch(_SQL.statement("scoped_tables"), self._schema)
        async with self._turn():
            return [row["name"] for row in rows if await self._count(row["name"], 1)]

    async def empty(self, table: str) -> None:
        """Delete batch after batch, no more of them than the rows ask for."""
        async with self._turn():
            count = await self._count(table, None)
        name = self._named(table)
        batch = f"array(select ctid from {name} limit {self._batch_rows:d})"  # noqa: S608
        for _ in range(-(-count // self._batch_rows)):
            async with self._turn():
                await self._run(f"delete from {name} where ctid = any ({batch})")  # noqa: S608

    async def empty_together(self, tables: list[str]) -> None:
        """Delete everything from all of them in one statement."""
        deletes = [
            f"d{index} as (delete from {self._named(table)})"  # noqa: S608
            for index, table in enumerate(tables)
        ]
        async with self._turn():
            await self._run(f"with {', '.join(deletes)} select 1")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A transaction as the owner, bound to the tenant, without triggers if that is allowed."""
        async with self._connection.transaction():
            await self._connection.execute(_SQL.statement("silence_triggers"))
            await enter_schema(self._connection, self._schema)
            await self._connection.execute(_SQL.statement("bind"), self._binding)
            yield

    async def _run(self, text: str) -> None:
        for statement in (text, _SETTLE):
            await self._connection.fetchval(_NAMESPACE_SQL.statement("run"), statement)
        await check_runner(self._connection)

    async def _count(self, table: str, limit: int | None) -> int:
        most = "all" if limit is None else f"{limit:d}"
        rows = f"select 1 from {self._named(table)} limit {most}"  # noqa: S608 - quoted names only
        # Policies and checks can have been changed by what a row that was deleted has called.
        query = f"select count(*) as rows from ({rows}) as found"  # noqa: S608
        (found,) = await ask_query(self._connection, query)
        count: int = found["rows"]
        return count

    def _named(self, table: str) -> str:
        return f"{quote_identifier(self._schema)}.{quote_identifier(table)}"
