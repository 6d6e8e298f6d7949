"""Carries one move out, from where it stands to its end.

A `MoveWorker` has many of these at work; the process that the documentation calls the mover is
`actors/move_actor.py`.

Rules this module keeps:

* The state is recorded before the work of that state begins, and every piece of work can be done
  again. So whoever takes a move over goes on from its row.
* Nothing is called done before the copies were seen to be equal.
* What is wished of the move (cancel, roll back, confirm, pause) is looked for between pieces of
  work, which are short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, assert_never

import asyncpg

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    OverloadedError,
    SchemaError,
)
from tenancy.data_isolation.core.move import Move, MoveProgress, MoveState, MoveWish
from tenancy.data_isolation.core.move_pace import ChunkSize
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.move_copy import Carried, Cursor
from tenancy.data_isolation.engine.move_cutover import check_equal, reopen
from tenancy.data_isolation.engine.move_proof import definition_differences, unready_indexes
from tenancy.data_isolation.engine.move_reasons import told
from tenancy.data_isolation.engine.move_sequences import MoveSequences
from tenancy.data_isolation.engine.move_side import session_name
from tenancy.data_isolation.engine.move_sides import MoveSides, opened_sides
from tenancy.data_isolation.engine.move_store import MoveDesk, SupersededError
from tenancy.data_isolation.engine.move_watch import MoveWatch, watching
from tenancy.data_isolation.engine.placement_maker import PlacementMaker

#: Passes before each look whether the backlog is small enough for the tenant to be held.
_PASSES_MAX: Final = 50
#: What another attempt may overcome.
_PASSING: Final = (
    OverloadedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class CutOffError(Exception):
    """The tenant may be closed, and a server gave no answer: look again over new connections.

    Never crosses the public edge.
    """


class PausedError(Exception):
    """The move shall stand still. Never crosses the public edge."""


class Mover:
    """Whoever carries a move out, as far as it goes without waiting for somebody's decision."""

    def __init__(
        self,
        desk: MoveDesk,
        *,
        settings: Settings,
        admin: AdminConnections,
        keys: BindingKeys,
        maker: PlacementMaker,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        opened: Callable[[], Awaitable[None]],
    ) -> None:
        """`opened` is called when the move does not copy any more and only follows the tenant."""
        self._desk = desk
        self._settings = settings
        self._admin = admin
        self._keys = keys
        self._maker = maker
        self._clock = clock
        self._sleep = sleep
        self._opened = opened

    async def run(self) -> bool:
        """Carry the move out; False when it is open, and nobody has decided yet.

        Nothing is held then: hours may pass, and there may be many such moves. Raises
        `SupersededError` when somebody else carries it out, `CutOffError` when there is no time to
        lose, and what stands in the way now; then it can be run again, by anybody.
        """
        move = await self._desk.begin()
        while not move.state.is_final:
            later = await self._advanced(move)
            if later is None:
                return False
            move = later
        if not move.cleaned:
            await self._clean(move)
        return True

    async def give_up(self, reason: str) -> None:
        """Let the move fail, when the tenant still works at the source."""
        move = await self._desk.read()
        if move.state.is_final or not move.state.is_at_source or move.reversing:
            return
        if move.state is MoveState.CUTTING_OVER:
            return
        move = await self._desk.advance(move, MoveState.FAILED, error=reason)
        await self._clean(move)

    # From state to state

    async def _advanced(self, move: Move) -> Move | None:
        """The move after the next piece of work that ends in another state; None = it rests."""
        if move.state is MoveState.PLANNED:
            return await self._next(await self._attend(move), MoveState.PREPARING)
        began_s = self._clock.monotonic_s()
        if move.state is MoveState.PREPARING:
            await self._make_target(move)
        if move.state in (MoveState.CUTTING_OVER, MoveState.OPEN):
            await self._open_where_it_is(move)
        if move.state is MoveState.CUTTING_OVER:
            # Before the other side is needed, which may be gone.
            return await self._cut_off(move)
        if move.state is MoveState.OPEN and self._stays(move) and await self._can_do_without(move):
            return await self._desk.advance(move, MoveState.CONFIRMED, granted=True)
        async with self._sides(move) as sides:
            if move.state is MoveState.PREPARING:
                await sides.prepare()
                await self._count(move, sides, began_s)
                return await self._next(move, MoveState.COPYING)
            await sides.take_over()
            return await self._onwards(move, sides)

    async def _onwards(self, move: Move, sides: MoveSides) -> Move | None:
        """As far as it goes over the connections there are; None = it rests."""
        while not move.state.is_final:
            match move.state:
                case MoveState.PLANNED | MoveState.PREPARING | MoveState.CUTTING_OVER:
                    return move
                case MoveState.COPYING:
                    move = await self._copy(move, sides)
                case MoveState.CATCHING_UP:
                    move = await self._catch_up(move, sides)
                case MoveState.VERIFIED:
                    move = await self._let_in(move, sides)
                case MoveState.OPEN:
                    await self._opened()
                    later = await self._follow(move, sides)
                    if later is None:
                        return None
                    move = later
                case (
                    MoveState.CONFIRMED
                    | MoveState.FAILED
                    | MoveState.CANCELLED
                    | MoveState.ROLLED_BACK
                ):
                    return move
                case _:
                    assert_never(move.state)
        return move

    async def _make_target(self, move: Move) -> None:
        """The target's login, database and tables, without rows."""
        tenant = await self._tenant(move)
        async with self._maker.locked(tenant, move.target) as connection:
            await self._maker.make_empty(connection, tenant, move.target)

    async def _count(self, move: Move, sides: MoveSides, began_s: float) -> None:
        """How much there is to copy, and that both sides look the same."""
        differences = await definition_differences(sides.source, sides.target)
        if differences:
            raise SchemaError(f"source and target differ in {', '.join(differences[:10])}")
        total = 0
        async with sides.copier().carrying():
            sequences = MoveSequences(sides.source, sides.target)
            await sequences.learn()
            await sequences.check()
            for table in sides.source.tables:
                total += await sides.source.count(table)
        await self._note(
            move,
            rows_total=total,
            tables_total=len(sides.source.tables),
            rows_copied=0,
            prepare_s=self._since(began_s),
        )

    async def _copy(self, move: Move, sides: MoveSides) -> Move:
        """The first copy, chunk after chunk."""
        servers = (move.source.server, move.target.server)
        name = session_name(move.move_id)
        async with watching(
            servers, name=name, settings=self._settings, admin=self._admin
        ) as watch:
            return await self._copy_tables(move, sides, watch)

    async def _copy_tables(self, move: Move, sides: MoveSides, watch: MoveWatch) -> Move:
        copier = sides.copier()
        settings, noted_s = self._settings, self._clock.monotonic_s()
        size = ChunkSize(
            settings.move_chunk_rows,
            alone_factor=settings.move_chunk_factor,
            piece_max_s=settings.move_piece_max_ms / 1_000,
        )
        await watch.begin()
        for pair in copier.pairs():
            cursors = await copier.cursors()
            cursor = cursors.get(pair[0].name, Cursor())
            while not cursor.complete:
                move = await self._attend(move)
                if move.state.is_final:
                    return move
                started_s = self._clock.monotonic_s()
                alone = watch.alone
                with watch.working():
                    carried = await copier.copy_chunk(pair, size.rows(alone=alone))
                worked_s = self._clock.monotonic_s() - started_s
                size.took(worked_s, alone=alone)
                cursors = await copier.cursors()
                cursor = cursors[pair[0].name]
                # With the rest that went before: it is part of how fast it goes.
                took_s, noted_s = self._since(noted_s), self._clock.monotonic_s()
                move = await self._carried(move, carried, took_s=took_s, done=_complete(cursors))
                await self._sleep(watch.rest_s(worked_s))
                await watch.look()
        return await self._next(move, MoveState.CATCHING_UP)

    async def _catch_up(self, move: Move, sides: MoveSides) -> Move:
        """Passes until little is left, and then a look whether both sides are the same."""
        copier = sides.copier()
        began_s = self._clock.monotonic_s()
        move = await self._converged(move, sides)
        if move.state.is_final:
            return move
        await sides.target.analyze()
        proofs = await sides.proof(copier).compare_all()
        check_equal(proofs)
        unready = await unready_indexes(sides.target)
        if unready:
            raise SchemaError(f"not ready at the target: {', '.join(unready[:10])}")
        await self._desk.note_report({"before": [proof.document() for proof in proofs]})
        move = await self._converged(move, sides)
        if move.state.is_final:
            return move
        move = await self._note(move, prove_s=self._since(began_s))
        return await self._next(move, MoveState.VERIFIED)

    async def _converged(self, move: Move, sides: MoveSides) -> Move:
        """Passes until the backlog is small enough for the tenant to be held."""
        copier = sides.copier()
        for _ in range(_PASSES_MAX):
            move = await self._attend(move)
            if move.state.is_final:
                return move
            backlog = await copier.backlog()
            if backlog <= self._settings.move_backlog_rows_max:
                return await self._note(move, backlog_rows=backlog)
            move = await self._carried(move, await copier.catch_up(), backlog=backlog)
        raise OverloadedError(
            f"the tenant changes rows as fast as they can be carried ({backlog} are behind)"
        )

    async def _let_in(self, move: Move, sides: MoveSides) -> Move:
        """Let the tenant change its place, once there are sessions that wait for it there."""
        if not move.progress.cutover_attempts:
            await self._be_announced()
        move = await self._converged(move, sides)
        if move.state.is_final:
            return move
        move = await self._desk.advance(move, MoveState.CUTTING_OVER)
        return await self._cut_over(move, sides)

    async def _be_announced(self) -> None:
        """Let every process hear that the tenant may move, and have sessions ready for it.

        Whoever has not heard by then believes nothing any more (`Routes`). Nobody's wish makes
        this shorter.
        """
        await asyncio.sleep(announced_s(self._settings))

    async def _cut_off(self, move: Move) -> Move:
        """After a cutover that was cut off and has left the tenant where it was."""
        if move.reversing:
            return await self._desk.advance(move, MoveState.OPEN)
        move = await self._desk.advance(move, MoveState.CATCHING_UP)
        # Who was cut off could not count its attempt.
        return await self._later(move, TimeoutError())

    async def _cut_over(self, move: Move, sides: MoveSides) -> Move:
        """Let the tenant change its place; back to `CATCHING_UP` when it cannot be held."""
        cutover = sides.cutover(sides.copier())
        left = await self._placement(move)
        try:
            report = await cutover.run(left, MoveState.OPEN)
        except SupersededError:
            raise
        except Exception as error:
            self._check_lines(sides, error)
            # Whatever it was, the tenant is not left closed, and a move can fail from there.
            passing = isinstance(error, _PASSING)
            # Who could not be held has been compared already: all of it again would be for nothing.
            back_to = MoveState.VERIFIED if passing else MoveState.CATCHING_UP
            now = await self._desk.read()
            move = await self._recover(now, sides, reason=told(error), back_to=back_to)
            if not passing:
                raise
            return await self._later(move, error)
        move = await self._desk.read()
        await self._desk.note_report({"cutover": report.document()})
        return move

    async def _recover(
        self, move: Move, sides: MoveSides, *, reason: str, back_to: MoveState
    ) -> Move:
        """After a cutover that came to nothing: the tenant works where the catalog has it."""
        placement = await self._placement(move)
        side = sides.target if _is_at(placement, move.target) else sides.source
        await reopen(side, self._desk, move, placement)
        if move.state is not MoveState.CUTTING_OVER:
            return move
        state = MoveState.OPEN if move.reversing else back_to
        return await self._desk.advance(move, state, error=reason)

    def _check_lines(self, sides: MoveSides, error: Exception) -> None:
        """Raise `CutOffError` when a server may not have answered.

        What it was asked for may be done or not, so the answer is looked up, and over none of these
        connections: another one of them may not answer either.
        """
        lost = sides.is_cut_off or self._desk.control.is_closed()
        if lost or isinstance(error, TimeoutError):
            self._desk.control.terminate()
            raise CutOffError(told(error)) from error

    async def _later(self, move: Move, error: Exception) -> Move:
        """Try to hold the tenant again after a pause that grows."""
        attempts = move.progress.cutover_attempts + 1
        if attempts >= self._settings.move_cutover_attempts_max:
            raise ConflictError(
                f"the tenant could not be held in {attempts} attempts: {told(error)}; end its "
                "long transactions, or move it when it has none"
            )
        move = await self._note(move, cutover_attempts=attempts)
        await self._pause(attempts)
        return move

    async def _pause(self, attempts: int) -> None:
        """Let the tenant work between two attempts to hold it, longer each time."""
        pause_s = 0.01 * 2 ** min(attempts, 16)
        await self._sleep(min(pause_s, self._settings.move_cutover_pause_s))

    # At the target

    async def _follow(self, move: Move, sides: MoveSides) -> Move | None:
        """Prove the copies equal, once, and let the source follow; None when nobody has decided."""
        back = sides.copier(back=True)
        await back.catch_up()
        if "after" not in move.report:
            proofs = await sides.proof(back).compare_all()
            check_equal(proofs)
            await self._desk.note_report({"after": [proof.document() for proof in proofs]})
        move = await self._desk.read()
        if self._stays(move):
            return await self._desk.advance(move, MoveState.CONFIRMED, granted=True)
        if move.wish is MoveWish.ROLLBACK:
            return await self._roll_back(move, sides)
        return None

    async def _roll_back(self, move: Move, sides: MoveSides) -> Move:
        """The same protocol with the sides exchanged."""
        back = sides.copier(back=True)
        check_equal(await sides.proof(back).compare_all())
        await self._be_announced()
        for attempt in range(self._settings.move_cutover_attempts_max):
            for _ in range(_PASSES_MAX):
                if await back.backlog() <= self._settings.move_backlog_rows_max:
                    break
                await back.catch_up()
            move = await self._desk.advance(move, MoveState.CUTTING_OVER, reversing=True)
            try:
                report = await sides.cutover(back).run(
                    await self._placement(move), MoveState.ROLLED_BACK
                )
            except SupersededError:
                raise
            except Exception as error:
                self._check_lines(sides, error)
                now = await self._desk.read()
                move = await self._recover(
                    now, sides, reason=told(error), back_to=MoveState.CATCHING_UP
                )
                if not isinstance(error, _PASSING):
                    raise
                await self._pause(attempt)
                continue
            await self._desk.note_report({"rollback": report.document()})
            return await self._desk.read()
        raise OverloadedError("the tenant could not be held to be moved back")

    def _stays(self, move: Move) -> bool:
        """Whether the tenant stays: by order, or because the time for a way back is over."""
        if move.wish is MoveWish.CONFIRM:
            return True
        if move.opened_at is None or move.wish is not None:
            return False
        age_s = (self._clock.now() - move.opened_at).total_seconds()
        return age_s > self._settings.move_retention_s

    # The end

    async def _clean(self, move: Move) -> None:
        """Take away the side at which the tenant does not work, and what the move has made.

        Not before every process has heard where the tenant is: a table that is empty by then would
        answer one that has not, with nothing.
        """
        if move.state in (MoveState.CONFIRMED, MoveState.ROLLED_BACK):
            # Nobody's wish makes this shorter.
            await asyncio.sleep(2 * self._settings.placement_refresh_ms / 1_000)
        left, kept = (
            (move.source, move.target)
            if move.state is MoveState.CONFIRMED
            else (move.target, move.source)
        )
        # A database of its own goes with all that is in it.
        goes = left.level is IsolationLevel.DATABASE
        both = replace(move, source=kept, target=kept if goes else left)
        # Who died on the way back, when the catalog was flipped, has left it closed.
        await self._open_where_it_is(move)
        if gone := await self._is_given_up(move):
            both = replace(both, target=kept)
        else:
            async with self._left(move, left) as (connection, tenant):
                # Its sessions could keep tables locked.
                await self._maker.end_sessions(connection, left)
        async with self._sides(both) as sides:
            await sides.read_tables()
            for side in (sides.source, sides.target):
                await side.forget_triggers()
            for side in (sides.source, sides.target):
                await side.forget_schema()
        if gone:
            await self._maker.forget(left)
        else:
            async with self._left(move, left) as (connection, tenant):
                await self._maker.unmake(connection, tenant, left, beside=tenant.placement)
        await self._desk.note_cleaned()

    async def _can_do_without(self, move: Move) -> bool:
        """Whether an open move can be confirmed without its other side, which may be gone."""
        return "after" in move.report or await self._is_given_up(move)

    async def _is_given_up(self, move: Move) -> bool:
        """Whether the other side is done without: an operator said so, and it does not answer."""
        return move.is_abandoned and not await self._admin.answers(move.other_side.server)

    @asynccontextmanager
    async def _left(
        self, move: Move, left: Placement
    ) -> AsyncIterator[tuple[asyncpg.Connection, Tenant]]:
        """The provisioning lock on the side that was left, and the tenant as it is now.

        Raises `SupersededError` when somebody else carries the move out by now, or the tenant works
        there: who slept until now must not take away what is in use again.
        """
        async with self._maker.locked(await self._tenant(move), left) as connection:
            await self._desk.read()
            tenant = await self._tenant(move)
            if tenant.placement is None or _is_at(tenant.placement, left):
                raise SupersededError
            yield connection, tenant

    async def _open_where_it_is(self, move: Move) -> None:
        """See that the tenant is open where the catalog has it, whatever the other side does."""
        placement = await self._placement(move)
        both = replace(move, source=placement, target=placement)
        async with self._sides(both) as sides:
            side = sides.source
            if await side.has_schema():
                await side.take_term(self._desk.term, [side.connection.get_server_pid()])
            await reopen(side, self._desk, move, placement)

    # Parts

    def _sides(self, move: Move) -> AbstractAsyncContextManager[MoveSides]:
        return opened_sides(
            move,
            self._desk,
            settings=self._settings,
            admin=self._admin,
            keys=self._keys,
            clock=self._clock,
        )

    async def _attend(self, move: Move) -> Move:
        """The move as it stands now: cancelled if that is wished.

        Raises `PausedError` when it shall stand still: others are to have its place meanwhile.
        """
        now = await self._desk.read()
        if now.wish is MoveWish.CANCEL:
            return await self._desk.advance(now, MoveState.CANCELLED, granted=True)
        if now.stands_still:
            raise PausedError
        return replace(now, progress=move.progress)

    async def _next(self, move: Move, state: MoveState) -> Move:
        """The next state, unless the move has come to its end."""
        return move if move.state.is_final else await self._desk.advance(move, state)

    async def _carried(
        self,
        move: Move,
        carried: Carried,
        *,
        took_s: float | None = None,
        backlog: int = 0,
        done: int | None = None,
    ) -> Move:
        """Note what was carried; `took_s` of a piece of the first copy, None of a pass."""
        before = move.progress
        if took_s is not None:
            move = replace(move, progress=before.copied(carried.rows, took_s))
        return await self._note(
            move,
            bytes_copied=before.bytes_copied + carried.bytes,
            backlog_rows=backlog,
            passes=before.passes + 1,
            tables_copied=before.tables_copied if done is None else done,
            # A tenant that changes rows as fast as they are carried gets nowhere by passes.
            failures=0 if took_s is not None else before.failures,
        )

    def _since(self, began_s: float) -> float:
        return round(self._clock.monotonic_s() - began_s, 3)

    async def _note(self, move: Move, **changes: Any) -> Move:
        progress: MoveProgress = replace(move.progress, **changes)
        await self._desk.note_progress(progress)
        return replace(move, progress=progress)

    async def _tenant(self, move: Move) -> Tenant:
        return await self._desk.tenant(move.tenant_no)

    async def _placement(self, move: Move) -> Placement:
        placement = (await self._tenant(move)).placement
        if placement is None:
            raise SupersededError
        return placement


def announced_s(settings: Settings) -> float:
    """How long a move waits before it holds its tenant, in seconds."""
    return max(settings.move_warm_ms, 2 * settings.placement_refresh_ms) / 1_000


def _is_at(placement: Placement, other: Placement) -> bool:
    """Whether two placements are the same but for their epochs."""
    return replace(placement, epoch=other.epoch) == other


def _complete(cursors: dict[str, Cursor]) -> int:
    return sum(cursor.complete for cursor in cursors.values())
