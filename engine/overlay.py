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
* A migration is tried on an overlay without rows, in front of the reference, before it is
  registered: one that overlays cannot follow is refused and never reaches a tenant. The trial keeps
  what was ever apart, so it stands for the overlays of all times.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.core.identifiers import (
    RoleName,
    SchemaName,
    TenantNo,
    quote_identifier,
    quote_literal,
)
from tenancy.data_isolation.engine.layout import TRIAL_SCHEMA
from tenancy.data_isolation.engine.namespace import REFERENCE_TENANT, Namespace
from tenancy.data_isolation.engine.overlay_steps import OverlayStep
from tenancy.data_isolation.engine.schema_differences import differences
from tenancy.data_isolation.engine.schema_script import Step
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import (
    as_keeper,
    read_snapshot,
    scope_snapshot,
    set_path,
)
from tenancy.data_isolation.engine.sensitive_tables import sensitive_tables, views_of
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_column import IDEMPOTENCY_TABLE
from tenancy.data_isolation.engine.tenant_rows import SETTLE, TenantRows

_SQL = SqlFile("overlay.sql")
_NAMESPACE_SQL = SqlFile("namespace.sql")
_SHOWN_DIFFERENCES: Final = 10
#: The stages of `table_texts` that make a sequence and let a column use it.
_SEQUENCE_STAGES: Final = frozenset({3, 4, 5})

#: About the locks that making a table once more takes: itself, indexes, sequence, TOAST table.
_LOCKS_PER_TABLE: Final = 20


@dataclass(kw_only=True, slots=True)
class Overlay:
    """One overlay while the shared namespace is being changed."""

    tenant_no: TenantNo
    schema: SchemaName
    #: Names of its tables, views, sequences and indexes, by their kind in `pg_class`.
    names: dict[str, str] = field(default_factory=dict)
    #: Whether it is there for trials only, and has no rows.
    trial: bool = False
    #: Whether this change made something in it, so that rights are due and all is compared.
    grown: bool = False
    #: Whether it took a step of this change, so that it is compared with the shared tables.
    changed: bool = False

    @property
    def tables(self) -> frozenset[str]:
        """Its tables."""
        return frozenset(name for name, kind in self.names.items() if kind == "r")

    @property
    def views(self) -> frozenset[str]:
        """Its views."""
        return frozenset(name for name, kind in self.names.items() if kind == "v")


