"""Writes of tenants whose results are kept: each is counted before it is sent, and when it ended.

Rules this module keeps:

* Nothing is written unannounced while anybody might give results: a write that Redis did not count
  waits until the tenant's period has ended and everybody has heard of it (`cache_switch`).
* A write whose outcome is not known does not end, and keeps its tables from being kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tenancy.data_isolation.core.errors import (
    OutcomeUnknownError,
    PlacementChangedError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.types import Operation, QueryResult, StatementKind, TenantCache
from tenancy.data_isolation.engine.cache_statistics import CacheStatistics
from tenancy.data_isolation.engine.cache_store import ALL, FIELDS_MAX, CacheStore, NoAnswerError
from tenancy.data_isolation.engine.cache_switch import CacheSwitch
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Gives the version of a schema, None when it is not known any more.
VersionOf = Callable[[VisibleSchema], int | None]


class AnnouncedWrites:
    """Counts writes in Redis. Belongs to one event loop."""

    def __init__(
        self,
        *,
        executor: Executor,
        store: CacheStore,
        switch: CacheSwitch,
        statistics: CacheStatistics,
        version_of: VersionOf,
    ) -> None:
        self._executor = executor
        self._store = store
        self._switch = switch
        self._version_of = version_of
        self.statistics = statistics

    def changes(
        self, operations: Iterable[Operation], schema: VisibleSchema
    ) -> frozenset[str] | None:
        """The tables that operations may change; None = any."""
        found: set[str] = set()
        for operation in operations:
            try:
                statement = self._executor.statement(operation.query, schema)
            except TenancyError:
                continue  # It will be refused, or the batch will.
            if statement.kind is StatementKind.READ:
                continue
            if statement.changes is None:
                return None
            found |= statement.changes
        return frozenset(found)

    @asynccontextmanager
    async def announced(
        self,
        route: Route,
        cache: TenantCache,
        changes: frozenset[str] | None,
        schema: VisibleSchema,
    ) -> AsyncIterator[list[QueryResult | TenancyError]]:
        """Count what the block writes; it puts outcomes of a batch into the list."""
        outcomes: list[QueryResult | TenancyError] = []
        nonce = cache.nonce
        if not cache.serving:
            # Also one that was begun and not finished: who began it may have died.
            self._switch.begin_later(route.tenant)
        if nonce is None and (changes is None or changes):
            # Somebody may not have heard yet that the last one is over, and give what it had.
            await self._switch.settled(cache)
        if nonce is None or (changes is not None and not changes) or self._switch.has_ended(nonce):
            yield outcomes
            return
        tables = self._tables(changes, cache, schema)
        if not await self._begin(nonce, tables):
            try:
                await self._switch.end(route.tenant, nonce)
            except OutcomeUnknownError as error:
                # That is about the catalog; the operation was not sent.
                refusal = ServerUnavailableError(
                    "the catalog does not answer; nothing was done; try again", error.sqlstate
                )
                self._executor.turned_away(route, refusal)
                raise refusal from None
            yield outcomes
            return
        ended = False
        try:
            yield outcomes
            ended = not any(isinstance(item, OutcomeUnknownError) for item in outcomes)
        except PlacementChangedError:
            ended = True
            raise
        except TenancyError as error:
            ended = not isinstance(error, OutcomeUnknownError)
            raise
        finally:
            if ended:
                self._store.end(nonce, tables)
            else:
                self.statistics.unknown += 1

    def _tables(
        self, changes: frozenset[str] | None, cache: TenantCache, schema: VisibleSchema
    ) -> tuple[str, ...]:
        """What to count: the tables, or all when what this process knows is not of this period."""
        if (
            changes is None
            or len(changes) > FIELDS_MAX
            or self._version_of(schema) != cache.version
        ):
            return (ALL,)
        return tuple(sorted(changes))

    async def _begin(self, nonce: str, tables: Sequence[str]) -> bool:
        self.statistics.announced += 1
        try:
            counting = self._store.begin(nonce, tables)
            try:
                return bool(await asyncio.shield(counting))
            except asyncio.CancelledError:
                # Nothing was sent, so it ends as soon as it is known to have been counted. Never
                # before: an end too many would hide a write that is under way.
                counting.add_done_callback(lambda done: self._unbegin(done, nonce, tables))
                raise
        except NoAnswerError:
            self.statistics.unanswered += 1
            return False

    def _unbegin(self, counting: asyncio.Future[Any], nonce: str, tables: Sequence[str]) -> None:
        if not counting.cancelled() and counting.exception() is None and counting.result():
            self._store.end(nonce, tables)
