"""Both sides of one move, with their connections: opened, made ready and closed together.

Each server counts how many connections the admin may have; a move has one to each database that it
touches, and one to the catalog.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.identifiers import DatabaseName, Epoch, ServerName
from tenancy.data_isolation.core.move import Move
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Placement
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.move_copy import MoveCopier
from tenancy.data_isolation.engine.move_cutover import Cutover
from tenancy.data_isolation.engine.move_proof import MoveProof
from tenancy.data_isolation.engine.move_side import MoveSide, SideName, session_name
from tenancy.data_isolation.engine.move_store import MoveDesk


class MoveSides:
    """The source, the target, and what works on both."""

    def __init__(
        self,
        source: MoveSide,
        target: MoveSide,
        move: Move,
        desk: MoveDesk,
        *,
        clock: Clock,
        control: tuple[ServerName, DatabaseName],
    ) -> None:
        self.source = source
        self.target = target
        self._move = move
        self._desk = desk
        self._clock = clock
        self._control = control

    @property
    def is_cut_off(self) -> bool:
        """Whether a connection to a side is gone."""
        return self.source.connection.is_closed() or self.target.connection.is_closed()

    def copier(self, *, back: bool = False) -> MoveCopier:
        """What carries rows to the target, or back to the source."""
        ends = (self.target, self.source) if back else (self.source, self.target)
        return MoveCopier(*ends, move_id=self._move.move_id, tenant_no=self._move.tenant_no)

    def proof(self, copier: MoveCopier) -> MoveProof:
        """What compares the sides."""
        return MoveProof(copier, move_id=self._move.move_id, tenant_no=self._move.tenant_no)

    def cutover(self, copier: MoveCopier) -> Cutover:
        """What lets the tenant change its place."""
        return Cutover(
            copier, self.proof(copier), self._desk, clock=self._clock, control=self._control
        )

    async def prepare(self) -> None:
        """Have everything that is needed before the first row is copied. Can be run again.

        From then on both sides note what the tenant changes. What we write ourselves is not noted.
        """
        sides = [self.source]
        if self.target.connection is not self.source.connection:
            sides.append(self.target)
        pids = [side.connection.get_server_pid() for side in sides]
        for side in sides:
            await side.prepare(self._desk.term, pids)
        self.target.adopt_term(self._desk.term)
        await self.target.make_fence(Epoch(self._move.source.epoch))
        await self.read_tables()
        for side in (self.source, self.target):
            await side.note_changes()

    async def take_over(self) -> None:
        """Go on with what was prepared before, and keep everybody of an older term out."""
        pids = [side.connection.get_server_pid() for side in (self.source, self.target)]
        for side in (self.source, self.target):
            await side.take_term(self._desk.term, pids)
        await self.read_tables()
        for side in (self.source, self.target):
            await side.make_stages()

    async def read_tables(self) -> None:
        """Learn which tables there are on both sides."""
        for side in (self.source, self.target):
            await side.read_tables()


def answer_limit_s(settings: Settings) -> float:
    """How long a move waits for the answer to any statement, in seconds."""
    return settings.move_statement_timeout_ms / 1_000 + settings.move_answer_timeout_s


@asynccontextmanager
async def opened_sides(
    move: Move,
    desk: MoveDesk,
    *,
    settings: Settings,
    admin: AdminConnections,
    keys: BindingKeys,
    clock: Clock,
) -> AsyncIterator[MoveSides]:
    """The sides of a move for the block. One connection serves both in one database."""
    connections: dict[tuple[ServerName, DatabaseName], asyncpg.Connection] = {}

    async def side(name: SideName, placement: Placement) -> MoveSide:
        place = (placement.server, placement.database)
        if place not in connections:
            connections[place] = await admin.connect(
                *place,
                name=session_name(move.move_id),
                command_timeout_s=answer_limit_s(settings),
            )
        return MoveSide(
            connections[place],
            placement,
            name=name,
            move_id=move.move_id,
            tenant_no=move.tenant_no,
            settings=settings,
            keys=keys,
        )

    try:
        yield MoveSides(
            await side(SideName.SOURCE, move.source),
            await side(SideName.TARGET, move.target),
            move,
            desk,
            clock=clock,
            control=(ServerName(admin.servers[0].name), shared_database(settings)),
        )
    finally:
        try:
            for connection in connections.values():
                await close(connection, settings.connect_timeout_s)
        finally:
            # Who is cancelled while the first one is closed leaves the second one.
            for connection in connections.values():
                if not connection.is_closed():
                    connection.terminate()
