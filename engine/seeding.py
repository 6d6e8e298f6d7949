"""A tenant's first rows: those of the reference, copied into the tenant's tables.

Rules this module keeps:

* All rows come in one transaction, with a mark in the tenant's own data, so they come once.
* Tables are filled in the order of their foreign keys; deferrable ones are checked at the end. A
  circle of foreign keys that cannot be deferred is refused when a migration puts rows into it.
* Triggers do not run: what they did when the rows were made is among the rows.
* Numbers that the copied rows have used up are skipped by the sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import asyncpg

from tenancy.data_isolation.core.errors import SchemaError, UnavailableError
from tenancy.data_isolation.core.identifiers import (
    Epoch,
    SchemaName,
    TenantNo,
    quote_identifier,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.fence import open_fence, open_fences
from tenancy.data_isolation.engine.layout import REFERENCE_SCHEMA
from tenancy.data_isolation.engine.migration import Migration, refusal
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.runner import ask, check_runner
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import as_keeper, enter_schema, read_snapshot
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_rows import SEED_MARK, TenantRows

_SQL = SqlFile("namespace.sql")


async def seed(
    connection: asyncpg.Connection,
    namespace: Namespace,
    tenant_no: TenantNo,
    epoch: Epoch,
    *,
    settings: Settings,
    keys: BindingKeys,
    overlay: SchemaName | None = None,
) -> bool:
    """Open a tenant's fence at `epoch`, and give it its first rows.

    False when there are none, or when it has had them. Rows of tables that are in the tenant's
    `overlay` go there. `connection` is the admin's, to the namespace's database. Raises
    `UnavailableError` when the namespace is behind the reference, and then nothing was changed.
    """
    rows = TenantRows(connection, namespace, settings=settings, keys=keys)
    async with connection.transaction(isolation="read_committed"):
        here, there = await _enter(connection, namespace, settings, overlay)
        async with as_keeper(connection):
            await open_fence(connection, tenant_no, epoch)
        await rows.bind(tenant_no)
        if not await ask(connection, _SQL.statement("set_mark"), SEED_MARK, here):
            return False
        filled = await _filled_tables(connection)
        if not filled:
            return False
        _check_versions(namespace, here, there)
        await _copy(connection, namespace, filled)
        for schema in (namespace.schema, *([overlay] if overlay else [])):
            await _move_sequences(connection, schema)
        await check_runner(connection)
        return True


async def seed_many(
    connection: asyncpg.Connection,
    namespace: Namespace,
    epochs: Mapping[TenantNo, Epoch],
    *,
    settings: Settings,
    keys: BindingKeys,
) -> bool:
    """As `seed`, for many tenants without overlays in one transaction; False = not possible so.

    Triggers of the tables that are copied to would have to be silent all that time, which keeps
    everybody else from writing there: then nothing was done.
    """
    rows = TenantRows(connection, namespace, settings=settings, keys=keys)
    async with connection.transaction(isolation="read_committed"):
        here, there = await _enter(connection, namespace, settings, None)
        filled = await _filled_tables(connection)
        texts: list[str] = []
        if filled:
            _check_versions(namespace, here, there)
            tables, triggered = await _in_order(connection, namespace, filled)
            if triggered:
                return False
            texts = await _copy_texts(connection, namespace, tables)
        async with as_keeper(connection):
            await open_fences(connection, epochs)
        for tenant_no, epoch in (await rows.open_epochs(epochs.keys())).items():
            await rows.bind_to(tenant_no, epoch)
            if await ask(connection, _SQL.statement("set_mark"), SEED_MARK, here) and texts:
                await _run_copies(connection, texts)
        if texts:
            await _move_sequences(connection, namespace.schema)
        await check_runner(connection)
        return True


async def _enter(
    connection: asyncpg.Connection,
    namespace: Namespace,
    settings: Settings,
    overlay: SchemaName | None,
) -> tuple[int, int]:
    """Work in the namespace, which does not change meanwhile; its version and the reference's."""
    await connection.execute(
        _SQL.statement("limits"),
        str(settings.migration_lock_timeout_ms),
        str(settings.migration_statement_timeout_ms),
    )
    for schema in (REFERENCE_SCHEMA, namespace.schema):
        await connection.execute(_SQL.statement("lock_shared"), schema)
    await enter_schema(connection, namespace.schema, front=overlay)
    versions = _SQL.statement("versions", schema=namespace.schema, reference=REFERENCE_SCHEMA)
    (found,) = await ask(connection, versions)
    return found["here"], found["there"]


