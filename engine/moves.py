"""Moves of tenants: planning them, starting them, and asking things of those that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final

import asyncpg

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    LimitError,
    TenantSuspendedError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import (
    ServerName,
    TenantId,
    parse_tenant_id,
)
from tenancy.data_isolation.core.move import (
    Move,
    MoveId,
    MoveState,
    MoveTarget,
    MoveWish,
    check_priority,
)
from tenancy.data_isolation.core.move_estimate import MoveEstimate, SeenMoves, estimated
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant, TenantSize
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.driver_errors import driver_error
from tenancy.data_isolation.engine.layout import APP_SCHEMA, shared_database
from tenancy.data_isolation.engine.move_plan import (
    MovePlan,
    MoveRefusal,
    RefusalCode,
    chosen_place,
    lacks_rights,
    refusals_of,
    unreachable,
)
from tenancy.data_isolation.engine.move_sides import answer_limit_s
from tenancy.data_isolation.engine.move_store import MoveStore, insert_move, new_move_id
from tenancy.data_isolation.engine.move_worker import MoveWorker
from tenancy.data_isolation.engine.mover import announced_s
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.provisioning_errors import provisioning
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scoping import enter_schema, read_snapshot
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_column import is_runtime_name

_SQL = SqlFile("move.sql")

#: Measures how much data a tenant has.
Measure = Callable[[TenantId], Awaitable[TenantSize]]


#: Gives a move to what has asked for it, in the transaction that records it; raises to undo that.
Claim = Callable[[asyncpg.Connection, MoveId], Awaitable[None]]

#: How often a move that somebody waits for is looked at.
_POLL_S: Final = 0.05
#: What a move takes: one connection to the catalog, one to each side, one that watches each server.
_CONNECTIONS_PER_MOVE: Final = 5
#: Kinds of moves that have places of their own: those that copy, and all others.
_KINDS: Final = 2


def move_connections_max(settings: Settings) -> int:
    """The connections that moves may have in one process, over all servers.

    Enough for all places, for looks at the catalog, and for planning as many as the admin may do
    other things at the same time.
    """
    places = _KINDS * settings.moves_at_once_max
    return places * _CONNECTIONS_PER_MOVE + settings.admin_connections_max


def connections_of_moves(settings: Settings, servers: Sequence[ServerConfig]) -> AdminConnections:
    """Connections of their own: moves keep theirs for long."""
    return AdminConnections(
        settings=replace(settings, admin_connections_max=move_connections_max(settings)),
        servers=servers,
        keep_warm=True,
        command_timeout_s=answer_limit_s(settings),
        silent_max_ms=settings.move_idle_timeout_ms,
    )


class Moves:
    """Moves of tenants. Safe from any task of the event loop of its engine, and from any process.

    Durability: a move that was started is carried out by any process with a worker (`work`), also
    after the one that started it is gone.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
        maker: PlacementMaker,
        measure: Measure,
        clock: Clock | None = None,
    ) -> None:
        """`admin` is for moves alone: each takes several connections for a long time."""
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._measure = measure
        self._clock = clock or SystemClock()
        self.store = MoveStore(catalog, settings)
        self._worker = MoveWorker(
            settings=settings, catalog=catalog, admin=admin, keys=keys, maker=maker, clock=clock
        )

    def measure_by(self, measure: Measure) -> None:
        """Let somebody else measure tenants: who has sessions of theirs, which are few."""
        self._measure = measure

    # What a move would do

    async def plan(self, tenant_id: TenantId | str, target: MoveTarget) -> MovePlan:
        """What moving the tenant would do, and everything that stands against it.

        Raises `TenantNotFoundError`, `ServerNotFoundError` and, for a tenant that is not whole,
        `TenantSuspendedError`.
        """
        tenant = await self._catalog.tenant(parse_tenant_id(tenant_id))
        here = tenant.placement
        if here is None:
            raise TenantSuspendedError(f"tenant {tenant.tenant_id} is {tenant.status}")
        servers = await self._catalog.servers()
        configured = {ServerName(item.name) for item in self._admin.servers}
        usable = {name: region for name, region in servers.items() if name in configured}
        place = chosen_place(tenant, target, servers=usable, settings=self._settings)
        refusals = [
            *refusals_of(
                tenant,
                place,
                region=usable[place.server],
                versions=await self._versions(here, place),
            ),
            *await self._refused_by_state(tenant),
            *await self._refused_by_servers(here.server, place.server),
        ]
        with provisioning(tenant.tenant_id):
            snapshot = await self._snapshot(here)
        size = await self._size(tenant)
        return MovePlan(
            tenant=tenant,
            target=place,
            tables=sum(not is_runtime_name(table.name) for table in snapshot.tables),
            rows=size.rows if size.complete else None,
            bytes=size.bytes if size.complete else None,
            indexes=len(snapshot.indexes),
            constraints=len(snapshot.constraints),
            sequences=sum(item.kind == "S" for item in snapshot.relations),
            estimate=await self._estimate(size, here, place),
            refusals=tuple(refusals),
        )

    # A move

    async def start(
        self,
        tenant_id: TenantId | str,
        target: MoveTarget,
        *,
        priority: int = 0,
        claim: Claim | None = None,
    ) -> Move:
        """Plan a move and record it; a worker carries it out.

        `claim` belongs to the same transaction. Raises what it and `plan` raise, `MoveRefusedError`
        with everything that stands against it, and `ConflictError` and `PlacementChangedError` when
        things have changed since.
        """
        check_priority(priority)
        plan = await self.plan(tenant_id, target)
        plan.check()
        move_id = new_move_id()
        with provisioning(plan.tenant.tenant_id):
            async with self._control() as control, control.transaction():
                await insert_move(
                    control,
                    move_id,
                    plan.tenant,
                    plan.target,
                    priority,
                    planned=plan.forecast(),
                    unsettled_max=self._settings.moves_unsettled_max,
                )
                if claim is not None:
                    await claim(control, move_id)
        self._worker.wake()
        return await self.store.move(move_id)

    async def move(self, move_id: str) -> Move:
        """The move of that id, or `MoveNotFoundError`."""
        return await self.store.move(move_id)

    async def moves(
        self,
        *,
        before: MoveId | None = None,
        tenant_id: TenantId | None = None,
        unsettled: bool = False,
        limit: int = 100,
    ) -> list[Move]:
        """Moves, the newest first; those of a tenant, or those of which something is left to do."""
        number = None
        if tenant_id is not None:
            number = (await self._catalog.tenant(tenant_id)).tenant_no
        return await self.store.moves(
            before=before, tenant_no=number, unsettled=unsettled, limit=limit
        )

    async def cancel(self, move_id: str) -> Move:
        """Give the move up; the tenant goes on working where it was."""
        return await self._asked(move_id, MoveWish.CANCEL)

    async def roll_back(self, move_id: str) -> Move:
        """Bring the tenant back, with what it has written since."""
        return await self._asked(move_id, MoveWish.ROLLBACK)

    async def confirm(self, move_id: str) -> Move:
        """Let the tenant stay, and take away what was at its old place."""
        return await self._asked(move_id, MoveWish.CONFIRM)

    async def abandon(self, move_id: str) -> Move:
        """Settle a move of which a server is lost for good: the one that the tenant is not at.

        What is there is not taken away, and where the copies were not compared after the tenant
        had changed its place, they never will be. Raises `MoveNotFoundError`, and `ConflictError`
        when that server answers, or the move has not come so far.
        """
        move = await self.store.move(move_id)
        move.check_abandonment()
        if await self._admin.answers(move.other_side.server):
            raise ConflictError(
                f"server {move.other_side.server} answers, so nothing has to be given up: confirm "
                "the move or roll it back, and wait until it is cleaned up"
            )
        move = await self.store.abandon(move)
        self._worker.wake()
        return move

    async def pause(self, move_id: str) -> Move:
        """Let the move stand still until it is resumed; the tenant goes on working."""
        return await self.store.pause(move_id, paused=True)

    async def resume(self, move_id: str) -> Move:
        """Let the move go on."""
        move = await self.store.pause(move_id, paused=False)
        self._worker.wake()
        return move

    async def wait(
        self,
        move_id: str,
        states: Iterable[MoveState],
        *,
        timeout_s: float,
        progress: Callable[[Move], None] | None = None,
    ) -> Move:
        """The move once it is in one of `states`, or settled; raises what `awaited` raises."""
        return await awaited(
            lambda: self.store.move(move_id),
            states,
            clock=self._clock,
            timeout_s=timeout_s,
            poll_s=min(_POLL_S, self._settings.move_poll_s),
            progress=progress,
        )

    async def check_free(self, tenant: Tenant, what: str) -> None:
        """Raise `ConflictError` when a move of the tenant is in the way of `what`."""
        move = await self.store.of_tenant(tenant.tenant_no)
        if move is None:
            return
        do = "confirm it or roll it back" if move.state is MoveState.OPEN else "cancel it"
        if move.state.is_final:
            do = "wait until it is cleaned up"
        raise ConflictError(
            f"tenant {tenant.tenant_id} cannot be {what} while move {move.move_id} is "
            f"{move.state}; {do} first"
        )

    def work(self, only: MoveId | None = None) -> None:
        """Carry moves out in this process from now on, or one alone."""
        self._worker.start(only)

    async def close(self) -> None:
        """Let go of moves and connections."""
        await self._worker.close()
        await self._admin.close()

    # Parts

    async def _asked(self, move_id: str, wish: MoveWish) -> Move:
        move = await self.store.ask(move_id, wish)
        self._worker.wake()
        return move

    def _control(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        server = ServerName(self._admin.servers[0].name)
        return self._admin.session(server, shared_database(self._settings))

    async def _versions(self, here: Placement, place: Placement) -> tuple[int, int]:
        """The versions of the tables at the source, and of those that the target has or will."""
        newest = await self._catalog.newest_migration()
        source = await self._catalog.namespace(here.server, here.database, here.schema)
        there = newest
        if place.level is IsolationLevel.ROW:
            shared = await self._catalog.namespace(
                place.server, shared_database(self._settings), APP_SCHEMA
            )
            there = 0 if shared is None else shared.version
        return (0 if source is None else source.version), there

    async def _refused_by_state(self, tenant: Tenant) -> list[MoveRefusal]:
        move = await self.store.of_tenant(tenant.tenant_no)
        if move is None:
            return []
        return [
            MoveRefusal(
                code=RefusalCode.MOVE_UNDER_WAY,
                subject=str(move.move_id),
                detail=f"its move {move.move_id} is {move.state}; see to that one first: cancel "
                "it, or when it is open confirm it or roll it back, and wait until it is "
                "cleaned up",
            )
        ]

    async def _refused_by_servers(self, *servers: ServerName) -> list[MoveRefusal]:
        """What the servers of both sides say."""
        found = []
        for server in dict.fromkeys(servers):
            try:
                async with self._admin.session(server, shared_database(self._settings)) as asked:
                    if not await asked.fetchval(_SQL.statement("may_replicate")):
                        found.append(lacks_rights(server))
            except UnavailableError as error:
                found.append(unreachable(server, error))
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                found.append(unreachable(server, driver_error(error, wrote=False)))
        return found

    async def _snapshot(self, here: Placement) -> SchemaSnapshot:
        async with (
            self._admin.session(here.server, here.database) as connection,
            connection.transaction(),
        ):
            await enter_schema(connection, here.schema)
            return await read_snapshot(connection, here.schema)

    async def _size(self, tenant: Tenant) -> TenantSize:
        try:
            return await self._measure(tenant.tenant_id)
        except (LimitError, UnavailableError, TenantSuspendedError):
            # Too much to count in time, or too busy to be asked.
            return TenantSize(rows=0, bytes=0, complete=False)

    async def _estimate(self, size: TenantSize, here: Placement, place: Placement) -> MoveEstimate:
        """What the last moves say of this one."""
        one_server = here.server == place.server
        rows_min = self._settings.move_estimate_rows_min
        seen = SeenMoves(
            sized=await self.store.seen(one_server=one_server, rows_min=rows_min),
            alike=await self.store.seen(one_server=one_server, level=place.level),
            all=await self.store.seen(one_server=one_server),
        )
        return estimated(
            seen,
            rows=size.rows if size.complete else None,
            size_bytes=size.bytes if size.complete else None,
            level=place.level,
            other_server=not one_server,
            warm_s=announced_s(self._settings),
        )


async def awaited(
    read: Callable[[], Awaitable[Move]],
    states: Iterable[MoveState],
    *,
    clock: Clock,
    timeout_s: float,
    poll_s: float,
    progress: Callable[[Move], None] | None = None,
) -> Move:
    """The move that `read` gives, once it is in one of `states`, or settled.

    `progress` is told of each look. Raises `LimitError` when it takes longer than `timeout_s`; the
    move goes on.
    """
    wanted = frozenset(states)
    deadline_s = clock.monotonic_s() + timeout_s
    while True:
        move = await read()
        if progress is not None:
            progress(move)
        if move.state in wanted or move.is_settled:
            return move
        if clock.monotonic_s() > deadline_s:
            raise LimitError(f"move {move.move_id} is still {move.state} after {timeout_s} s")
        await asyncio.sleep(poll_s)
