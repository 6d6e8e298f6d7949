"""Tenants reached through their actors: a `TenantGateway` for strategies, Serve and the client.

Operations of one actor coalesce (`channel.py`). Control of tenants goes to actors as well, to the
one that represents the tenant: the process that calls then needs no database credential, and the
actor that holds the tenant in memory is the one that learns of the change first. Listings, which
belong to no tenant, go to one of the shared actors.

The client computes a tenant's actor from the directory. Where it cannot know better (the tenant has
an actor of its own, or lives in another region) the computed actor names the right one, and that is
remembered.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tenancy.data_isolation.actors.channel import ActorChannel, ActorLostError, Limits
from tenancy.data_isolation.actors.directory import ActorName, Directory, is_dedicated
from tenancy.data_isolation.actors.move_gateway import ActorMoves
from tenancy.data_isolation.actors.proposal_gateway import ActorProposals
from tenancy.data_isolation.actors.remote import Actors
from tenancy.data_isolation.actors.statement_kind import changes_nothing
from tenancy.data_isolation.actors.wire import (
    PackedOperation,
    Redirect,
    pack_operation,
)
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    OverloadedError,
    RequestTooLargeError,
    TenancyError,
    TenantNotFoundError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, parse_tenant_id
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
)
from tenancy.data_isolation.engine.operation_figures import Figures
from tenancy.data_isolation.engine.tracing import outgoing

#: How often an operation follows from actor to actor; the last one has to take it.
_REDIRECTS_MAX = 3
#: Tenants whose actor is remembered.
_ROUTES_MAX = 100_000
_CONTROL_RETRY_S = 0.5
_FIGURES_KEPT_S = 1.0


class ActorGateway:
    """The way to tenants through actors. Used from one event loop, by any number of its tasks."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._actors = Actors(settings, directory)
        self._channels: dict[ActorName, ActorChannel] = {}
        #: The actor of a tenant, and whether it has to take what it is sent.
        self._routes: dict[TenantId, tuple[ActorName, bool]] = {}
        self._turn = itertools.count()
        self._clock = SystemClock()
        self._asked: asyncio.Task[dict[ActorName, Figures | None]] | None = None
        self._ask_again_at = 0.0
        self._closing: asyncio.Task[None] | None = None
        #: Moves of tenants.
        self.moves = ActorMoves(self._control, self._clock)
        #: What is proposed for tenants.
        self.proposals = ActorProposals(self._control)
        self._trace = outgoing if settings.traces_endpoint is not None else None
        self._default_deadline_s = (
            settings.statement_timeout_ms + settings.connection_wait_ms
        ) / 1000

    # Operations

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        """Run one operation of a tenant; raises what the engine raises.

        A write that was under way when the actor was lost gives `OutcomeUnknownError`, unless it
        carries an idempotency key; a read is repeated once.
        """
        packed = (pack_operation(operation, self._settings.request_bytes_max),)
        result: QueryResult = await self._perform(tenant_id, packed, None, operation.deadline_s)
        return result

    async def execute_batch(
        self, tenant_id: TenantId, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        """Run several; each has its result or its error, or, when `atomic`, all or none."""
        most = self._settings.batch_operations_max
        if len(operations) > most:
            raise RequestTooLargeError(
                f"the batch has {len(operations)} operations, and {most} is the limit "
                "(TENANCY_BATCH_OPERATIONS_MAX)"
            )
        bytes_max = self._settings.request_bytes_max
        packed = tuple(pack_operation(operation, bytes_max) for operation in operations)
        given = [item.deadline_s for item in operations if item.deadline_s is not None]
        results: list[QueryResult | TenancyError] = await self._perform(
            tenant_id, packed, atomic, min(given, default=None)
        )
        return results

    # Control

    async def create_tenant(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        """Make the tenant at that level, or finish making it. Raises `TenantExistsError`."""
        tenant: Tenant = await self._control(
            TenantId(context.tenant_id),
            "create_tenant",
            context,
            level=level,
            server=server,
            database_prefix=database_prefix,
            hybrid=hybrid,
        )
        return tenant

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """Make many tenants at level ROW at a time; in the place of one that fails, its error."""
        found: list[Tenant | TenancyError] = await self._control(
            None, "create_row_tenants", list(contexts), server=server
        )
        return found

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant of that name, or `TenantNotFoundError`."""
        found: Tenant = await self._control(tenant_id, "tenant", tenant_id)
        return found

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """Tenants in the order of their names, from the one behind `after`."""
        found: list[Tenant] = await self._control(None, "tenants", after=after, limit=limit)
        return found

    async def suspend_tenant(self, tenant_id: TenantId) -> Tenant:
        """Refuse the tenant's operations from now on."""
        changed: Tenant = await self._control(tenant_id, "suspend_tenant", tenant_id)
        return changed

    async def resume_tenant(self, tenant_id: TenantId) -> Tenant:
        """Take the tenant's operations again."""
        changed: Tenant = await self._control(tenant_id, "resume_tenant", tenant_id)
        return changed

    async def delete_tenant(self, tenant_id: TenantId) -> None:
        """Erase the tenant's data, then its name."""
        await self._control(tenant_id, "delete_tenant", tenant_id)
        self._routes.pop(tenant_id, None)

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """The statement that a named operation stands for; `anew`: look at the tables now."""
        operation: Operation = await self._control(
            None, "resolve_operation", name, dict(data), anew=anew
        )
        return operation

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """How many tenants each strategy that places data holds."""
        counts: Mapping[StrategyName, int] = await self._control(None, "strategy_counts")
        return counts

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        """How much data the tenant has, counted until `rows_max` rows."""
        size: TenantSize = await self._control(
            tenant_id, "tenant_size", tenant_id, rows_max=rows_max
        )
        return size

    async def keep_results(self, tenant_id: TenantId, wanted: bool) -> Tenant:
        """Keep the tenant's results from now on, or do not."""
        changed: Tenant = await self._control(tenant_id, "keep_results", tenant_id, wanted)
        return changed

    async def pin_tenant(self, tenant_id: TenantId, wanted: bool) -> None:
        """Have the tenant ready in its actor before it asks, or do not."""
        await self._control(tenant_id, "pin_tenant", tenant_id, wanted)

    async def pinned_tenants(self) -> list[TenantId]:
        """The tenants that are pinned."""
        pinned: list[TenantId] = await self._control(None, "pinned_tenants")
        return pinned

    async def cache_statistics(self) -> Mapping[str, int]:
        """What keeping results came to in the actors of this gateway's directory."""
        names = self._directory.shared_names()
        found = await asyncio.gather(
            *(self._ask(name, "cache_statistics") for name in names), return_exceptions=True
        )
        total: Counter[str] = Counter()
        for item in found:
            if isinstance(item, Mapping):
                total.update(item)
        return total

    async def route(self, tenant_id: TenantId) -> ActorName:
        """The actor that represents the tenant, or `TenantNotFoundError`."""
        name: ActorName = await self._control(tenant_id, "route", tenant_id)
        return name

    async def call(self, name: ActorName, method: str) -> Any:
        """One method of an actor, once. Raises its error, or `ActorLostError`."""
        return await self._actors.call(name, method)

    async def figures(self, timeout_s: float) -> dict[ActorName, Figures | None]:
        """What operations came to at each actor that this process knows; None = no answer in time.

        An actor that measures nothing tells of nothing. The actors are asked once in a second at
        most, however often this is called: adding up takes them time in which they do nothing else.
        """
        now = self._clock.monotonic_s()
        if self._asked is None or (self._asked.done() and now >= self._ask_again_at):
            self._ask_again_at = now + _FIGURES_KEPT_S
            self._asked = asyncio.get_running_loop().create_task(self._all_figures(timeout_s))
        return await asyncio.shield(self._asked)

    async def _all_figures(self, timeout_s: float) -> dict[ActorName, Figures | None]:
        names = {*self._directory.shared_names(), *filter(is_dedicated, self._channels)}
        ordered = sorted(names)
        found = await asyncio.gather(*(self._figures(name, timeout_s) for name in ordered))
        return dict(zip(ordered, found, strict=True))

    async def _figures(self, name: ActorName, timeout_s: float) -> Figures | None:
        try:
            async with asyncio.timeout(timeout_s):
                found: Figures = await self._actors.call(name, "figures")
        except (TenancyError, ActorLostError, TimeoutError):
            return None
        return found

    def statistics(self) -> dict[ActorName, dict[str, int]]:
        """What went to each actor: operations, calls, repeated calls, losses; and what waits."""
        return {
            name: {
                "operations": channel.statistics.operations,
                "calls": channel.statistics.calls,
                "retried": channel.statistics.retried,
                "lost": channel.statistics.lost,
                "waiting": channel.waiting,
            }
            for name, channel in self._channels.items()
        }

    async def close(self) -> None:
        """Let go of the actors, which live on. Can be called again, also meanwhile."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        # Who comes second waits too: what the first one has to tell the actors is not to be cut.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._actors.close()

    # Ways

    async def _perform(
        self,
        tenant_id: TenantId,
        packed: tuple[PackedOperation, ...],
        atomic: bool | None,
        deadline_s: float | None,
    ) -> Any:
        if deadline_s is None:
            deadline_s = self._default_deadline_s
        elif deadline_s <= 0:
            raise InvalidInputError("deadline_s must be positive: it is the time that is left")
        trace = None if self._trace is None else self._trace()
        for attempt in range(_REDIRECTS_MAX + 1):
            name, final = self._routes.get(tenant_id) or self._computed(tenant_id)
            outcome = await self._channel(name).perform(
                tenant_id,
                packed,
                atomic=atomic,
                deadline_s=deadline_s,
                final=final or attempt == _REDIRECTS_MAX,
                trace=trace,
            )
            if type(outcome) is not Redirect:
                return outcome
            await self._learn(tenant_id, name, outcome)
        raise UnavailableError("the actors send the tenant from one to another; try again")

    async def _learn(self, tenant_id: TenantId, teller: ActorName, redirect: Redirect) -> None:
        """Remember where the tenant is, and read the directory again when it has changed."""
        if redirect.version > self._directory.version:
            self._directory, _ = await self._ask(teller, "describe")
            self._routes.clear()
        name, final = ActorName(redirect.actor), False
        if is_dedicated(name):
            try:
                await self._actors.handle(name)
            except OverloadedError:
                # All dedicated actors that may be there are: a shared one has to serve it.
                name, final = teller, True
            except ActorLostError as error:
                raise UnavailableError(f"the actor {name} does not start: {error}") from None
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        self._routes[tenant_id] = name, final

    def _computed(self, tenant_id: TenantId) -> tuple[ActorName, bool]:
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.clear()
        route = self._directory.shared_actor(parse_tenant_id(tenant_id)), False
        self._routes[tenant_id] = route
        return route

    def _channel(self, name: ActorName) -> ActorChannel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = ActorChannel(
                name=name,
                connect=partial(self._actors.connect, name),
                changes_nothing=changes_nothing,
                limits=Limits.of(self._settings),
                clock=self._clock,
            )
        return channel

    async def _control(
        self, tenant_id: TenantId | None, method: str, /, *args: Any, **kwargs: Any
    ) -> Any:
        if tenant_id is not None:
            name, _ = self._routes.get(parse_tenant_id(tenant_id)) or self._computed(tenant_id)
        else:
            names = self._directory.shared_names()
            name = names[next(self._turn) % len(names)]
        return await self._ask(name, method, *args, **kwargs)

    async def _ask(self, name: ActorName, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """One method of an actor; again when the actor was lost, until it has had time to restart.

        Every control operation is a list of steps that can be repeated, so repeating one after an
        unknown outcome finishes it.
        """
        clock, settings = self._clock, self._settings
        give_up_at: float | None = None
        try:
            async with asyncio.timeout(settings.control_timeout_s) as limit:
                while True:
                    try:
                        return await self._actors.call(name, method, *args, **kwargs)
                    except ActorLostError as error:
                        now = clock.monotonic_s()
                        give_up_at = give_up_at or now + settings.actor_restart_timeout_s
                        if now >= give_up_at:
                            raise self._unreachable(name, str(error)) from None
                        await asyncio.sleep(_CONTROL_RETRY_S)
        except TenantNotFoundError:
            if give_up_at is not None and method == "delete_tenant":
                return None  # The first attempt had done it.
            raise
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._unreachable(name, "it takes too long") from None

    @staticmethod
    def _unreachable(name: ActorName, reason: str) -> UnavailableError:
        return UnavailableError(
            f"the tenant's actor {name} cannot be reached: {reason}; what was asked may have been "
            "done or not; asking again is safe; `tenancy doctor` says more"
        )