def _check_versions(namespace: Namespace, here: int, there: int) -> None:
    if here != there:
        raise UnavailableError(
            f"{namespace} is at version {here}, but new tenants start with rows of version "
            f"{there}; finish the migration first"
        )


async def check_copy_order(
    connection: asyncpg.Connection, snapshot: SchemaSnapshot, migration: Migration
) -> None:
    """Refuse a migration after which the reference's rows could not be copied."""
    try:
        _in_copy_order(snapshot, await _filled_tables(connection))
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise refusal(
            migration,
            [
                "new tenants start with rows of tables whose foreign keys form a circle "
                f"({circle}); make one of them deferrable"
            ],
        ) from None


async def _filled_tables(connection: asyncpg.Connection) -> list[str]:
    """The tables of the reference that have rows."""
    query = await connection.fetchval(_SQL.statement("filled_tables_text"), REFERENCE_SCHEMA)
    return [row[0] for row in await connection.fetch(query)] if query else []


async def _copy(connection: asyncpg.Connection, namespace: Namespace, filled: list[str]) -> None:
    """Copy the rows of some tables; the session is bound to the tenant and works in its schema."""
    tables, triggered = await _in_order(connection, namespace, filled)
    silenced = [quote_identifier(table) for table in triggered]
    for table in silenced:
        await connection.execute(f"alter table {table} disable trigger user")
    await _run_copies(connection, await _copy_texts(connection, namespace, tables))
    for table in silenced:
        await connection.execute(f"alter table {table} enable trigger user")


async def _in_order(
    connection: asyncpg.Connection, namespace: Namespace, filled: list[str]
) -> tuple[list[str], list[str]]:
    """The tables in the order in which they are copied to, and those of them with triggers."""
    snapshot = await read_snapshot(connection, namespace.schema)
    tables = _in_copy_order(snapshot, filled)
    triggered = {trigger.table for trigger in snapshot.triggers}
    return tables, [table for table in tables if table in triggered]


async def _copy_texts(
    connection: asyncpg.Connection, namespace: Namespace, tables: Sequence[str]
) -> list[str]:
    """The statements that copy the rows of the tables."""
    texts = []
    for table in tables:
        text = await connection.fetchval(
            _SQL.statement("copy_text"), namespace.schema, REFERENCE_SCHEMA, table
        )
        if text is None:
            raise SchemaError(f"{namespace} has no table {table}, which the reference has")
        texts.append(text)
    return texts


async def _run_copies(connection: asyncpg.Connection, texts: Sequence[str]) -> None:
    await connection.execute("set constraints all deferred")
    for text in texts:
        await connection.execute(_SQL.statement("run"), text)
    await connection.execute(_SQL.statement("run"), "set constraints all immediate")


def _in_copy_order(snapshot: SchemaSnapshot, tables: Sequence[str]) -> list[str]:
    """`tables` with those that others refer to first; `CycleError` when there is no such order."""
    graph: dict[str, set[str]] = {table: set() for table in tables}
    for key in snapshot.constraints:
        immediate = key.type == "f" and not key.deferrable and key.table != key.target
        if immediate and key.table in graph and key.target in graph:
            graph[key.table].add(key.target)
    return list(TopologicalSorter(graph).static_order())


async def _move_sequences(connection: asyncpg.Connection, schema: SchemaName) -> None:
    """Let no sequence give out a number that a copied row has.

    It must not move back either, so it is looked at again once nobody can draw from it.
    """
    names = (schema, REFERENCE_SCHEMA)
    behind = await connection.fetchval(_SQL.statement("sequences_behind_text"), *names)
    if behind is None:
        return
    for row in await connection.fetch(behind):
        text = await connection.fetchval(_SQL.statement("lock_sequence_text"), schema, row["name"])
        await connection.execute(text)
    for row in await connection.fetch(behind):
        await connection.execute(
            _SQL.statement("move_sequence"), schema, row["name"], row["target"]
        )
