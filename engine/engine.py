"""The engine: everything that PostgreSQL does for tenants, behind one object.

`Engine.open` sets an installation up (servers, roles, catalog, schema) and connects to it;
`Engine.attach` connects to one that is set up. What is opened is closed in the reverse order, also
when opening fails half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    SetupError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, parse_tenant_id
from tenancy.data_isolation.core.proposal import OrchestrationMode
from tenancy.data_isolation.core.rules import RuleBook, StrategyName
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    Placement,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
    TenantStatus,
)
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.batch import Batches
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.bootstrap import Bootstrap, check_installation
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.configured_servers import configured_servers
from tenancy.data_isolation.engine.credentials import Credentials
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.fleet import Fleet
from tenancy.data_isolation.engine.fleet_run import FleetProgress, FleetReport, translated
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.layout import REFERENCE_SCHEMA, shared_database
from tenancy.data_isolation.engine.level_review import LevelReview, MeasureSize
from tenancy.data_isolation.engine.loads import Loads
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.engine.measured_windows import MeasuredWindows
from tenancy.data_isolation.engine.migration import Migration
from tenancy.data_isolation.engine.moves import Moves, connections_of_moves
from tenancy.data_isolation.engine.named_operations import NamedOperations
from tenancy.data_isolation.engine.operations import Begun, Done, Operations
from tenancy.data_isolation.engine.overheard import Overheard
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.proposals import Proposals
from tenancy.data_isolation.engine.provisioner import Provisioner
from tenancy.data_isolation.engine.result_cache import ResultCache
from tenancy.data_isolation.engine.routes import Route, Routes, active_placement
from tenancy.data_isolation.engine.row_tenants import RowTenants
from tenancy.data_isolation.engine.table_shape import TableShapes
from tenancy.data_isolation.engine.tenant_databases import TenantDatabases
from tenancy.data_isolation.engine.tenant_size import measured_size
from tenancy.data_isolation.engine.tracing import Tracing
from tenancy.data_isolation.engine.visible_schema import VisibleRelation
from tenancy.data_isolation.engine.warming import warm

#: How far a tenant's rows are counted for the plan of a move.
PLAN_ROWS_MAX: Final = 1_000_000_000


class Engine:
    """Tenants, their schema and their operations. Belongs to the event loop that opened it.

    Durability: what a method reports as done is committed. Concurrency: every method may be called
    from any number of tasks; any number of processes may work on one installation. A method that is
    cancelled leaves no connection in a strange state; a write that it carried may have happened.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        servers: Sequence[ServerConfig],
        key: MasterKey,
        catalog: Catalog,
        keys: BindingKeys,
        closing: AsyncExitStack,
    ) -> None:
        """Use `open` or `attach`. `closing` closes what is not the engine's own."""
        admin = AdminConnections(settings=settings, servers=servers, keep_warm=True)
        self.settings = settings
        self.servers = tuple(servers)
        self.catalog = catalog
        self.admin = admin
        self.keys = keys
        self.credentials = Credentials(settings=settings, catalog=catalog)
        self.fleet = Fleet(settings=settings, catalog=catalog, admin=admin, keys=keys)
        self.guard = Guard(settings=settings)
        self.shapes = TableShapes(settings=settings, catalog=catalog, admin=admin, keys=keys)
        self.named_operations = NamedOperations(
            settings=settings, store=catalog, guard=self.guard, shapes=self.shapes
        )
        self._maker = PlacementMaker(
            settings=settings,
            master_key=key,
            catalog=catalog,
            admin=admin,
            keys=keys,
            namespaces=self.fleet,
        )
        self._provisioner = Provisioner(
            settings=settings, catalog=catalog, admin=admin, maker=self._maker
        )
        moving = connections_of_moves(settings, servers)
        self.moves = Moves(
            settings=settings,
            catalog=catalog,
            admin=moving,
            keys=keys,
            maker=self._maker.over(moving, silent_max_ms=settings.move_idle_timeout_ms),
            measure=lambda tenant_id: self.tenant_size(tenant_id, rows_max=PLAN_ROWS_MAX),
        )
        self.proposals = Proposals(settings=settings, catalog=catalog, moves=self.moves)
        names = tuple(ServerName(server.name) for server in servers)
        self.loads = Loads(settings=settings, catalog=catalog, servers=names)
        self.databases = TenantDatabases(settings=settings, catalog=catalog, admin=admin)
        self._routes = Routes(
            settings=settings,
            catalog=catalog,
            keys=keys,
            databases=self.databases,
            left=self._has_left,
            arriving=self._will_arrive,
        )
        self._overheard = Overheard()
        self._executor = Executor(
            settings=settings,
            guard=self.guard,
            keys=keys,
            master_key=key,
            servers=servers,
            hear=self._overheard.hear,
        )
        self._batches = Batches(settings=settings, executor=self._executor)
        self.results = self._result_cache(admin)
        self.operations = self._operations()
        self._beside: set[asyncio.Task[None]] = set()
        self._closing = closing
        self._closed = False

    def _result_cache(self, admin: AdminConnections) -> ResultCache:
        """What runs the operations of tenants whose results are kept."""
        return ResultCache(
            settings=self.settings,
            executor=self._executor,
            batches=self._batches,
            catalog=self.catalog,
            admin=admin,
            maker=self._maker,
            routes=self._routes,
            shapes=self.shapes,
        )

    def _operations(self) -> Operations:
        """What runs tenants' operations."""
        return Operations(
            routes=self._routes,
            shapes=self.shapes,
            executor=self._executor,
            batches=self._batches,
            results=self.results,
            loads=self.loads,
        )

    # From open to close

    @classmethod
    async def open(cls, config: EngineConfig | None = None) -> Engine:
        """Set everything up that is not there yet, and connect.

        Without servers in the configuration and without `TENANCY_POSTGRES_DSN` an embedded server
        is started, and stopped by `close`. Raises `SetupError`s and `ServerUnavailableError`.
        """
        config = config or EngineConfig()
        settings = config.resolved_settings()
        settings.check_levels()
        async with AsyncExitStack() as stack:
            key = await master_key(settings)
            servers = await configured_servers(config, settings, stack)
            await Bootstrap(settings=settings, master_key=key, servers=servers).run()
            engine = await cls._connected(settings, servers, key, stack)
            engine.results.redis.owned = True
            await engine.databases.ensure_all()
            await engine.fleet.prepare()
            await engine.shapes.refresh()
            engine._closing = stack.pop_all()
        return engine

    @classmethod
    async def attach(cls, config: EngineConfig, *, checked: bool = True) -> Engine:
        """Connect to an installation that another process has set up.

        Raises `SetupError` when the configuration names no server, or when nothing is set up there,
        and `UnsafeRoleError` or `UnsafeServerError` when a tenant could cross its boundary there,
        unless `checked` is false: that is for who wants to look.
        """
        settings = config.resolved_settings()
        settings.check_levels()
        if not config.servers and settings.postgres_dsn is None:
            raise SetupError("there is no server to attach to; name one in EngineConfig.servers")
        async with AsyncExitStack() as stack:
            key = await master_key(settings)
            servers = await configured_servers(config, settings, stack)
            engine = await cls._connected(settings, servers, key, stack)
            if checked:
                with translated(changing=False):
                    await check_installation(settings, engine.admin)
            if not await engine._is_prepared():
                await engine.fleet.prepare()
            await engine.shapes.refresh()
            engine._closing = stack.pop_all()
        return engine

    @classmethod
    async def _connected(
        cls,
        settings: Settings,
        servers: Sequence[ServerConfig],
        key: MasterKey,
        stack: AsyncExitStack,
    ) -> Engine:
        catalog = await Catalog.open(settings=settings, master_key=key, server=servers[0])
        stack.push_async_callback(catalog.close)
        keys = BindingKeys(key)
        await keys.refresh(catalog)
        engine = cls(
            settings=settings,
            servers=servers,
            key=key,
            catalog=catalog,
            keys=keys,
            closing=AsyncExitStack(),
        )
        stack.push_async_callback(engine._close_own)
        return engine

    async def _is_prepared(self) -> bool:
        """Whether the fixed namespaces are there."""
        control = ServerName(self.servers[0].name)
        database = shared_database(self.settings)
        return await self.catalog.namespace(control, database, REFERENCE_SCHEMA) is not None

    async def close(self) -> None:
        """Let what is at work end for a while, then close everything. Can be called again."""
        if not self._closed:
            self._closed = True
            await self._closing.aclose()

    async def _close_own(self) -> None:
        await self.loads.close()
        await self.results.close()
        await self._routes.close()
        await self.moves.close()
        await self.shapes.close()
        await self._executor.close()
        await self.admin.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # Tenants

    async def create_tenant(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        """Make the tenant at that level, or finish making it.

        `server` None leaves the choice among the servers of the tenant's region to the engine.
        `database_prefix` is what the name of a new database begins with. `hybrid`, at level ROW,
        keeps the tables that are marked sensitive in a schema of the tenant's own. Raises
        `TenantExistsError` when there is one of that name with other properties.
        """
        return await self._provisioner.create(
            context, level=level, server=server, database_prefix=database_prefix, hybrid=hybrid
        )

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """Make many tenants at level ROW, in chunks; in the place of one that fails, its error."""
        maker, provisioner = self._maker, self._provisioner
        tenants = RowTenants(
            settings=self.settings, catalog=self.catalog, maker=maker, provisioner=provisioner
        )
        return await tenants.create(contexts, server=server)

    async def tenant(self, tenant_id: TenantId | str) -> Tenant:
        """The tenant of that name, or `TenantNotFoundError`."""
        return await self.catalog.tenant(parse_tenant_id(tenant_id))

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """Tenants in the order of their names, from the one behind `after`."""
        return await self.catalog.tenants(after=after, limit=limit)

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """How many tenants each strategy that places data holds."""
        return await self.catalog.count_by_strategy()

    async def tenant_size(self, tenant_id: TenantId | str, *, rows_max: int) -> TenantSize:
        """How much data the tenant has, counted with its own rights until `rows_max` rows."""
        if rows_max < 1:
            raise InvalidInputError(f"rows_max is {rows_max}; it must be 1 or more")
        return await self._routes.run(
            parse_tenant_id(tenant_id),
            lambda route: measured_size(
                self._executor, route, self.shapes.at(route.key), rows_max=rows_max
            ),
        )

    def level_review(
        self,
        book: RuleBook,
        mode: OrchestrationMode,
        *,
        interval_s: float | None = None,
        measure: MeasureSize | None = None,
    ) -> LevelReview:
        """What looks whether tenants are at the right level, and proposes or starts moves.

        `measure` counts tenants' rows; this process does when it is not given. Nothing is begun.
        """

        async def measured(tenant_id: TenantId, rows_max: int) -> TenantSize:
            return await self.tenant_size(tenant_id, rows_max=rows_max)

        return LevelReview(
            settings=self.settings,
            catalog=self.catalog,
            moves=self.moves,
            store=self.proposals.store,
            book=book,
            measure=measure or measured,
            mode=mode,
            interval_s=interval_s,
        )

    async def suspend_tenant(self, tenant_id: TenantId | str) -> Tenant:
        """Refuse the tenant's operations from now on; those at work have ended on return."""
        tenant = await self.tenant(tenant_id)
        await self.moves.check_free(tenant, "suspended")
        suspended = await self._provisioner.suspend(tenant)
        await self.results.let_go(suspended)
        await self._let_go(suspended)
        return suspended

    async def resume_tenant(self, tenant_id: TenantId | str) -> Tenant:
        """Take the tenant's operations again."""
        tenant = await self.tenant(tenant_id)
        resumed = await self._provisioner.resume(tenant)
        self._routes.forget(tenant.tenant_id)
        return resumed

    async def delete_tenant(self, tenant_id: TenantId | str) -> None:
        """Erase the tenant's data, then its name."""
        tenant = await self.tenant(tenant_id)
        await self.moves.check_free(tenant, "deleted")
        await self.results.unpin(tenant)
        if tenant.cache is not None and tenant.status is TenantStatus.ACTIVE:
            # While the catalog has the tenant, everybody hears of the end of its kept results.
            tenant = await self._provisioner.suspend(tenant)
        await self.results.let_go(tenant)
        await self._let_go(tenant)
        await self._provisioner.delete(tenant)
        await self._let_go(tenant)

    async def keep_results(self, tenant_id: TenantId | str, wanted: bool) -> Tenant:
        """Keep the tenant's results from now on, or do not: as `ResultCache.switch`."""
        return await self.results.switch(await self.tenant(tenant_id), wanted)

    async def pin_tenant(self, tenant_id: TenantId | str, wanted: bool) -> None:
        """Have the tenant ready before it asks, or do not: as `PinnedTenants` has it."""
        await (self.results.pin if wanted else self.results.unpin)(await self.tenant(tenant_id))
        self.results.pins.start()

    async def pinned_tenants(self) -> list[TenantId]:
        """The tenants that are pinned."""
        return await self.results.pins.pinned()

    async def cache_statistics(self) -> Mapping[str, int]:
        """As `ResultCache.document`."""
        return self.results.document()

    async def activate(self, tenant_id: TenantId | str) -> Tenant:
        """The tenant, remembered so that its operations do not ask the catalog.

        Raises `TenantNotFoundError` and, when it takes no operations, `TenantSuspendedError`.
        """
        tenant = await self._routes.tenant(parse_tenant_id(tenant_id))
        active_placement(tenant)
        return tenant

    def observe(self, windows: MeasuredWindows | None, tracing: Tracing | None) -> None:
        """Measure operations, and trace them, from now on; None = do not."""
        self._executor.windows, self._executor.tracing = windows, tracing

    def passivate(self, tenant_id: TenantId) -> None:
        """Forget where the tenant is, to save memory or because it may have changed."""
        self._routes.forget(tenant_id)

    def _has_left(self, placement: Placement) -> None:
        """Sessions to a place that a tenant has left keep nothing from being cleaned up there."""
        self._aside(self._executor.retire(placement))

    def _will_arrive(self, route: Route) -> None:
        """There are sessions where a tenant will be soon, before it comes."""
        self._aside(warm(self._executor, route, self.shapes.newest, self._overheard))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _let_go(self, tenant: Tenant) -> None:
        self._routes.forget(tenant.tenant_id)
        if tenant.placement is not None:
            await self._executor.retire(tenant.placement)

    # The schema

    async def apply_migration(
        self, name: str, sql: str, *, progress: Callable[[FleetProgress], None] | None = None
    ) -> FleetReport:
        """Register a migration (`0001_name`) and bring it to all tenants.

        Raises `SchemaRefusedError`, `MigrationFailedError` and `MigrationConflictError`; what fails
        for single tenants is in the report.
        """
        await self.fleet.register([Migration.called(name, sql)])
        report = await self.fleet.apply(progress=progress)
        await self.shapes.refresh()
        return report

    async def relations(self) -> list[VisibleRelation]:
        """The tenants' tables and views, in the order of their names."""
        await self.shapes.refresh()
        known = self.shapes.newest.relations
        return [known[name] for name in sorted(known) if not name.startswith("tenancy_")]

    async def tables(self) -> list[str]:
        """The names of the tenants' tables and views."""
        return [relation.name for relation in await self.relations()]

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """The statement that a named operation stands for; `anew`: look at the tables now."""
        return await self.named_operations.resolve(name, data, anew=anew)

    # Operations

    def execute(
        self, tenant_id: TenantId | str, operation: Operation
    ) -> Coroutine[Any, Any, QueryResult]:
        """Run one operation of a tenant.

        Raises `TenantNotFoundError`, `TenantSuspendedError`, `StatementError`s, `LimitError`s (what
        the tenant's type may not is `RateLimitedError`, at once and before anything is done) and
        `UnavailableError`s, after which nothing was done, and `OutcomeUnknownError`.
        """
        # No coroutine of its own: there is one for every operation.
        return self.operations.execute(tenant_id, operation)

    def begin(self, tenant_id: TenantId, operation: Operation, done: Done) -> Begun | None:
        """As `Operations.begin`."""
        return self.operations.begin(tenant_id, operation, done)

    async def execute_batch(
        self,
        tenant_id: TenantId | str,
        operations: Sequence[Operation],
        *,
        atomic: bool = False,
    ) -> list[QueryResult | TenancyError]:
        """Run several operations of a tenant, in their order.

        With `atomic` all happen or none, and the error of a failed one is raised and begins with
        its number; otherwise each has its result or its error in its place.
        """
        return await self.operations.execute_batch(tenant_id, operations, atomic=atomic)
