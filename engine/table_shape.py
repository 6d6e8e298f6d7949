"""What the tenants' tables look like now, for the guard and for named operations.

It is read from the reference schema, which every migration reaches first. A process hears of a
migration that another one registered when it looks again: every `Settings.schema_refresh_s` while
operations come in, and at once when a statement names something that is not known.

A namespace that a migration has not reached yet has the tables of an earlier version; therefore the
last few versions are remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceKind
from tenancy.data_isolation.engine.code_paths import relations_that_run_code, tables_acted_on
from tenancy.data_isolation.engine.layout import REFERENCE_SCHEMA, shared_database
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.namespace_schema import NamespaceSchema
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoped_definitions import visible_schema
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Versions that are remembered.
_VERSIONS_MAX: Final = 4
#: Placements of which it is remembered that they are behind, and for how long.
_BEHIND_MAX: Final = 10_000
_BEHIND_S: Final = 2.0


class TableShapes:
    """The shapes of tables, newest version first. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._keys = keys
        self._clock = clock or SystemClock()
        self._versions: list[tuple[int, VisibleSchema]] = []
        self._behind: OrderedDict[SessionKey, tuple[VisibleSchema, float]] = OrderedDict()
        self._looked_at_s: float | None = None
        self._looking: asyncio.Task[bool] | None = None

    @property
    def newest(self) -> VisibleSchema:
        """The newest version that this process knows of."""
        return self._versions[0][1] if self._versions else VisibleSchema()

    def at(self, key: SessionKey) -> VisibleSchema:
        """The version that statements at a placement are to be read with."""
        if not self._behind:
            return self.newest
        found = self._behind.get(key)
        if found is None or found[1] <= self._clock.monotonic_s():
            return self.newest
        return found[0]

    def version(self, schema: VisibleSchema) -> int | None:
        """The number of the migration that led to a version; None for one that is forgotten."""
        return next((number for number, shape in self._versions if shape is schema), None)

    def others(self, than: VisibleSchema) -> list[VisibleSchema]:
        """The other versions that are remembered, newest first."""
        return [schema for _, schema in self._versions if schema is not than]

    def remember(self, key: SessionKey, schema: VisibleSchema) -> None:
        """Statements at a placement were understood with that version."""
        if schema is self.newest:
            self._behind.pop(key, None)
            return
        self._behind[key] = (schema, self._clock.monotonic_s() + _BEHIND_S)
        self._behind.move_to_end(key)
        while len(self._behind) > _BEHIND_MAX:
            self._behind.popitem(last=False)

    def look_later(self) -> None:
        """Look for a newer version in the background, if the last look was long ago."""
        now = self._clock.monotonic_s()
        last = self._looked_at_s
        if last is not None and now - last < self._settings.schema_refresh_s:
            return
        if self._looking is None:
            self._looked_at_s = now
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)

    async def look(self, *, now: bool) -> bool:
        """Look for a newer version, `now` or if the last look was long ago; whether there is one.

        Unlike `look_later` this waits, for a look that is under way too.
        """
        last = self._looked_at_s
        fresh = last is not None and (
            self._clock.monotonic_s() - last < self._settings.schema_refresh_s
        )
        if fresh and not now and self._looking is None:
            return False
        return await self.refresh()

    async def refresh(self) -> bool:
        """Look for a newer version now; whether there is one. Many may ask at the same time."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    async def reference(self) -> tuple[VisibleSchema, SchemaSnapshot]:
        """The newest version as tenants see it, and as it is, read anew."""
        _, snapshot = await self._read()
        return _shape(snapshot), snapshot

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> bool:
        self._looked_at_s = self._clock.monotonic_s()
        number = await self._catalog.newest_migration()
        if self._versions and self._versions[0][0] == number:
            return False
        version, snapshot = await self._read()
        self._versions.insert(0, (version, _shape(snapshot)))
        del self._versions[_VERSIONS_MAX:]
        return True

    async def _read(self) -> tuple[int, SchemaSnapshot]:
        server = ServerName(self._admin.servers[0].name)
        reference = Namespace(
            server=server,
            database=shared_database(self._settings),
            schema=REFERENCE_SCHEMA,
            kind=NamespaceKind.REFERENCE,
        )
        async with self._admin.session(server, reference.database) as connection:
            schema = NamespaceSchema(
                connection, reference, settings=self._settings, keys=self._keys
            )
            return await schema.version() or 0, await schema.snapshot()

    def _looked(self, task: asyncio.Task[bool]) -> None:
        self._looking = None
        if not task.cancelled() and isinstance(task.exception(), TenancyError):
            return  # The next look may succeed; who waits for this one has got the error.


def _shape(snapshot: SchemaSnapshot) -> VisibleSchema:
    """What tenants see of a schema, with what the guard has to know of it."""
    visible = visible_schema(snapshot)
    running = relations_that_run_code(snapshot)
    acted_on = tables_acted_on(snapshot)
    # A row type of a table has the column that tenants do not see.
    callable_ones = {item.name for item in snapshot.routines if not item.row_types}
    return replace(
        visible,
        relations={
            name: replace(relation, runs_code=name in running, acts_on=acted_on.get(name, ()))
            for name, relation in visible.relations.items()
        },
        functions=frozenset(visible.functions & callable_ones),
    )
