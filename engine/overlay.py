"""Overlays: a hybrid tenant's sensitive tables in a schema of its own, in front of the shared one.

Rules this module keeps:

* An overlay belongs to the shared namespace: what changes the shared tables changes all overlays,
  in the same transaction and step by step, so there is never one at another version.
* A table of an overlay is made from the shared one as the catalogs tell it, and compared with it at
  the end of every change; with a difference nothing is changed.
* No object of an overlay depends on a shared table, and no shared object on an overlay. Types and
  functions are shared, and triggers of shared tables find an overlay's tables by the search_path.
* What a table in an overlay refers to and what refers to it is in the overlay (`sensitive_tables`);
  a later migration that joins further tables brings the tenant's rows along.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import asyncpg

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.core.identifiers import (
    RoleName,
    SchemaName,
    TenantNo,
    quote_identifier,
)
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.overlay_steps import OverlayStep
from tenancy.data_isolation.engine.schema_differences import differences
from tenancy.data_isolation.engine.schema_script import Step
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import read_snapshot, scope_snapshot, set_path
from tenancy.data_isolation.engine.sensitive_tables import sensitive_tables, views_of
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_column import IDEMPOTENCY_TABLE

_SQL = SqlFile("overlay.sql")
_NAMESPACE_SQL = SqlFile("namespace.sql")
_SHOWN_DIFFERENCES: Final = 10

#: Works for a tenant within a block: given its number, in a transaction.
Bound: TypeAlias = Callable[[TenantNo], AbstractAsyncContextManager[None]]


@dataclass(kw_only=True, slots=True)
class Overlay:
    """One overlay while the shared namespace is being changed."""

    tenant_no: TenantNo
    schema: SchemaName
    #: Names of its tables, views, sequences and indexes, by their kind in `pg_class`.
    names: dict[str, str] = field(default_factory=dict)
    #: Whether this change made something in it, so that rights are due and all is compared.
    grown: bool = False
    #: Whether it took a step of this change, so that it is compared with the shared tables.
    changed: bool = False

    @property
    def tables(self) -> frozenset[str]:
        """Its tables."""
        return frozenset(name for name, kind in self.names.items() if kind == "r")


class Overlays:
    """The overlays of one shared namespace, in the caller's transaction, as the owner.

    Every method leaves the namespace's own schema as the search_path.
    """

    def __init__(self, connection: asyncpg.Connection, namespace: Namespace, bound: Bound) -> None:
        self._connection = connection
        self._schema = namespace.schema
        self._bound = bound
        self._all: list[Overlay] = []

    @property
    def schemas(self) -> Mapping[TenantNo, SchemaName]:
        """The overlay of each tenant that has one."""
        return {overlay.tenant_no: overlay.schema for overlay in self._all}

    async def read(self) -> None:
        """Find out which overlays there are, and what is in them."""
        self._all = [
            Overlay(tenant_no=TenantNo(row["tenant_no"]), schema=SchemaName(row["schema"]))
            for row in await self._connection.fetch(_SQL.statement("overlays"))
        ]
        for overlay in self._all:
            await self._learn(overlay)

    async def add(self, tenant_no: TenantNo, schema: SchemaName, role: RoleName) -> None:
        """Make an overlay with all that is sensitive now, for `role` alone. Can be run again."""
        overlay = Overlay(tenant_no=tenant_no, schema=schema)
        shared = await read_snapshot(self._connection, self._schema)
        if await self._connection.fetchval(_SQL.statement("register"), tenant_no, schema):
            await self._connection.execute(_SQL.statement("create_schema", schema=schema))
            tables = sensitive_tables(shared)
            await self._make(overlay, {IDEMPOTENCY_TABLE, *tables})
            await self._make_triggers(overlay, tables)
            await self._make_views(overlay, shared, tables)
        await self._learn(overlay)
        await self._protect(overlay, shared, roles=(role,))

    async def remove(self, tenant_no: TenantNo, schema: SchemaName) -> None:
        """Drop an overlay with all its rows. Can be run again."""
        await self._connection.execute(_SQL.statement("forget"), tenant_no, schema)
        await self._connection.execute(_SQL.statement("drop_schema", schema=schema))

    async def follow(self, step: Step) -> None:
        """Take a step of a migration that the shared schema has just taken."""
        if not self._all:
            return
        statement = OverlayStep(step.text)
        texts = [(overlay, statement.text_for(overlay.names)) for overlay in self._all]
        if statement.joins_tables:
            await self._join()
        for overlay, text in texts:
            if text is not None:
                before = overlay.names
                async with self._inside(overlay):
                    await self._run(text)
                await self._learn(overlay)
                overlay.changed = True
                overlay.grown = overlay.grown or not overlay.names.keys() <= before.keys()

    async def protect(self) -> None:
        """Give roles their rights in what was made, and compare every overlay that took part."""
        grown = [overlay for overlay in self._all if overlay.grown]
        if grown:
            shared = await read_snapshot(self._connection, self._schema)
            for overlay in grown:
                await self._protect(overlay, shared, roles=None)
        changed = [item.schema for item in self._all if item.changed and not item.grown]
        if changed:
            await self._compare(changed)
        for overlay in self._all:
            overlay.grown = overlay.changed = False

    # Parts

    async def _join(self) -> None:
        """Bring into each overlay what foreign keys or a mark have joined with its tables."""
        snapshot = await read_snapshot(self._connection, self._schema)
        for overlay in self._all:
            tables = sensitive_tables(snapshot, overlay.tables - {IDEMPOTENCY_TABLE})
            missing = tables - overlay.tables
            if not missing:
                continue
            await self._make(overlay, missing)
            await self._move_rows(overlay, missing)
            await self._make_triggers(overlay, missing)
            await self._drop_views(overlay)
            await self._make_views(overlay, snapshot, tables)
            await self._learn(overlay)
            overlay.grown = True

    async def _make(self, overlay: Overlay, tables: Collection[str]) -> None:
        rows = await self._connection.fetch(
            _SQL.statement("table_texts"), self._schema, sorted(tables)
        )
        await self._make_all(overlay, [row["text"] for row in rows])

    async def _make_triggers(self, overlay: Overlay, tables: Collection[str]) -> None:
        rows = await self._connection.fetch(
            _SQL.statement("trigger_texts"), self._schema, sorted(tables)
        )
        await self._make_all(overlay, [row["text"] for row in rows])

    async def _make_views(
        self, overlay: Overlay, snapshot: SchemaSnapshot, tables: Collection[str]
    ) -> None:
        """Make every view of `tables`, with its triggers."""
        views = views_of(snapshot, tables)
        statement = _SQL.statement("view_text")
        texts = [await self._connection.fetchval(statement, self._schema, name) for name in views]
        await self._make_all(overlay, texts)
        await self._make_triggers(overlay, views)

    async def _drop_views(self, overlay: Overlay) -> None:
        """Views are bound to tables: one that joins a table that was shared until now is wrong."""
        for name, kind in overlay.names.items():
            if kind == "v":
                await self._connection.execute(
                    _SQL.statement("drop_view", schema=overlay.schema, view=name)
                )

    async def _make_all(self, overlay: Overlay, texts: Sequence[str]) -> None:
        if texts:
            async with self._inside(overlay):
                await self._run(";\n".join(texts))

    async def _move_rows(self, overlay: Overlay, tables: Collection[str]) -> None:
        """Bring the tenant's rows from the shared tables; no trigger of the users' fires."""
        names = (self._schema, overlay.schema, sorted(tables))
        (texts,) = await self._connection.fetch(
            _SQL.statement("move_texts"), *names, overlay.tenant_no
        )
        positions = await self._connection.fetchval(_SQL.statement("move_positions_text"), *names)
        async with self._silenced(tables), self._bound(overlay.tenant_no):
            for text in (texts["copy"], texts["remove"], "set constraints all immediate"):
                await self._run(text)
        if positions is not None:
            await self._connection.execute(positions)

    @asynccontextmanager
    async def _silenced(self, tables: Collection[str]) -> AsyncIterator[None]:
        """Let the users' triggers of shared tables not fire; those that were silent stay so."""
        rows = await self._connection.fetch(
            _SQL.statement("silenced_triggers"), self._schema, sorted(tables)
        )
        triggers = [tuple(map(quote_identifier, row)) for row in rows]
        for table, name in triggers:
            await self._connection.execute(f"alter table {table} disable trigger {name}")
        yield
        for table, name in triggers:
            await self._connection.execute(f"alter table {table} enable trigger {name}")

    async def _protect(
        self, overlay: Overlay, shared: SchemaSnapshot, *, roles: Sequence[RoleName] | None
    ) -> None:
        async with self._inside(overlay):
            snapshot = await self._snapshot(overlay)
            plan = await scope_snapshot(self._connection, snapshot, roles=roles)
            if plan.changes:
                snapshot = await self._snapshot(overlay)
        found = differences(_unmarked(snapshot), _part(shared, overlay))
        rows = await self._connection.fetch(_SQL.statement("astray"), overlay.schema, self._schema)
        found += [row[0] for row in rows]
        if found:
            raise _different(overlay.schema, found)

    async def _compare(self, schemas: Sequence[SchemaName]) -> None:
        """Compare what has the relations that it had with the shared tables, all in one query.

        A snapshot of each would take some 20 ms, while everybody waits for the shared tables.
        """
        rows = await self._connection.fetch(_SQL.statement("unlike"), self._schema, schemas)
        if rows:
            schema = rows[0]["overlay"]
            raise _different(schema, [row["what"] for row in rows if row["overlay"] == schema])

    async def _snapshot(self, overlay: Overlay) -> SchemaSnapshot:
        return await read_snapshot(self._connection, overlay.schema, behind=self._schema)

    async def _learn(self, overlay: Overlay) -> None:
        rows = await self._connection.fetch(_SQL.statement("names"), overlay.schema)
        overlay.names = {row["name"]: row["kind"] for row in rows}

    @asynccontextmanager
    async def _inside(self, overlay: Overlay) -> AsyncIterator[None]:
        """Bare names mean what is in the overlay, then what is shared."""
        await set_path(self._connection, overlay.schema, self._schema)
        yield
        # After an error the transaction, and the setting with it, is undone.
        await set_path(self._connection, self._schema)

    async def _run(self, text: str) -> None:
        """Run SQL that may call users' functions, which must not change the role."""
        await self._connection.execute(_NAMESPACE_SQL.statement("run"), text)


def _different(schema: SchemaName, found: Sequence[str]) -> SchemaError:
    shown = ", ".join(found[:_SHOWN_DIFFERENCES])
    return SchemaError(f"the sensitive tables in {schema} differ from the shared ones in {shown}")


def _part(shared: SchemaSnapshot, overlay: Overlay) -> SchemaSnapshot:
    """What of the shared schema an overlay must look like."""
    names = overlay.names
    return _unmarked(
        replace(
            shared,
            relations=tuple(item for item in shared.relations if item.name in names),
            constraints=tuple(item for item in shared.constraints if item.table in names),
            indexes=tuple(item for item in shared.indexes if item.table in names),
            policies=tuple(item for item in shared.policies if item.table in names),
            triggers=tuple(item for item in shared.triggers if item.table in names),
            routines=(),
            types=(),
        )
    )


def _unmarked(snapshot: SchemaSnapshot) -> SchemaSnapshot:
    """Without the marks, which only the shared tables bear."""
    return replace(
        snapshot,
        relations=tuple(replace(item, sensitive=False) for item in snapshot.relations),
    )