class Overlays:
    """The overlays of one shared namespace, in the caller's transaction, as the owner.

    Every method leaves the namespace's own schema as the search_path.
    """

    def __init__(
        self, connection: asyncpg.Connection, namespace: Namespace, rows: TenantRows
    ) -> None:
        self._connection = connection
        self._schema = namespace.schema
        self._rows = rows
        self._all: list[Overlay] = []
        #: The step that the shared schema is taking.
        self._step: OverlayStep | None = None

    @property
    def schemas(self) -> Mapping[TenantNo, SchemaName]:
        """The overlay of each tenant that has one."""
        return {item.tenant_no: item.schema for item in self._all if not item.trial}

    async def read(self) -> None:
        """Find out which overlays there are, and what is in them."""
        async with as_keeper(self._connection):
            rows = await self._connection.fetch(_SQL.statement("overlays"))
        self._all = [
            Overlay(tenant_no=TenantNo(row["tenant_no"]), schema=SchemaName(row["schema"]))
            for row in rows
        ]
        for overlay in self._all:
            await self._learn(overlay)

    async def read_trial(self) -> None:
        """Have the overlay on which migrations are tried, and nothing else."""
        trial = Overlay(tenant_no=REFERENCE_TENANT, schema=TRIAL_SCHEMA, trial=True)
        if not await self._connection.fetchval(_SQL.statement("has_schema"), TRIAL_SCHEMA):
            shared = await read_snapshot(self._connection, self._schema)
            await self._build(trial, shared)
            trial.grown = True
        await self._learn(trial)
        self._all = [trial]

    async def add(self, tenant_no: TenantNo, schema: SchemaName, role: RoleName) -> None:
        """Make an overlay with all that is sensitive now, for `role` alone. Can be run again."""
        overlay = Overlay(tenant_no=tenant_no, schema=schema)
        shared = await read_snapshot(self._connection, self._schema)
        async with as_keeper(self._connection):
            added = await self._connection.fetchval(_SQL.statement("register"), tenant_no, schema)
        # The schema of one that is registered may be lost: then it is made anew.
        if added or not await self._connection.fetchval(_SQL.statement("has_schema"), schema):
            await self._build(overlay, shared)
        await self._learn(overlay)
        await self._protect(overlay, shared, roles=(role,))

    async def remove(self, tenant_no: TenantNo, schema: SchemaName) -> None:
        """Drop an overlay with all its rows. Can be run again."""
        async with as_keeper(self._connection):
            await self._connection.execute(_SQL.statement("forget"), tenant_no, schema)
        await self._connection.execute(_SQL.statement("drop_schema", schema=schema))

    async def precede(self, step: Step) -> None:
        """Do what overlays have to do before the shared schema takes a step of a migration."""
        self._step = None
        if not self._all:
            return
        self._step = statement = OverlayStep(step.text)
        if statement.new_keys:
            # The key must not find rows in the shared tables whose partners are in overlays.
            await self._join(statement.new_keys)
        if statement.drops:
            # Views of an overlay depend on shared views and tables, and never the other way.
            await self._take(statement)

    async def follow(self) -> None:
        """Take the step that `precede` was given, which the shared schema has taken since."""
        statement = self._step
        if statement is None:
            return
        if statement.drops:
            # What depended on a shared object may be gone with it.
            for overlay in self._all:
                await self._learn(overlay)
            return
        if statement.joins_tables:
            await self._join()
        if statement.view is not None:
            await self._renew_views(statement.view)
        if statement.adopted_sequence is not None:
            await self._adopt(*statement.adopted_sequence)
        await self._take(statement)

    async def protect(self) -> None:
        """Give roles their rights in what was made, and compare every overlay that took part.

        Raises `SchemaError` when one differs from the shared tables.
        """
        full = [item for item in self._all if item.grown or (item.trial and item.changed)]
        if full:
            shared = await read_snapshot(self._connection, self._schema)
            for overlay in full:
                roles = () if overlay.trial else None
                await self._protect(overlay, shared, roles=roles)
        changed = [item.schema for item in self._all if item.changed and item not in full]
        if changed:
            await self._compare(changed)
        for overlay in self._all:
            if overlay.trial:
                await self._check_functions(overlay)
            overlay.grown = overlay.changed = False

    # Parts

    async def _take(self, statement: OverlayStep) -> None:
        """Run a step in every overlay that has what it names."""
        for overlay in self._all:
            text = statement.text_for(overlay.names)
            if text is not None:
                before = overlay.names
                async with self._inside(overlay):
                    await self._run(text)
                await self._learn(overlay)
                overlay.changed = True
                overlay.grown = overlay.grown or not overlay.names.keys() <= before.keys()

    async def _join(self, new_keys: Collection[frozenset[str]] = ()) -> None:
        """Bring into each overlay what foreign keys or a mark join with its tables."""
        shared = await read_snapshot(self._connection, self._schema)
        joining: list[tuple[Overlay, frozenset[str]]] = []
        for overlay in self._all:
            apart = overlay.tables - {IDEMPOTENCY_TABLE}
            missing = sensitive_tables(shared, apart, new_keys=new_keys) - overlay.tables
            if missing:
                joining.append((overlay, missing))
        await self._check_locks(sum(len(missing) for item, missing in joining if not item.trial))
        tables = frozenset[str]().union(*(missing for _, missing in joining))
        for overlay, missing in joining:
            await self._make(overlay, missing)
        async with self._silenced(tables):
            for overlay, missing in joining:
                if not overlay.trial:
                    await self._move_rows(overlay, missing)
        for overlay, missing in joining:
            await self._make_triggers(overlay, missing)
            await self._learn(overlay)
            await self._make_views_anew(overlay, shared)

    async def _check_locks(self, tables: int) -> None:
        """Raise `SchemaError` when so many new tables would overflow the server's lock table."""
        if not tables:
            return
        room = await self._connection.fetchval(_SQL.statement("lock_room"))
        needed = tables * _LOCKS_PER_TABLE
        if needed > room:
            raise SchemaError(
                f"{tables} tables would be made for hybrid tenants in one transaction, which takes "
                f"some {needed} locks, and the server has room for {room}: raise its "
                f"max_locks_per_transaction by a factor of {-(-needed // room)}"
            )

    async def _renew_views(self, view: str) -> None:
        """Make views once more in the overlays that have, or now need, a view that was made."""
        shared = await read_snapshot(self._connection, self._schema)
        for overlay in self._all:
            if view in overlay.views or view in views_of(shared, overlay.tables):
                await self._make_views_anew(overlay, shared)

    async def _make_views_anew(self, overlay: Overlay, shared: SchemaSnapshot) -> None:
        """Views are bound to tables: those that join what was shared until now are wrong."""
        for name in overlay.views:
            await self._connection.execute(
                _SQL.statement("drop_view", schema=overlay.schema, view=name)
            )
        await self._make_views(overlay, shared, overlay.tables)
        await self._learn(overlay)
        overlay.grown = True

    async def _adopt(self, sequence: str, table: str) -> None:
        """A sequence now belongs to a table that overlays have: so they get one of their own."""
        for overlay in self._all:
            if table not in overlay.tables or sequence in overlay.names:
                continue
            rows = await self._connection.fetch(
                _SQL.statement("table_texts"), self._schema, [table]
            )
            texts = [
                row["text"]
                for row in rows
                if row["stage"] in _SEQUENCE_STAGES and row["name"] == sequence
            ]
            await self._make_all(overlay, texts)
            own = f"{quote_identifier(overlay.schema)}.{quote_identifier(sequence)}"
            position = _SQL.statement("move_position", schema=self._schema, sequence=sequence)
            await self._run(position.replace("$1", quote_literal(own)))
            await self._learn(overlay)
            overlay.grown = True

    async def _check_functions(self, trial: Overlay) -> None:
        """Refuse a function that is bound to a shared table which some tenants have apart."""
        shared = await read_snapshot(self._connection, self._schema)
        for routine in shared.routines:
            for name in sorted({*trial.tables, *trial.views} & set(routine.reads)):
                raise SchemaError(
                    f"the BEGIN ATOMIC body of function {routine.name}({routine.arguments}) is "
                    f"bound to {name}, which they keep apart as sensitive; write it as a text in "
                    "quotes"
                )

    async def _build(self, overlay: Overlay, shared: SchemaSnapshot) -> None:
        """Make the schema with all that is sensitive now."""
        await self._connection.execute(_SQL.statement("create_schema", schema=overlay.schema))
        tables = sensitive_tables(shared)
        await self._make(overlay, {IDEMPOTENCY_TABLE, *tables})
        await self._make_triggers(overlay, tables)
        await self._make_views(overlay, shared, tables)

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
        texts: list[str] = []
        for name in views:
            for statement in ("view_text", "view_default_texts"):
                rows = await self._connection.fetch(_SQL.statement(statement), self._schema, name)
                texts += [row["text"] for row in rows]
        await self._make_all(overlay, texts)
        await self._make_triggers(overlay, views)

    async def _make_all(self, overlay: Overlay, texts: Sequence[str]) -> None:
        if texts:
            async with self._inside(overlay):
                await self._run(";\n".join(texts))

    async def _move_rows(self, overlay: Overlay, tables: Collection[str]) -> None:
        """Bring the tenant's rows from the shared tables, whose triggers are silent."""
        names = (self._schema, overlay.schema, sorted(tables))
        (texts,) = await self._connection.fetch(
            _SQL.statement("move_texts"), *names, overlay.tenant_no
        )
        positions = await self._connection.fetchval(_SQL.statement("move_positions_text"), *names)
        async with self._rows.working_for(overlay.tenant_no):
            for text in (texts["copy"], texts["remove"], SETTLE):
                await self._run(text)
        if positions is not None:
            # What the rows have called could have put something else in a sequence's place.
            await self._run(positions)

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
        found += [
            f"view {name}" for name in views_of(shared, overlay.tables) if name not in overlay.names
        ]
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
