"""What all strategies share: the way to tenants, the tenants seen lately, and the placing itself.

A strategy never speaks to PostgreSQL. It reaches tenants through a `TenantGateway`: the engine in
this process, or tenant actors. It creates a tenant on its first use, once, however many operations
ask for it at the same time; a tenant that exists is used where its data is.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    SettingError,
    SetupError,
    TenancyError,
    TenantExistsError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, parse_word
from tenancy.data_isolation.core.named_run import run_named
from tenancy.data_isolation.core.performance import Outcome, Performance, outcome_of
from tenancy.data_isolation.core.promotion import Promotion
from tenancy.data_isolation.core.rules import (
    STRATEGY_OF_LEVEL,
    RuleBook,
    StrategyName,
    placed_by,
    strength,
)
from tenancy.data_isolation.core.rules_file import read_rules
from tenancy.data_isolation.core.servers_file import all_servers
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
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

_Options = TypeVar("_Options")
_RULES = Path(__file__).with_name("rules.toml")


@runtime_checkable
class TenantGateway(Protocol):
    """The way to tenants. Safe for concurrent use from one event loop.

    What a method reports as done is durable: it is in PostgreSQL's write-ahead log. A method that
    is cancelled leaves no connection in a strange state; a write that it carried may have happened.
    """

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

        `server` None leaves the server to the engine. `database_prefix` is what the name of a new
        database begins with. `hybrid`, at level ROW, keeps sensitive tables in a schema of the
        tenant's own. Raises `TenantExistsError`.
        """
        ...

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """Make many tenants at level ROW at a time, or finish making them.

        In the place of one that cannot be made stands its error; one that is there already with
        the same properties is given as it is.
        """
        ...

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant of that name, or `TenantNotFoundError`."""
        ...

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """Tenants in the order of their names, from the one behind `after`."""
        ...

    async def suspend_tenant(self, tenant_id: TenantId) -> Tenant:
        """Refuse the tenant's operations from now on."""
        ...

    async def resume_tenant(self, tenant_id: TenantId) -> Tenant:
        """Take the tenant's operations again."""
        ...

    async def delete_tenant(self, tenant_id: TenantId) -> None:
        """Erase the tenant's data, then its name."""
        ...

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        """Run one operation."""
        ...

    async def execute_batch(
        self, tenant_id: TenantId, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        """Run several; `atomic` = all or none."""
        ...

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """The statement that a named operation stands for; `anew`: look at the tables now."""
        ...

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """How many tenants each strategy that places data holds."""
        ...

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        """How much data the tenant has, counted until `rows_max` rows."""
        ...

    async def close(self) -> None:
        """Let go of everything. Can be called again."""
        ...


class Strategy(Protocol):
    """What every strategy offers. Safe for concurrent use from one event loop."""

    @property
    def name(self) -> StrategyName:
        """The strategy's name."""
        ...

    async def initialize(self, engine_config: EngineConfig | None = None) -> None:
        """Make ready; once, before anything else."""
        ...

    async def isolate_data(
        self, tenant_context: TenantContext, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a tenant."""
        ...

    async def metrics(self) -> dict[str, Any]:
        """What was done and measured."""
        ...

    async def cleanup(self) -> None:
        """Let go of everything. Can be called again."""
        ...


class _Stage(StrEnum):
    NEW = "new"
    OPENING = "opening"
    READY = "ready"
    CLOSED = "closed"


class GatewayLease:
    """A strategy's hold on its gateway, from `open` to `close`.

    It closes the gateway in the end only when it opened it itself.
    """

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._stage = _Stage.NEW
        self._gateway: TenantGateway | None = None
        self._owned = False

    @property
    def gateway(self) -> TenantGateway:
        """The gateway; `SetupError` before `open` and after `close`."""
        if self._gateway is None:
            if self._stage is _Stage.CLOSED:
                raise SetupError(f"this {self._holder} was cleaned up; make a new one")
            raise SetupError(
                f"this {self._holder} is not ready: await its initialize(EngineConfig(...)) first"
            )
        return self._gateway

    async def open(self, config: EngineConfig) -> TenantGateway:
        """Take the configuration's gateway, or open the engine in this process."""
        if self._stage is not _Stage.NEW:
            raise SetupError(f"this {self._holder} was initialized before; make a new one")
        self._stage = _Stage.OPENING
        try:
            gateway, owned = await _gateway(config)
        except BaseException:
            self._stage = _Stage.NEW
            raise
        if self._stage is _Stage.CLOSED:
            # `close` was called meanwhile, and had nothing to close yet.
            if owned:
                await gateway.close()
            raise SetupError(f"this {self._holder} was cleaned up while it was made ready")
        self._gateway, self._owned, self._stage = gateway, owned, _Stage.READY
        return gateway

    async def close(self) -> None:
        """Let go of the gateway. Can be called again."""
        gateway, self._gateway = self._gateway, None
        self._stage = _Stage.CLOSED
        if gateway is not None and self._owned:
            await gateway.close()


async def _gateway(config: EngineConfig) -> tuple[TenantGateway, bool]:
    """The gateway that the configuration brings or asks for, and whether it is ours to close."""
    if config.gateway is None:
        # Imported late: who brings a gateway needs none of the engine's libraries.
        from tenancy.data_isolation.engine.engine import Engine

        engine = await Engine.open(config)
        # Which tenants are to be ready was said in another process, or before this one began.
        engine.results.pins.start()
        return engine, True
    missing = [name for name in _GATEWAY_METHODS if not hasattr(config.gateway, name)]
    if missing:
        raise SettingError(
            f"EngineConfig.gateway: {type(config.gateway).__name__} is no way to tenants; "
            f"it lacks {', '.join(missing)}"
        )
    return config.gateway, False


_GATEWAY_METHODS = tuple(name for name in vars(TenantGateway) if not name.startswith("_"))


def check_switches(config: Any) -> None:
    """Raise `SettingError` when a switch of a config class is neither True nor False."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(item.default, bool) and not isinstance(value, bool):
            raise SettingError(
                f"{type(config).__name__}.{item.name} is {value!r}; it must be True or False"
            )


def checked_options(given: _Options | None, kind: type[_Options]) -> _Options:
    """The options that were given, or the default ones; `InvalidInputError` when they are none."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise InvalidInputError(f"options are a {kind.__name__}(...), not {type(given).__name__}")
    return given


def check_server(config: Any) -> None:
    """Raise `SettingError` when the server that a config class names cannot be one."""
    if config.server is None:
        return
    try:
        parse_word(config.server, f"{type(config).__name__}.server")
    except InvalidInputError as error:
        raise SettingError(error.detail) from None


def check_numbers(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise `SettingError` when a number of a config class is none, or out of its range.

    A field whose range begins with a whole number takes whole numbers only.
    """
    for name, (smallest, largest) in ranges.items():
        value = getattr(config, name)
        kind: Any = int if isinstance(smallest, int) else int | float
        what = f"{type(config).__name__}.{name}"
        if isinstance(value, bool) or not isinstance(value, kind):
            sort = "whole number" if kind is int else "number"
            raise SettingError(f"{what} is {value!r}; a {sort} is needed")
        if not smallest <= value <= largest:
            raise SettingError(f"{what} is {value}; use {smallest} to {largest}")


def checked_config(config: EngineConfig | None) -> EngineConfig:
    """The configuration (None = embedded servers); `InvalidInputError` when it is none."""
    config = EngineConfig() if config is None else config
    if not isinstance(config, EngineConfig):
        raise InvalidInputError(f"initialize() takes an EngineConfig, not {type(config).__name__}")
    return config


def known_servers(config: EngineConfig) -> tuple[ServerConfig, ...]:
    """The servers that were given; none when they are embedded or behind a gateway."""
    given = tuple(item for item in config.servers if isinstance(item, ServerConfig))
    if given or config.gateway is not None:
        return given
    settings = config.resolved_settings()
    named = settings.postgres_server()
    return () if named is None else all_servers(settings, named)


def chosen_server(name: str | None, config: EngineConfig, option: str) -> ServerName | None:
    """The server that an option names; `SettingError` when it is not among those given."""
    servers = [server.name for server in known_servers(config)]
    if name is not None and servers and name not in servers:
        raise SettingError(f"{option}: there is no server {name!r}; there are {', '.join(servers)}")
    return None if name is None else ServerName(name)


def rule_book(rules: str | Path | Mapping[str, Any] | None) -> RuleBook:
    """The user's rules, or those of `rules.toml`; its matrix stands where none is given."""
    ours = read_rules(_RULES.read_text(encoding="utf-8"), _RULES.name)
    if rules is None:
        return ours
    if isinstance(rules, Mapping):
        return read_rules(rules, "OrchestratorConfig.rules", defaults=ours)
    if not isinstance(rules, str | Path):
        raise SettingError("OrchestratorConfig.rules must be the path of a file, or a mapping")
    try:
        text = Path(rules).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"OrchestratorConfig.rules: {rules} cannot be read: {error}") from None
    return read_rules(text, str(rules), defaults=ours)


class KnownTenants:
    """Tenants seen lately, and one creation at a time per tenant.

    Bounded in number and age. What it remembers may be out of date by that age, and nothing relies
    on it: where a tenant's data is, the gateway finds out for each operation.
    """

    def __init__(
        self, gateway: TenantGateway, *, clock: Clock, entries_max: int, age_s: float
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._entries_max = entries_max
        self._age_s = age_s
        self._seen: OrderedDict[TenantId, tuple[Tenant, float]] = OrderedDict()
        self._creations: dict[TenantId, asyncio.Task[Tenant]] = {}

    async def find(self, tenant_id: TenantId) -> Tenant | None:
        """The tenant, when it exists and was placed."""
        entry = self._seen.get(tenant_id)
        if entry is not None and self._clock.monotonic_s() < entry[1]:
            self._seen.move_to_end(tenant_id)
            return entry[0]
        self.forget(tenant_id)
        try:
            tenant = await self._gateway.tenant(tenant_id)
        except TenantNotFoundError:
            return None
        if tenant.placement is None or tenant.status is TenantStatus.CREATING:
            return None
        return self._remember(tenant)

    async def obtain(self, tenant_id: TenantId, create: Callable[[], Awaitable[Tenant]]) -> Tenant:
        """The tenant; `create` makes it when there is none, and runs once at a time per tenant.

        A caller that is cancelled does not take the creation from the others that wait for it.
        """
        tenant = await self.find(tenant_id)
        if tenant is not None:
            return tenant
        task = self._creations.get(tenant_id)
        if task is None:
            task = asyncio.ensure_future(self._create(tenant_id, create))
            self._creations[tenant_id] = task
            task.add_done_callback(lambda done: self._created(tenant_id, done))
        return await asyncio.shield(task)

    def forget(self, tenant_id: TenantId) -> None:
        """Ask the gateway the next time."""
        self._seen.pop(tenant_id, None)

    async def settle(self) -> None:
        """Wait for the creations that are under way now."""
        if self._creations:
            await asyncio.wait(list(self._creations.values()))

    async def _create(self, tenant_id: TenantId, create: Callable[[], Awaitable[Tenant]]) -> Tenant:
        try:
            tenant = await create()
        except TenantExistsError:
            # Another process was faster: its tenant is the one to use, where it is.
            tenant = await self._gateway.tenant(tenant_id)
        return self._remember(tenant)

    def _created(self, tenant_id: TenantId, task: asyncio.Task[Tenant]) -> None:
        self._creations.pop(tenant_id, None)
        if not task.cancelled():
            # Looked at, so that asyncio does not complain when every caller was cancelled.
            task.exception()

    def _remember(self, tenant: Tenant) -> Tenant:
        self._seen[tenant.tenant_id] = (tenant, self._clock.monotonic_s() + self._age_s)
        self._seen.move_to_end(tenant.tenant_id)
        while len(self._seen) > self._entries_max:
            self._seen.popitem(last=False)
        return tenant


@dataclass(frozen=True, kw_only=True, slots=True)
class Creation:
    """How a strategy makes a new tenant."""

    #: False = a tenant that does not exist is an error.
    allowed: bool = True
    server: ServerName | None = None
    database_prefix: str | None = None


class PlacementStrategy:
    """A strategy that holds data at one isolation level."""

    name: ClassVar[StrategyName]
    level: ClassVar[IsolationLevel]

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lease = GatewayLease(type(self).__name__)
        self._performance = Performance()
        self._opened_at_s = 0.0
        self._creation = Creation()
        self._known: KnownTenants | None = None
        #: Options that have nothing to act on, and why.
        self.without_effect: dict[str, str] = {}

    async def initialize(self, engine_config: EngineConfig | None = None) -> None:
        """Make ready; once. Opens the engine unless the configuration brings a gateway."""
        config = self._secured(checked_config(engine_config))
        plan = self._plan(config)
        settings = config.resolved_settings()
        await self._lease.open(config)
        self._creation, self.without_effect = plan
        self._opened_at_s = self._clock.monotonic_s()
        self._known = KnownTenants(
            self._lease.gateway,
            clock=self._clock,
            entries_max=settings.known_tenants_max,
            age_s=settings.known_tenant_s,
        )

    async def isolate_data(
        self, tenant_context: TenantContext, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a tenant; a tenant that is new is made at this level.

        Returns tenant_id, operation, strategy, isolation_level, columns, rows, row_count and
        processing_time (seconds). Raises errors of `core.errors`.
        """
        self._lease.gateway  # noqa: B018 - raises unless the strategy is ready.
        context = checked_context(tenant_context)
        tenant = await self._obtain(context)
        try:
            return await self.operate(tenant, operation, data)
        except TenantNotFoundError:
            # It was deleted since we saw it, and nothing was done: it is a new tenant now.
            self._forget(tenant.tenant_id)
        return await self.operate(await self._obtain(context), operation, data)

    async def create(self, context: TenantContext) -> Tenant:
        """Make the tenant at this level."""
        if not self._creation.allowed:
            raise TenantNotFoundError(
                f"tenant {context.tenant_id} has no {self._noun()} and {type(self).__name__} is "
                "configured not to make one; create the tenant first"
            )
        return await self._lease.gateway.create_tenant(
            context,
            level=self.level,
            server=self._creation.server,
            database_prefix=self._creation.database_prefix,
            hybrid=self.name is StrategyName.HYBRID,
        )

    async def operate(
        self, tenant: Tenant, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a tenant that is at this level."""
        gateway = self._lease.gateway
        started_s = self._clock.monotonic_s()
        name, given = checked_request(operation, data)
        try:
            result = await run_named(gateway, tenant.tenant_id, name, given)
        except TenancyError as error:
            self._performance.record(outcome_of(error), self._clock.monotonic_s() - started_s)
            raise
        elapsed_s = self._clock.monotonic_s() - started_s
        self._performance.record(Outcome.DONE, elapsed_s)
        return {
            "tenant_id": tenant.tenant_id,
            "operation": name,
            "strategy": str(self.name),
            "isolation_level": str(self.level),
            "columns": [{"name": item.name, "type": item.type} for item in result.columns],
            "rows": result.rows,
            "row_count": result.row_count,
            "processing_time": elapsed_s,
        }

    async def metrics(self) -> dict[str, Any]:
        """Tenants at this level, what was measured, and which options have no effect and why."""
        counts = await self._lease.gateway.strategy_counts()
        return {
            "strategy": str(self.name),
            "isolation_level": str(self.level),
            "tenants": counts.get(self.name, 0),
            "performance": self._performance.summary(self._clock.monotonic_s() - self._opened_at_s),
            "without_effect": dict(self.without_effect),
        }

    async def cleanup(self) -> None:
        """Let go of everything. Can be called again."""
        if self._known is not None:
            await self._known.settle()
        await self._lease.close()

    @property
    def promotions(self) -> tuple[Promotion, ...]:
        """Tenants of this strategy for which another level is proposed."""
        return ()

    def _secured(self, config: EngineConfig) -> EngineConfig:
        """The configuration with which the engine is opened. Raises `SettingError`."""
        return config

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        """How new tenants are made under this configuration, and the options without effect.

        Raises `SettingError` when an option cannot be met.
        """
        return Creation(), {}

    def _noun(self) -> str:
        return {"row": "rows", "schema": "schema", "database": "database"}[self.level]

    async def _obtain(self, context: TenantContext) -> Tenant:
        known = self._known
        assert known is not None  # noqa: S101 - set before the lease is open to callers.
        wish = context.isolation_level
        if wish is not None and strength(wish) > strength(self.level):
            raise ConflictError(
                f"tenant {context.tenant_id} asks for level {wish} and {type(self).__name__} gives "
                f"only {self.level}; use {STRATEGY_OF_LEVEL[wish]} or change isolation_level"
            )
        tenant = await known.obtain(context_id(context), lambda: self.create(context))
        if placed_by(placement_of(tenant)) is not self.name:
            known.forget(tenant.tenant_id)
            tenant = await known.obtain(context_id(context), lambda: self.create(context))
        holder = placed_by(placement_of(tenant))
        if holder is not self.name:
            raise ConflictError(
                f"tenant {tenant.tenant_id} is at level {placement_of(tenant).level}; use {holder} "
                f"for it, or move it first (`tenancy tenant move`)"
            )
        return tenant

    def _forget(self, tenant_id: TenantId) -> None:
        if self._known is not None:
            self._known.forget(tenant_id)


def checked_context(context: TenantContext) -> TenantContext:
    """The context, when it is one; `InvalidInputError` otherwise."""
    if not isinstance(context, TenantContext):
        raise InvalidInputError(
            f"tenant_context must be a TenantContext, not {type(context).__name__}"
        )
    return context


def context_id(context: TenantContext) -> TenantId:
    """The tenant's id; a context has checked it when it was made."""
    return TenantId(context.tenant_id)


def checked_request(
    operation: str, data: Mapping[str, Any] | None
) -> tuple[str, Mapping[str, Any]]:
    """The operation's name and its data; `InvalidInputError` when they cannot be such."""
    if data is not None and not isinstance(data, Mapping):
        raise InvalidInputError(f"data must be a mapping, not {type(data).__name__}")
    return parse_word(operation, "the operation's name"), data or {}


def placement_of(tenant: Tenant) -> Placement:
    """Where the tenant's data is; `ConflictError` while that is not settled."""
    if tenant.placement is None:
        raise ConflictError(f"tenant {tenant.tenant_id} has no placement yet; try again soon")
    return tenant.placement
