"""What would help tenants' statements: indexes and better plans, from what the servers count.

Nothing is applied from here but `analyze`, and that only when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.index_advice import IndexAdvice, advised_indexes
from tenancy.data_isolation.engine.plan_advice import (
    PlanAdvice,
    ReadStatement,
    TablePlace,
    advised_memory,
    advised_planning,
    read_statements,
)
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.statement_statistics import (
    NotedStatement,
    ServerStatistics,
    StatementStatistics,
)
from tenancy.data_isolation.engine.table_statistics import Analyzed, TableStatistics
from tenancy.data_isolation.engine.visible_schema import VisibleSchema


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaAdvice:
    """What was found: the servers, and the advice, of each kind that first which would save the
    most.
    """

    servers: tuple[ServerStatistics, ...]
    indexes: tuple[IndexAdvice, ...]
    plans: tuple[PlanAdvice, ...]


class SchemaAdviser:
    """Gives advice for all tenants of all servers. For one event loop, concurrent use is safe."""

    def __init__(
        self,
        *,
        settings: Settings,
        admin: AdminConnections,
        catalog: Catalog,
        reference: Callable[[], Awaitable[tuple[VisibleSchema, SchemaSnapshot]]],
    ) -> None:
        """`reference` gives the newest version of the schema, and how its indexes are."""
        self._settings = settings
        self._catalog = catalog
        self._reference = reference
        self._statements = StatementStatistics(settings=settings, admin=admin)
        self._tables = TableStatistics(settings=settings, admin=admin)

    async def advice(self) -> SchemaAdvice:
        """What would help. Raises `TenancyError` when schema or catalog cannot be read."""
        schema, snapshot = await self._reference()
        servers, noted = await self._statements.read()
        # Reading texts takes up to a millisecond each.
        busy = [item for item in noted if self._touches_much(item)]
        indexes = await in_thread(advised_indexes, busy, schema, snapshot)
        read = await in_thread(read_statements, noted, schema.relations)
        stale, unseen = await self._tables.advice(read)
        return SchemaAdvice(
            servers=tuple(_with_unseen(server, unseen) for server in servers),
            indexes=tuple(indexes),
            plans=(
                *stale,
                *await self._memory(read),
                *advised_planning(read, self._settings),
            ),
        )

    async def analyze(self, place: TablePlace) -> Analyzed:
        """Bring the statistics of one table up to date; errors as `TableStatistics.analyze`."""
        return await self._tables.analyze(place)

    def _touches_much(self, item: NotedStatement) -> bool:
        return item.blocks >= self._settings.advice_call_blocks_min * item.calls

    async def _memory(self, read: Sequence[ReadStatement]) -> list[PlanAdvice]:
        spilled = [item for item in read if item.noted.temp_blocks]
        if not spilled:
            return []
        roles = sorted({item.noted.role for item in spilled})
        types = await self._catalog.types_of_logins(roles)
        return advised_memory(spilled, types, self._settings)


def _with_unseen(server: ServerStatistics, unseen: Sequence[ServerName]) -> ServerStatistics:
    """What is known of a server, with the databases that could not be looked at."""
    count = unseen.count(server.server)
    if not count:
        return server
    return replace(
        server,
        hint=f"tables of {count} {'database' if count == 1 else 'databases'} of server "
        f"{server.server} could not be looked at; the runtime's log says why",
    )
