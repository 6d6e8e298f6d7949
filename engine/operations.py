"""Tenants' operations: run where the tenant is, and again where it turns out to be elsewhere."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, TypeAlias

from tenancy.data_isolation.core.errors import (
    UNKNOWN_NAMES,
    PlacementChangedError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.core.types import Operation, QueryResult
from tenancy.data_isolation.engine.batch import Batches
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.loads import Loads
from tenancy.data_isolation.engine.outcomes import (
    has_reached_a_server,
    is_refused_login,
    is_worth_another_look,
)
from tenancy.data_isolation.engine.result_cache import ResultCache
from tenancy.data_isolation.engine.routes import Route, Routes
from tenancy.data_isolation.engine.table_shape import TableShapes
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Is told how an operation ended; None = it was cancelled.
Done: TypeAlias = Callable[[QueryResult | TenancyError | None], None]

_log = logging.getLogger(__name__)


class Operations:
    """Runs tenants' operations. Belongs to one event loop."""

    def __init__(
        self,
        *,
        routes: Routes,
        shapes: TableShapes,
        executor: Executor,
        batches: Batches,
        results: ResultCache,
        loads: Loads,
    ) -> None:
        self.routes = routes
        self.shapes = shapes
        self.executor = executor
        self.loads = loads
        self._batches = batches
        self._results = results

    async def execute(self, tenant_id: TenantId | str, operation: Operation) -> QueryResult:
        """As `Engine.execute`."""
        shapes = self.shapes
        shapes.look_later()
        route = self.routes.known(tenant_id) if isinstance(tenant_id, str) else None
        if route is None:
            route = await self.routes.route(parse_tenant_id(tenant_id))
        allowance = route.allowance
        try:
            allowance.enter()
        except TenancyError as error:
            self.executor.turned_away(route, error)
            raise
        began_s, reached = monotonic(), True
        try:
            if operation.idempotency_key is None:
                # The usual case, without what is there for all the others.
                self.executor.use(shapes.newest)
                runner = self.executor if route.tenant.cache is None else self._results
                try:
                    return await runner.execute(route, operation, shapes.at(route.key))
                except TenancyError as error:
                    if not is_worth_another_look(error):
                        raise
                    if isinstance(error, PlacementChangedError):
                        self.routes.mistrust(route)
            return await self.look_again(tenant_id, operation)
        except TenancyError as error:
            reached = has_reached_a_server(error)
            self.executor.given_up(route, error)
            raise
        finally:
            allowance.leave()
            if reached:
                self.loads.note(route, 1, began_s)

    def begin(self, tenant_id: TenantId, operation: Operation, done: Done) -> Begun | None:
        """Begin an operation without an idempotency key, as `execute` but without a task for it.

        `done` is called once, perhaps before this returns. None, and nothing was begun, when more
        has to be asked or done first than can be at once; then `execute` it.
        """
        self.shapes.look_later()
        route = self.routes.known(tenant_id)
        if route is None or route.tenant.cache is not None:
            return None
        self.executor.use(self.shapes.newest)
        begun = Begun(self, route, operation, done)
        begun.start()
        return begun

    async def execute_batch(
        self, tenant_id: TenantId | str, operations: Sequence[Operation], *, atomic: bool
    ) -> list[QueryResult | TenancyError]:
        """As `Engine.execute_batch`."""
        self.shapes.look_later()

        async def work(route: Route) -> list[QueryResult | TenancyError]:
            schema = self.shapes.at(route.key)
            run = self._batches if route.tenant.cache is None else self._results
            if atomic:
                return list(await run.together(route, operations, schema))
            outcomes = await run.apart(route, operations, schema)
            refused = [item for item in outcomes if is_refused_login(item)]
            if refused and not any(isinstance(item, QueryResult) for item in outcomes):
                # No session was there: nothing was done, and the tenant may be elsewhere.
                raise refused[0]
            return outcomes

        name = parse_tenant_id(tenant_id)
        # First, so that what is refused for its length costs the tenant nothing.
        self._batches.check_length(operations)
        route = await self.routes.route(name)
        allowance = route.allowance
        try:
            allowance.enter(len(operations))
        except TenancyError as error:
            self.executor.turned_away(route, error, len(operations))
            raise
        began_s, reached = monotonic(), 0
        try:
            outcomes = await self.routes.run(name, work)
            reached = sum(map(has_reached_a_server, outcomes))
        except TenancyError as error:
            reached = len(operations) if has_reached_a_server(error) else 0
            self.executor.given_up(route, error, len(operations))
            raise
        finally:
            allowance.leave(len(operations))
            if reached:
                self.loads.note(route, reached, began_s)
        if any(
            isinstance(item, TenancyError) and item.sqlstate in UNKNOWN_NAMES for item in outcomes
        ):
            self.shapes.look_later()
        return outcomes

    async def look_again(self, tenant_id: TenantId | str, operation: Operation) -> QueryResult:
        """Run an operation with nothing taken for granted of where its tenant is."""

        async def work(route: Route) -> QueryResult:
            return await self._understood(route, operation)

        return await self.routes.run(parse_tenant_id(tenant_id), work)

    async def _understood(self, route: Route, operation: Operation) -> QueryResult:
        """Run an operation with the version of the schema that its placement has.

        A statement that names what is not there has done nothing, so it can be tried again.
        """
        shapes = self.shapes
        schema = shapes.at(route.key)
        try:
            return await self._run(route, operation, schema)
        except TenancyError as error:
            if error.sqlstate not in UNKNOWN_NAMES:
                raise
            await shapes.refresh()
            for other in shapes.others(schema):
                try:
                    result = await self._run(route, operation, other)
                except TenancyError as again:
                    if again.sqlstate not in UNKNOWN_NAMES:
                        raise
                else:
                    shapes.remember(route.key, other)
                    return result
            raise

    async def _run(self, route: Route, operation: Operation, schema: VisibleSchema) -> QueryResult:
        if route.tenant.cache is not None:
            return await self._results.execute(route, operation, schema)
        if operation.idempotency_key is not None:
            return await self._batches.once(route, operation, schema)
        return await self.executor.execute(route, operation, schema)


