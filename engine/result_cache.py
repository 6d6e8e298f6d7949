"""Keeps results of tenants for which that is switched on, and never gives one that is out of date.

How a result is known to be current: in Redis two counters stand for each table of a tenant, writes
that began and writes that ended. Who writes counts before the statement is sent and after it has
ended; whoever reads asks for the counters first. A result is kept together with the counters under
which its statement was sent, if every write had ended by then; it is given as long as none has
begun since. So it is what PostgreSQL would have answered at the moment at which Redis was asked.

Rules this module keeps:

* Nothing is written unannounced while anybody might give results: a write that Redis did not count
  waits until the tenant's period has ended and everybody has heard of it (`cache_switch`).
* A write whose outcome is not known does not end, and keeps its tables from being kept. When that
  lasts, another period follows, which no statement of an earlier one survives.
* A read is answered by PostgreSQL whenever Redis does not answer, the tenant may be moving, or this
  process knows another version of the schema than the period has.
* Batches read from PostgreSQL; what they write is announced.
* One reader asks PostgreSQL for what several want at the same time; the others wait for it, if they
  have seen the same counters.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Final

from tenancy.data_isolation.core.errors import (
    LimitError,
    PlacementChangedError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import (
    Operation,
    QueryResult,
    StatementKind,
    Tenant,
    TenantCache,
)
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.announced_writes import AnnouncedWrites
from tenancy.data_isolation.engine.batch import Batches
from tenancy.data_isolation.engine.cache_statistics import CacheStatistics
from tenancy.data_isolation.engine.cache_store import ALL, FIELDS_MAX, CacheStore, NoAnswerError
from tenancy.data_isolation.engine.cache_switch import CacheSwitch
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.hot_questions import HotQuestions
from tenancy.data_isolation.engine.kept_results import KeptResult, KeptResults
from tenancy.data_isolation.engine.packed_result import (
    labelled,
    packed_result,
    read_labelled,
    unpacked_result,
)
from tenancy.data_isolation.engine.pinned_tenants import PinnedTenants
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.redis_place import RedisPlace
from tenancy.data_isolation.engine.repeatable import names_the_clock
from tenancy.data_isolation.engine.routes import Route, Routes
from tenancy.data_isolation.engine.shared_reads import Nothing, SharedReads
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.table_shape import TableShapes
from tenancy.data_isolation.engine.ticket import size_of
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Statements of which it is remembered how long they take, and tables that were seen written.
_REMEMBERED_MAX: Final = 4_096
#: What the newest of a statement's times counts for in its average.
_NEWEST: Final = 0.2
#: A result is looked for where PostgreSQL takes so many times as long as Redis, and one time in so
#: many all the same.
_WORTH: Final = 2.0
_TRY_EVERY: Final = 128
#: What Redis took is believed a little less with each read that did without it.
_FADES: Final = 0.99
#: Parameters beyond this are not looked at.
_ARGUMENT_BYTES_MAX: Final = 4_096
#: Results given to a tenant that make it a hot one, and how often that is halved.
_HOT_HITS_MIN: Final = 200
_COOL_DOWN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Question:
    """A read that may be answered by a result that was kept."""

    statement: Statement
    nonce: str
    digest: bytes
    tables: tuple[str, ...]


class ResultCache:
    """Runs operations of tenants whose results are kept. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        executor: Executor,
        batches: Batches,
        catalog: Catalog,
        admin: AdminConnections,
        maker: PlacementMaker,
        routes: Routes,
        shapes: TableShapes,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self.redis = RedisPlace(settings)
        store = CacheStore(settings, self.redis.url)
        switch = CacheSwitch(
            settings=settings,
            catalog=catalog,
            admin=admin,
            maker=maker,
            store=store,
            redis=self.redis,
            forget=routes.forget,
        )
        self._executor = executor
        self._batches = batches
        self._store = store
        self._switch = switch
        self._version_of = shapes.version
        self._loop = asyncio.get_running_loop()
        self._kept = KeptResults(
            bytes_max=settings.cache_memory_bytes_max,
            tenant_bytes_max=settings.cache_tenant_bytes_max,
            hot_hits_min=_HOT_HITS_MIN,
        )
        #: What pinned tenants ask for.
        self.hot = HotQuestions(settings.pinned_statements_max)
        self._shared = SharedReads(settings.cache_followers_max)
        #: Seconds that a statement takes, on average, by its text.
        self._times: OrderedDict[str, float] = OrderedDict()
        #: Since when a table has had writes under way whenever it was looked at.
        self._busy_since: OrderedDict[tuple[str, str], float] = OrderedDict()
        #: Seconds that Redis takes, on average, and reads for which it was not worth asking.
        self._look_s = 0.0
        self._passed_by = 0
        self._cooled_at = self._loop.time()
        self.statistics = CacheStatistics()
        self._writes = AnnouncedWrites(
            executor=executor,
            store=store,
            switch=switch,
            statistics=self.statistics,
            version_of=shapes.version,
        )
        #: Has pinned tenants ready, once it was started.
        self.pins = PinnedTenants(
            settings=settings,
            catalog=catalog,
            routes=routes,
            executor=executor,
            results=self,
            shapes=shapes,
        )

    def document(self) -> dict[str, int]:
        """The statistics, with what is in memory now."""
        return asdict(self.statistics) | {
            "results": len(self._kept),
            "bytes": self._kept.bytes,
            "evicted": self._kept.evicted,
            "hot_tenants": len(self._kept.hot()),
            "pinned_tenants": len(self.hot.pinned),
            "periods_begun": self._switch.begun,
            "periods_ended": self._switch.ended,
        }

    # What the engine runs

    async def execute(
        self, route: Route, operation: Operation, schema: VisibleSchema
    ) -> QueryResult:
        """Run one operation. Raises what the executor raises."""
        cache = _cache_of(route)
        if operation.idempotency_key is not None:
            changes = self._writes.changes([operation], schema)
            async with self._writes.announced(route, cache, changes, schema):
                return await self._batches.once(route, operation, schema)
        question = None
        try:
            statement = self._executor.statement(operation.query, schema)
            if statement.kind is StatementKind.READ:
                question = self._question(route, cache, statement, operation, schema)
        except TenancyError:
            # It is refused there too, and counted as everything that is refused.
            return await self._executor.execute(route, operation, schema)
        if statement.kind is not StatementKind.READ:
            async with self._writes.announced(route, cache, statement.changes, schema):
                return await self._executor.execute(route, operation, schema)
        if question is None:
            self.statistics.bypassed += 1
            return await self._timed(route, operation, schema)
        return await self._answer(route, operation, schema, question)

    async def together(
        self, route: Route, operations: Sequence[Operation], schema: VisibleSchema
    ) -> list[QueryResult]:
        """As `Batches.together`."""
        changes = self._writes.changes(operations, schema)
        async with self._writes.announced(route, _cache_of(route), changes, schema):
            return await self._batches.together(route, operations, schema)

    async def apart(
        self, route: Route, operations: Sequence[Operation], schema: VisibleSchema
    ) -> list[QueryResult | TenancyError]:
        """As `Batches.apart`."""
        changes = self._writes.changes(operations, schema)
        async with self._writes.announced(route, _cache_of(route), changes, schema) as outcomes:
            outcomes += await self._batches.apart(route, operations, schema)
            return outcomes

    # What administrators do

    async def switch(self, tenant: Tenant, wanted: bool) -> Tenant:
        """Keep the tenant's results, or do not: when this returns, nobody gives any.

        Raises `UnavailableError` when keeping begins later only.
        """
        if wanted:
            await self._switch.want(tenant)
        else:
            await self.unpin(tenant)
            await self._switch.unwant(tenant)
            self._kept.forget_tenant(tenant.tenant_no)
        return await self._catalog.tenant(tenant.tenant_id)

    async def let_go(self, tenant: Tenant) -> None:
        """Keep none for as long as the tenant takes no operations."""
        await self._switch.end_of(tenant)
        self._kept.forget_tenant(tenant.tenant_no)

    async def pin(self, tenant: Tenant) -> None:
        """Have the tenant looked after (`pinned_tenants`); `LimitError` when it is one too many."""
        most = self._settings.pinned_tenants_max
        if await self._switch.pin(tenant, most) is None:
            raise LimitError(
                f"{most} tenants are pinned already, or {tenant.tenant_id} keeps no results; unpin "
                "another one, or raise TENANCY_PINNED_TENANTS_MAX"
            )

    async def unpin(self, tenant: Tenant) -> None:
        """Treat the tenant as all others, and forget what it asks for."""
        name = await self._switch.unpin(tenant)
        if name is not None:
            self._store.forget(name)

    def begin_later(self, tenant: Tenant) -> None:
        """Begin a period of the tenant beside everything else, if there is none; not too often."""
        self._switch.begin_later(tenant)

    async def close(self) -> None:
        """Keep nothing more."""
        await self.pins.close()
        await self._switch.close()
        await self._store.close()
        await self.redis.close()

    # What is done ahead for pinned tenants

    def hold(self, pinned: Mapping[TenantNo, str]) -> None:
        """Let these tenants' results go last, and note what they ask for."""
        self.hot.pin(pinned)
        self._kept.pinned = frozenset(pinned)

    async def fill(self, route: Route, operation: Operation, schema: VisibleSchema) -> bool:
        """Have the result of a read kept; False when it cannot be now. Raises as `execute`."""
        statement = self._executor.statement(operation.query, schema)
        if statement.kind is not StatementKind.READ:
            return False
        question = self._question(route, _cache_of(route), statement, operation, schema, ahead=True)
        if question is None:
            return False
        self.statistics.filled_ahead += 1
        await self._answer(route, operation, schema, question)
        return True

    async def recall(self, tenant_no: TenantNo) -> bool:
        """Learn what a pinned tenant asked for before this process began, or in another one.

        False when that may be known later.
        """
        name = self.hot.pinned.get(tenant_no)
        if name is not None and self._store.shares:
            try:
                self.hot.learn(tenant_no, await self._store.recall(name))
            except NoAnswerError:
                return False
        return True

    async def remember(self, tenant_no: TenantNo, packed: bytes) -> bool:
        """Let what a pinned tenant asks for be known after a restart; whether it is."""
        name = self.hot.pinned.get(tenant_no)
        if name is None or not self._store.shares:
            return False
        try:
            await self._store.remember(name, packed)
        except NoAnswerError:
            return False
        return True

    # Reads

    def _question(
        self,
        route: Route,
        cache: TenantCache,
        statement: Statement,
        operation: Operation,
        schema: VisibleSchema,
        *,
        ahead: bool = False,
    ) -> _Question | None:
        """What to look for; None when the result may not be kept, or is not worth it.

        `ahead` says that the tenant itself does not ask for it.
        """
        if not statement.repeatable or len(statement.tables) >= FIELDS_MAX:
            return None
        nonce = cache.nonce
        if nonce is None or not cache.serving or self._switch.has_ended(nonce):
            self._switch.begin_later(route.tenant)
            return None
        if self._is_cheap(statement.source):
            return None
        if not self._is_believed(route) or self._version_of(schema) != cache.version:
            return None
        arguments = statement.bind(operation.params)
        if size_of(arguments) > _ARGUMENT_BYTES_MAX or names_the_clock(arguments):
            return None
        if not ahead and route.tenant.tenant_no in self.hot:
            self.hot.note(route.tenant.tenant_no, statement, arguments)
        text = repr(
            (nonce, route.tenant.tenant_no, route.placement.epoch, statement.text, arguments)
        )
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        return _Question(statement, nonce, digest, (*sorted(statement.tables), ALL))

    def _is_cheap(self, text: str) -> bool:
        """Whether PostgreSQL answers so soon that Redis is not worth asking.

        Both are compared as they are under the present load, so Redis is asked now and then.
        """
        least_us = self._settings.cache_statement_min_us
        time_s = self._times.get(text)
        if not least_us or time_s is None:
            return False
        if time_s * 1e6 >= least_us and time_s >= _WORTH * self._look_s:
            return False
        self._passed_by += 1
        # What a burst has made of it does not last.
        self._look_s *= _FADES
        return self._passed_by % _TRY_EVERY != 0

    def _is_believed(self, route: Route) -> bool:
        """Whether the tenant is certainly where it is known to be, and nobody ended its period."""
        return (
            self._loop.time() < route.believed_until - self._settings.placement_refresh_ms / 2_000
        )

    async def _answer(
        self, route: Route, operation: Operation, schema: VisibleSchema, question: _Question
    ) -> QueryResult:
        began, began_s = self._loop.time(), monotonic()
        tenant_no, digest = route.tenant.tenant_no, question.digest
        entry = self._kept.get(tenant_no, digest, began)
        slot = self._store.slot(digest)
        try:
            found = await self._store.look(
                question.nonce, question.tables, None if entry is not None else slot
            )
        except NoAnswerError:
            self.statistics.unanswered += 1
            return await self._timed(route, _later(operation, self._loop.time() - began), schema)
        look_s = self._loop.time() - began
        self._look_s += _NEWEST * (look_s - self._look_s)
        operation = _later(operation, look_s)
        if found is None or not self._is_believed(route):
            if found is None:
                self._switch.renew_later(route.tenant, question.nonce)
            self.statistics.bypassed += 1
            return await self._timed(route, operation, schema)
        counts, ended, shared = tuple(found[0]), tuple(found[1]), found[2]
        packed = self._current(route, question, entry, counts, shared)
        if packed is not None:
            return self._given(route, question, packed, began_s)
        if counts != ended:
            self.statistics.under_way += 1
            self._watch(route.tenant, question, counts, ended)
            return await self._timed(route, operation, schema)
        return await self._fill(route, operation, schema, question, counts, began_s)

    def _current(
        self,
        route: Route,
        question: _Question,
        entry: KeptResult | None,
        counts: tuple[int, ...],
        shared: bytes,
    ) -> bytes | None:
        """The packed result that is kept and current."""
        tenant_no, digest = route.tenant.tenant_no, question.digest
        self._cool_down()
        if entry is not None:
            if entry.counts == counts:
                self.statistics.hits_memory += 1
                if self._kept.get(tenant_no, digest, 0.0) is entry:
                    self._kept.used(tenant_no, digest)
                return entry.packed
            self.statistics.stale_avoided += 1
            self._kept.drop(tenant_no, digest)
            return None
        packed, avoided = read_labelled(shared, digest, counts)
        if packed is not None:
            self.statistics.hits_shared += 1
            self._keep(tenant_no, digest, counts, packed)
        self.statistics.stale_avoided += avoided
        return packed

    async def _fill(
        self,
        route: Route,
        operation: Operation,
        schema: VisibleSchema,
        question: _Question,
        counts: tuple[int, ...],
        began_s: float,
    ) -> QueryResult:
        waits_from = self._loop.time()
        most_s = operation.deadline_s or route.limits.statement_timeout_ms / 1_000
        found = await self._shared.join(question.digest, counts, waits_from + most_s)
        if isinstance(found, bytes):
            self.statistics.joined += 1
            return self._given(route, question, found, began_s)
        if isinstance(found, TenancyError):
            self.statistics.joined += 1
            self._executor.turned_away(route, found)
            raise type(found)(found.detail, found.sqlstate, found.retry_after_s)
        self.statistics.misses += 1
        operation = _later(operation, self._loop.time() - waits_from)
        if found is Nothing.NOT_SHARED:
            return await self._timed(route, operation, schema)
        with self._shared.asking(question.digest, counts) as reader:
            result = await self._timed(route, operation, schema)
            packed = self._packed(result)
            reader.gives(packed)
        if packed is not None:
            self.statistics.kept += 1
            self._keep(route.tenant.tenant_no, question.digest, counts, packed)
            slot = self._store.slot(question.digest)
            if slot is not None:
                self._store.keep(slot, labelled(question.digest, counts, packed))
        return result

    def _given(
        self, route: Route, question: _Question, packed: bytes, began_s: float
    ) -> QueryResult:
        """A result that is given, measured as every operation is."""
        result = unpacked_result(packed)
        windows = self._executor.windows
        if windows is not None:
            took_s = monotonic() - began_s
            windows.hit(route, question.statement, took_s, result.row_count)
        return result

    async def _timed(
        self, route: Route, operation: Operation, schema: VisibleSchema
    ) -> QueryResult:
        """The executor's answer, and note how long it took."""
        began = self._loop.time()
        try:
            result = await self._executor.execute(route, operation, schema)
        except PlacementChangedError:
            cache = _cache_of(route)
            if cache.nonce is not None and not cache.serving:
                self._switch.begin_later(route.tenant)
            raise
        time_s = self._loop.time() - began
        before = self._times.get(operation.query, time_s)
        self._times[operation.query] = before + _NEWEST * (time_s - before)
        self._times.move_to_end(operation.query)
        while len(self._times) > _REMEMBERED_MAX:
            self._times.popitem(last=False)
        return result

    def _keep(self, tenant_no: int, digest: bytes, counts: tuple[int, ...], packed: bytes) -> None:
        until_s = self._loop.time() + self._settings.cache_age_s
        self._kept.put(tenant_no, digest, KeptResult(counts, packed, until_s))

    def _packed(self, result: QueryResult) -> bytes | None:
        """The result as it is kept; None when it cannot be, or is too large."""
        packed = packed_result(result)
        if packed is not None and len(packed) > self._settings.cache_result_bytes_max:
            self.statistics.too_large += 1
            return None
        return packed

    def _watch(
        self, tenant: Tenant, question: _Question, counts: Sequence[int], ended: Sequence[int]
    ) -> None:
        """Have another period begin when a write of this one seems to be lost."""
        now = self._loop.time()
        for table, began, over in zip(question.tables, counts, ended, strict=True):
            key = (question.nonce, table)
            if began == over:
                self._busy_since.pop(key, None)
            elif now - self._busy_since.setdefault(key, now) >= self._settings.cache_lost_write_s:
                del self._busy_since[key]
                self._switch.renew_later(tenant, question.nonce)
        while len(self._busy_since) > _REMEMBERED_MAX:
            self._busy_since.popitem(last=False)

    def _cool_down(self) -> None:
        if self._loop.time() - self._cooled_at >= _COOL_DOWN_S:
            self._cooled_at = self._loop.time()
            self._kept.cool_down()
            self.hot.cool_down()


def _cache_of(route: Route) -> TenantCache:
    cache = route.tenant.cache
    assert cache is not None  # noqa: S101 - others do not come here.
    return cache


def _later(operation: Operation, elapsed_s: float) -> Operation:
    """The operation with what is left of its time."""
    if operation.deadline_s is None:
        return operation
    return replace(operation, deadline_s=max(operation.deadline_s - elapsed_s, 0.001))
