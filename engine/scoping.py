"""Scoping a schema in a database: read the catalogs, run the plan.

`scope` may run again and again; on a scoped schema it changes nothing. It runs inside the caller's
transaction, so a refusal or an error leaves everything as it was.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import asyncpg

from tenancy.data_isolation.core.errors import SchemaError, SchemaRefusedError
from tenancy.data_isolation.core.identifiers import RoleName, SchemaName, quote_identifier
from tenancy.data_isolation.engine.schema_script import joined
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot, parse_snapshot
from tenancy.data_isolation.engine.scope_plan import ScopePlan, plan_scope
from tenancy.data_isolation.engine.scope_refusals import Refusal
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("scoping.sql")
_SHOWN_REFUSALS = 20


async def read_snapshot(
    connection: asyncpg.Connection, schema: SchemaName, *, behind: SchemaName | None = None
) -> SchemaSnapshot:
    """What `schema` looks like now; the search_path of `connection` must be that schema.

    `behind` is a schema that follows in the search_path and may be referred to.
    """
    document = await connection.fetchval(_SQL.statement("schema_snapshot"), schema, behind)
    if document is None or json.loads(document)["schema"] is None:
        raise SchemaError(f"there is no schema {schema}")
    return parse_snapshot(json.loads(document))


async def scope(
    connection: asyncpg.Connection,
    schema: SchemaName,
    *,
    roles: Sequence[RoleName] | None = None,
) -> list[str]:
    """Do what is missing for `schema` to be scoped (`scope_plan`); the statements that were run.

    `roles` are the logins that shall work there, by default those that may use the schema now.

    `connection` is the admin's, in a transaction, working as the owner, with `schema` as its
    search_path (`enter_schema`). Raises `SchemaRefusedError` with every object that cannot be kept
    apart by tenant, before anything is changed.
    """
    plan = await scope_snapshot(connection, await read_snapshot(connection, schema), roles=roles)
    return list(plan.statements)


async def scope_snapshot(
    connection: asyncpg.Connection,
    snapshot: SchemaSnapshot,
    *,
    roles: Sequence[RoleName] | None = None,
) -> ScopePlan:
    """`scope` for a schema that looks like `snapshot`; the plan that was carried out."""
    plan = plan_scope(snapshot, roles=roles)
    if plan.refusals:
        raise refused(plan.refusals)
    await run_all(connection, plan.statements)
    return plan


async def enter_schema(
    connection: asyncpg.Connection, schema: SchemaName, *, front: SchemaName | None = None
) -> None:
    """Work in `schema` as the owner until the end of the transaction; `front` comes before it.

    The settings decide how the server reads the statements that follow.
    """
    await connection.execute(_SQL.statement("enter_schema", schema=schema))
    if front is not None:
        await set_path(connection, front, schema)


@asynccontextmanager
async def as_keeper(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Reach the runtime's own tables from a transaction that works as the owner.

    The owner has no right on them, because users' migrations work as it. Nothing of users' may run
    in the block.
    """
    await connection.execute(_SQL.statement("work_as_keeper"))
    yield
    # After an error the transaction, and the role with it, is undone.
    await connection.execute(_SQL.statement("work_as_owner"))


async def set_path(connection: asyncpg.Connection, *schemas: SchemaName) -> None:
    """Let bare names mean what is in these schemas, the first ones first."""
    path = ", ".join([*map(quote_identifier, schemas), "pg_temp"])
    await connection.execute(_SQL.statement("set_path"), path)


async def run_all(connection: asyncpg.Connection, statements: Iterable[str]) -> None:
    """Run statements of our own in one round trip."""
    text = joined(statements)
    if text:
        await connection.execute(text)


def refused(found: tuple[Refusal, ...]) -> SchemaRefusedError:
    """The error that lists what cannot be scoped."""
    lines = ["the schema is refused; nothing was changed:", *map(str, found[:_SHOWN_REFUSALS])]
    if len(found) > _SHOWN_REFUSALS:
        lines.append(f"... and {len(found) - _SHOWN_REFUSALS} more")
    return SchemaRefusedError("\n".join(lines))