class Begun:
    """An operation under way that nobody awaits: who began it is called at its end.

    It saves a task and futures for each operation, and stands where a future would in a ticket.
    What has to be done again is done in a task after all.
    """

    __slots__ = ("_again", "_began_s", "_done", "_operation", "_over", "_route", "_run", "_ticket")

    def __init__(self, run: Operations, route: Route, operation: Operation, done: Done) -> None:
        self._run = run
        self._route = route
        self._operation = operation
        self._done: Done | None = done
        self._began_s = monotonic()
        self._ticket: Ticket | None = None
        self._over = False
        self._again: asyncio.Task[QueryResult | TenancyError] | None = None

    def start(self) -> None:
        """Let it wait for a session, or end it with an error."""
        run, route = self._run, self._route
        try:
            route.allowance.enter()
        except TenancyError as error:
            run.executor.turned_away(route, error)
            self._tell(error)
            return
        try:
            schema = run.shapes.at(route.key)
            self._ticket = run.executor.start(route, self._operation, schema, self)
        except TenancyError as error:
            self._over = True
            self._failed(error)
        except Exception:
            self._leave(_unforeseen())

    def cancel(self) -> None:
        """Nobody wants to know any more: what is under way for it is cancelled."""
        self._over = True
        if self._again is not None:
            self._again.cancel()
        elif self._done is not None:
            if self._ticket is not None:
                self._ticket.abandon()
                self._run.executor.ended(self._ticket, None)
            self._leave(None)

    # What a ticket knows of who waits for it

    def done(self) -> bool:
        """Whether its flight has nothing to say any more."""
        return self._over

    def cancelled(self) -> bool:
        """Whether it was cancelled where it waited; that is told by the ticket."""
        return False

    def exception(self) -> BaseException | None:
        """The error that it ended with."""
        outcome = None if self._ticket is None else self._ticket.outcome
        return outcome if isinstance(outcome, BaseException) else None

    def set_result(self, result: Any) -> None:
        """It has a result."""
        self._over = True
        self._leave(result)

    def set_exception(self, error: TenancyError) -> None:
        """It has failed. Its flight is noted first, which tells more than the error alone."""
        self._over = True
        asyncio.get_running_loop().call_soon(self._failed, error)

    def _failed(self, error: TenancyError) -> None:
        if self._done is None:
            return  # It was cancelled meanwhile.
        if is_worth_another_look(error):
            if isinstance(error, PlacementChangedError):
                self._run.routes.mistrust(self._route)
            self._charge()
            self._ticket = None
            # This runs for the flight, which may have been begun for somebody whom another traces.
            self._again = asyncio.get_running_loop().create_task(
                self._look_again(), context=contextvars.Context()
            )
            self._again.add_done_callback(self._looked_again)
            return
        if self._ticket is not None:
            self._run.executor.ended(self._ticket, error)
        self._leave(error)

    async def _look_again(self) -> QueryResult | TenancyError:
        try:
            return await self._run.look_again(self._route.tenant.tenant_id, self._operation)
        except TenancyError as error:
            self._run.executor.given_up(self._route, error)
            return error
        except Exception:
            return _unforeseen()

    def _looked_again(self, task: asyncio.Task[QueryResult | TenancyError]) -> None:
        self._leave(None if task.cancelled() else task.result())

    def _charge(self) -> None:
        if self._ticket is not None and self._ticket.result_bytes:
            self._route.allowance.charge(self._ticket.result_bytes)

    def _leave(self, outcome: QueryResult | TenancyError | None) -> None:
        """It is at its end, once."""
        route = self._route
        self._charge()
        self._ticket = None  # It holds this one.
        route.allowance.leave()
        if outcome is None or has_reached_a_server(outcome):
            self._run.loads.note(route, 1, self._began_s)
        self._tell(outcome)

    def _tell(self, outcome: QueryResult | TenancyError | None) -> None:
        done, self._done = self._done, None
        self._over = True
        if done is None:
            return
        try:
            done(outcome)
        except Exception:
            # Others are in the same flight, and have nothing to do with it.
            _log.exception("the end of an operation could not be told")


def _unforeseen() -> TenancyError:
    """Tell the log of the error that is being handled, and the caller of none in particular."""
    _log.exception("an operation failed in a way that was not foreseen")
    return TenancyError()
