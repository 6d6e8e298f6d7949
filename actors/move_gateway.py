"""Moves of tenants, asked for through tenant actors: the same words as `Engine.moves`.

Any tenant actor can be asked, because a move is a durable row of the catalog; the actor that
carries moves out (`move_actor.py`) finds it there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.core.move import Move, MoveId, MoveState, MoveTarget
from tenancy.data_isolation.engine.move_plan import MovePlan
from tenancy.data_isolation.engine.moves import awaited

#: Asks one of the actors, the one of the tenant if there is one: method and arguments.
Ask = Callable[..., Awaitable[Any]]

_POLL_S: Final = 0.2


class ActorMoves:
    """Moves of tenants. Used from one event loop, by any number of its tasks."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock

    async def plan(self, tenant_id: TenantId | str, target: MoveTarget) -> MovePlan:
        """What moving the tenant would do, and everything that stands against it.

        Raises `TenantNotFoundError`, `ServerNotFoundError` and `TenantSuspendedError`.
        """
        name = parse_tenant_id(tenant_id)
        plan: MovePlan = await self._ask(name, "moves", "plan", name, target)
        return plan

    async def start(
        self, tenant_id: TenantId | str, target: MoveTarget, *, priority: int = 0
    ) -> Move:
        """Plan a move and record it; it is begun within `Settings.move_poll_s`.

        Raises what `plan` raises, and `MoveRefusedError` with everything that stands against it.
        When an actor is lost on the way and the move had been recorded, that is what the error
        says, with the move's id.
        """
        name = parse_tenant_id(tenant_id)
        move: Move = await self._ask(name, "moves", "start", name, target, priority=priority)
        return move

    async def move(self, move_id: str) -> Move:
        """The move of that id, or `MoveNotFoundError`."""
        return await self._of("move", move_id)

    async def moves(
        self,
        *,
        before: MoveId | None = None,
        tenant_id: TenantId | None = None,
        unsettled: bool = False,
        limit: int = 100,
    ) -> list[Move]:
        """Moves, the newest first; those of a tenant, or those of which something is left to do."""
        found: list[Move] = await self._ask(
            tenant_id,
            "moves",
            "moves",
            before=before,
            tenant_id=tenant_id,
            unsettled=unsettled,
            limit=limit,
        )
        return found

    async def cancel(self, move_id: str) -> Move:
        """Give the move up; the tenant goes on working where it was."""
        return await self._of("cancel", move_id)

    async def roll_back(self, move_id: str) -> Move:
        """Bring the tenant back, with what it has written since."""
        return await self._of("roll_back", move_id)

    async def confirm(self, move_id: str) -> Move:
        """Let the tenant stay, and take away what was at its old place."""
        return await self._of("confirm", move_id)

    async def abandon(self, move_id: str) -> Move:
        """Settle a move of which a server is lost for good: the one that the tenant is not at."""
        return await self._of("abandon", move_id)

    async def pause(self, move_id: str) -> Move:
        """Let the move stand still until it is resumed; the tenant goes on working."""
        return await self._of("pause", move_id)

    async def resume(self, move_id: str) -> Move:
        """Let the move go on."""
        return await self._of("resume", move_id)

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
            lambda: self.move(move_id),
            states,
            clock=self._clock,
            timeout_s=timeout_s,
            poll_s=_POLL_S,
            progress=progress,
        )

    async def _of(self, method: str, move_id: str) -> Move:
        move: Move = await self._ask(None, "moves", method, move_id)
        return move
