"""The orchestrator's looks at what tenants do: it proposes moves, and carries them out if it may.

Rules this module keeps:

* Of all processes one decides at a time (`proposal_store.Turn`). What it knows is in the catalog,
  so that another one goes on where it stopped.
* A window counts once. Windows that nobody has told of count for nothing.
* It starts moves through `Moves.start`, as a person would, with a priority below theirs. The budget
  is looked at in the transaction that records the move.
* Every act is noted with its reason: in the log, with the proposal, and in the move's report.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    MoveNotFoundError,
    MoveRefusedError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, TenantNo
from tenancy.data_isolation.core.level_policy import (
    Action,
    Edge,
    LatencyGuard,
    LevelPolicy,
    Limits,
    MoveBudget,
    Streak,
    Subject,
    Verdict,
    Window,
    decide,
    level_bounds,
)
from tenancy.data_isolation.core.move import Move, MoveId, MoveState
from tenancy.data_isolation.core.proposal import (
    PROPOSED_PRIORITY,
    Decider,
    OrchestrationMode,
    Proposal,
    ProposalState,
    act,
)
from tenancy.data_isolation.core.rules import RuleBook, StrategyName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, TenantSize, TenantStatus
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.moves import Moves
from tenancy.data_isolation.engine.proposal_store import (
    Known,
    Outcome,
    ProposalStore,
    Turn,
    claim,
    claim_turn,
    new_proposal_id,
    remembered,
)

_log = logging.getLogger(__name__)

#: Counts how much data a tenant has, up to so many rows.
MeasureSize = Callable[[TenantId, int], Awaitable[TenantSize]]

#: Tenants that one look is at, windows that it makes up for, and moves that it looks after.
_TENANTS_MAX: Final = 20_000
_WINDOW_ROWS_MAX: Final = 2_000
_MOVES_MAX: Final = 200
#: A process that has not looked for so many intervals does not decide any more.
_INTERVALS_HELD: Final = 3
#: What was counted is kept for so many windows, and for so long at least.
_WINDOWS_KEPT: Final = 200
_KEPT_MIN_S: Final = 7_200.0
_HOUR: Final = timedelta(hours=1)
#: Of so many times as many windows as are needed, the newest that say something are judged.
_WINDOWS_JUDGED: Final = 10
#: How far a move has come whose outcome somebody has to wait for.
_ENDS: Final = {
    MoveState.CONFIRMED: "the tenant stays",
    MoveState.FAILED: "the move failed",
    MoveState.CANCELLED: "the move was cancelled",
    MoveState.ROLLED_BACK: "the tenant is back where it was",
}


def level_policy(settings: Settings) -> LevelPolicy:
    """The rules' numbers as the settings have them. Raises `SettingError`."""

    def limits(prefix: str, *, share: bool) -> Limits:
        def value(name: str) -> Any:
            return getattr(settings, f"{prefix}_{name}")

        return Limits(
            operations_per_s=value("operations_per_s"),
            rows=value("rows"),
            bytes=value("bytes"),
            busy_share=value("busy_percent") / 100 if share else None,
        )

    def edge(level: str, *, share: bool) -> Edge:
        return Edge(
            promote=limits(f"{level}_promote", share=share),
            demote=limits(f"{level}_demote", share=share),
        )

    return LevelPolicy(
        # Of a server's time a database of its own gives a tenant no more than a schema does.
        to_schema=edge("schema", share=True),
        to_database=edge("database", share=False),
        promote_windows=settings.promote_windows,
        demote_windows=settings.demote_windows,
        cooldown_s=settings.promotion_cooldown_s,
        failed_cooldown_s=settings.promotion_failed_cooldown_s,
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """What was counted in the windows of one look, the oldest first."""

    windows: Mapping[datetime, Mapping[ServerName, tuple[int, int]]]
    loads: Mapping[datetime, Mapping[TenantNo, tuple[int, int]]]

    def window(self, at: datetime, item: Known, length_s: float, neighbours_min: float) -> Window:
        """What a tenant did in one of them."""
        place = item.tenant.placement
        assert place is not None  # noqa: S101 - the catalog has it joined.
        operations, busy_us = self.loads[at].get(item.tenant.tenant_no, (0, 0))
        all_operations, all_busy_us = self.windows[at].get(place.server, (0, 0))
        share = None
        if all_busy_us and (all_operations - operations) / length_s >= neighbours_min:
            share = min(busy_us / all_busy_us, 1.0)
        return Window(operations_per_s=operations / length_s, busy_share=share, size=item.size)


class LevelReview:
    """Looks, proposes and moves. Belongs to one event loop.

    `book` has the rules by which compliance and types of tenants ask for levels; `measure` counts
    a tenant's rows; `interval_s` is the time between two looks, one window if it is not given.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        moves: Moves,
        store: ProposalStore,
        book: RuleBook,
        measure: MeasureSize,
        mode: OrchestrationMode,
        interval_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._moves = moves
        self._store = store
        self._book = book
        self._measure = measure
        self._mode = mode
        self._interval_s = interval_s or settings.load_window_s
        self._clock = clock or SystemClock()
        self._policy = level_policy(settings)
        self._budget = MoveBudget(
            per_hour_max=settings.orchestrated_moves_per_hour_max,
            at_once_max=settings.orchestrated_moves_at_once_max,
        )
        self._guard = LatencyGuard(
            factor=settings.orchestrated_latency_factor,
            slack_ms=settings.orchestrated_latency_slack_ms,
            windows_min=settings.orchestrated_latency_windows,
            operations_min=settings.orchestrated_latency_operations_min,
        )
        self._measure_timeout_s = (
            settings.statement_timeout_ms + settings.connection_wait_ms
        ) / 1_000
        self._holder = secrets.token_hex(10)
        self._has_looked = False
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look again and again. Can be called again; does nothing when the mode is off."""
        if self._working is not None or self._mode is OrchestrationMode.OFF:
            return
        if self._mode is OrchestrationMode.AUTOMATIC:
            # What it starts has to be carried out by somebody.
            self._moves.work()
        self._working = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Look no more, and let another process decide."""
        working, self._working = self._working, None
        if working is not None:
            working.cancel()
            await asyncio.wait([working])
        if not self._has_looked:
            return
        try:
            await self._store.let_go(self._holder)
        except TenancyError as error:
            _log.info("another process decides when the time is over: %s", error.detail)

    async def look(self) -> bool:
        """Look once; False when another process is the one that decides."""
        self._has_looked = True
        held_s = _INTERVALS_HELD * self._interval_s
        turn = await self._store.hold(self._holder, held_s, self._mode)
        if turn is None:
            return False
        if not await self._propose(turn):
            return False
        if self._mode is OrchestrationMode.AUTOMATIC:
            # Its place in the catalog has moved on with what was proposed.
            await self._start_moves(turn)
        await self._look_after_moves()
        return True

    # What is proposed

    async def _propose(self, turn: Turn) -> bool:
        now, length_s = self._clock.now(), self._settings.load_window_s
        # The processes have half a window to tell of one that has ended.
        until = now - timedelta(seconds=1.5 * length_s)
        windows = await self._store.windows(turn.looked_upto, until, _WINDOW_ROWS_MAX)
        if not windows:
            return True
        counted = _Counted(windows, await self._store.loads(windows))
        active = {number for loads in counted.loads.values() for number in loads}
        found = await self._store.known(active, _TENANTS_MAX)
        if len(found) >= _TENANTS_MAX:
            _log.warning("there are more tenants to look at than %d at once", _TENANTS_MAX)
        sized = await self._sized(found, active, now)
        known = [self._with_windows(item, counted) for item in sized]
        servers = await self._catalog.servers()
        counts = await self._catalog.count_by_strategy()
        databases = counts.get(StrategyName.DATABASE_LEVEL, 0)
        proposals: list[Proposal] = []
        withdrawn: dict[Any, Mapping[str, Any]] = {}
        for item in known:
            verdict = decide(self._policy, self._subject(item, databases), servers=servers, now=now)
            await self._weigh(item, verdict, proposals, withdrawn, now)
        outcome = Outcome(
            looked_upto=max(windows),
            known=[item for item, before in zip(known, found, strict=True) if item != before],
            proposals=proposals,
            withdrawn=withdrawn,
            told={"tenants": len(known), "windows": len(windows), "at": now.isoformat()},
        )
        keep_s = max(_WINDOWS_KEPT * length_s, _KEPT_MIN_S)
        done = await self._store.record(turn, outcome, at=now, keep_s=keep_s)
        if done is None:
            return False
        for proposal in proposals:
            # One of a tenant that was erased, or has another one still, has come to nothing.
            if proposal.proposal_id in done:
                self._tell(proposal, "proposed", "; ".join(proposal.reasons))
        for name, noted in withdrawn.items():
            if name in done:
                _log.info("proposal %s withdrawn: %s", name, noted["reason"])
        return True

    def _with_windows(self, item: Known, counted: _Counted) -> Known:
        level = _level(item)
        streak = item.streak or Streak(level=level)
        neighbours_min = self._settings.busy_neighbours_operations_per_s
        for at in counted.windows:
            window = counted.window(at, item, self._settings.load_window_s, neighbours_min)
            streak = streak.after(self._policy, level, window)
        return remembered(item, streak)

    def _subject(self, item: Known, databases: int) -> Subject:
        level = _level(item)
        failed = item.move_state in (
            MoveState.FAILED,
            MoveState.CANCELLED,
            MoveState.ROLLED_BACK,
        )
        return Subject(
            tenant=item.tenant,
            streak=item.streak or Streak(level=level),
            bounds=level_bounds(self._book, item.tenant, databases=databases),
            chosen=item.chosen or level,
            under_move=item.move_state is not None and not item.move_settled,
            moved_at=item.moved_at if item.move_settled else None,
            move_failed=failed,
            answered_at=item.answered_at,
        )

    async def _weigh(
        self,
        item: Known,
        verdict: Verdict,
        proposals: list[Proposal],
        withdrawn: dict[Any, Mapping[str, Any]],
        now: datetime,
    ) -> None:
        """A new proposal for a tenant, or the end of the one there is."""
        if item.proposal_id is None:
            if verdict.target is not None:
                proposals.append(await self._proposal(item, verdict, now))
            return
        assert item.proposed is not None  # noqa: S101 - read together.
        reason = self._against(item, verdict)
        if reason is not None:
            withdrawn[item.proposal_id] = act(now, "withdrawn", reason)

    def _against(self, item: Known, verdict: Verdict) -> str | None:
        """Why what is proposed for a tenant is not any more; None while it is."""
        assert item.proposed is not None  # noqa: S101 - asked for such alone.
        action, target = item.proposed
        if (verdict.action, verdict.target) == (action, target):
            return None
        if verdict.target is not None:
            return f"something else is to be done by now: {'; '.join(verdict.reasons)}"
        if item.tenant.status is not TenantStatus.ACTIVE or (
            item.move_state is not None and not item.move_settled
        ):
            return "; ".join(verdict.reasons)
        if target.level is _level(item):
            return "the tenant is there by now"
        if action is Action.PROMOTE and not item.demanded:
            # What led up may come again; it stands until nothing is left of it.
            calm = 0 if item.streak is None else item.streak.calm
            if calm < self._policy.promote_windows:
                return None
            return f"{calm} windows in a row were below what leads up"
        return "; ".join(verdict.reasons)

    async def _proposal(self, item: Known, verdict: Verdict, now: datetime) -> Proposal:
        assert verdict.target is not None  # noqa: S101 - asked for such alone.
        tenant = item.tenant
        reasons = "; ".join(verdict.reasons)
        movable = tenant.placement is not None and tenant.placement.sensitive_schema is None
        return Proposal(
            proposal_id=new_proposal_id(),
            tenant_id=tenant.tenant_id,
            tenant_no=tenant.tenant_no,
            state=ProposalState.PROPOSED,
            action=verdict.action,
            source_level=_level(item),
            target=verdict.target,
            reasons=verdict.reasons
            if movable
            else (*verdict.reasons, "a hybrid tenant cannot be moved yet"),
            evidence=await self._evidence(item, verdict, now),
            acts=(act(now, "proposed", reasons),),
            movable=movable,
        )

    async def _evidence(self, item: Known, verdict: Verdict, now: datetime) -> dict[str, Any]:
        """What was measured lately; the latency is what a move is held against afterwards."""
        count, size = self._policy.promote_windows, item.size
        lately_s = count * self._settings.load_window_s
        # They have ended, and time was given to tell of them.
        since = now - timedelta(seconds=lately_s + 2.5 * self._settings.load_window_s)
        windows = await self._store.latencies(item.tenant.tenant_no, since, count)
        latency_ms = self._guard.usual_ms(windows)
        streak = item.streak
        return {
            "operations_per_s": round(sum(number for number, _ in windows) / lately_s, 1),
            "latency_ms": None if latency_ms is None else round(latency_ms, 3),
            "rows": None if size is None else size.rows,
            "bytes": None if size is None else size.bytes,
            "counted_completely": None if size is None else size.complete,
            "windows": 0 if streak is None else max(streak.above, streak.below),
            "demanded": verdict.demanded,
        }

    async def _sized(
        self, found: Iterable[Known], active: set[TenantNo], now: datetime
    ) -> list[Known]:
        """With sizes: of those at work that were not measured for the longest time, some are."""
        known = {item.tenant.tenant_no: item for item in found}
        oldest = now - timedelta(seconds=self._settings.tenant_size_interval_s)
        due = [
            item
            for item in known.values()
            if (item.tenant.tenant_no in active or item.chosen is not None)
            and item.tenant.status is TenantStatus.ACTIVE
            and (item.sized_at is None or item.sized_at <= oldest)
        ]
        due.sort(key=lambda item: (item.sized_at is not None, item.sized_at or now))
        for item in due[: self._settings.tenant_sizes_per_review_max]:
            # One that is too large to be counted in time is not tried again before its time.
            size = item.size
            try:
                async with asyncio.timeout(self._measure_timeout_s):
                    size = await self._measure(item.tenant.tenant_id, self._rows_max(item))
            except TenancyError as error:
                _log.info("tenant %s was not measured: %s", item.tenant.tenant_id, error.detail)
            except TimeoutError:
                _log.info("tenant %s was not measured in time", item.tenant.tenant_id)
            known[item.tenant.tenant_no] = replace(item, size=size, sized_at=now)
        return list(known.values())

    def _rows_max(self, item: Known) -> int:
        """How far rows are counted: beyond what leads to the next level nothing is to be known."""
        settings = self._settings
        at_row = _level(item) is IsolationLevel.ROW
        return settings.schema_promote_rows if at_row else settings.database_promote_rows

    # What is done

    async def _start_moves(self, turn: Turn) -> None:
        for proposal in await self._store.waiting(_MOVES_MAX):
            # Asked here as well, since planning a move counts the tenant's rows.
            lately, under_way = await self._store.started_lately(self._clock.now() - _HOUR)
            if self._budget.against(lately=lately, under_way=under_way) is not None:
                return
            if not await self._started(turn, proposal):
                return

    async def _started(self, turn: Turn, proposal: Proposal) -> bool:
        """Start a move; False when no further one may be started now."""
        now = self._clock.now()
        against: list[str] = []

        async def claimed(control: asyncpg.Connection, move_id: MoveId) -> None:
            found = await claim_turn(control, turn, now - _HOUR)
            if found is None:
                against.append("another process decides")
                raise ConflictError(against[-1])
            lately, under_way = found
            reason = self._budget.against(lately=lately, under_way=under_way)
            if reason is not None:
                against.append(reason)
                raise ConflictError(reason)
            told = act(now, "started", "; ".join(proposal.reasons))
            await claim(control, proposal, move_id, Decider.ORCHESTRATOR, told, at=now)

        try:
            move = await self._moves.start(
                proposal.tenant_id, proposal.target, priority=PROPOSED_PRIORITY, claim=claimed
            )
        except MoveRefusedError as error:
            refused = act(now, "refused", error.detail)
            await self._answer(proposal, ProposalState.REFUSED, refused, now)
        except TenancyError as error:
            if against:
                _log.info("no move is started now: %s", against[-1])
                return False
            _log.warning("proposal %s: no move: %s", proposal.proposal_id, error.detail)
        else:
            self._tell(proposal, f"started {move.move_id}", "; ".join(proposal.reasons))
        return True

    async def _answer(
        self, proposal: Proposal, state: ProposalState, noted: Mapping[str, Any], now: datetime
    ) -> None:
        try:
            await self._store.answer(proposal, state, noted, at=now)
        except ConflictError:
            return  # Somebody has answered it meanwhile.
        self._tell(proposal, state, noted["reason"])

    async def _look_after_moves(self) -> None:
        for proposal in await self._store.followed(_MOVES_MAX):
            try:
                await self._look_after(proposal)
            except TenancyError as error:
                _log.warning("proposal %s: %s", proposal.proposal_id, error.detail)

    async def _look_after(self, proposal: Proposal) -> None:
        assert proposal.move_id is not None  # noqa: S101 - it was accepted.
        try:
            move = await self._moves.move(proposal.move_id)
        except MoveNotFoundError:
            return
        now = self._clock.now()
        if move.state.is_final:
            reason = _ENDS[move.state] + (f": {move.error}" if move.error else "")
            await self._note(proposal, act(now, str(move.state), reason), now, done=True)
            return
        automatic = self._mode is OrchestrationMode.AUTOMATIC
        mine = automatic and proposal.accepted_by is Decider.ORCHESTRATOR
        if not mine or move.state is not MoveState.OPEN or move.wish is not None:
            return
        worse = await self._worse(proposal, move)
        if worse is not None:
            await self._moves.roll_back(move.move_id)
            await self._note(proposal, act(now, "rolling_back", worse), now)
            return
        kept_s = self._settings.orchestrated_retention_s
        assert move.opened_at is not None  # noqa: S101 - it is open.
        if (now - move.opened_at).total_seconds() < kept_s:
            return
        if not proof_holds(move):
            _log.warning("move %s is not confirmed: its copies were not proven equal", move.move_id)
            return
        await self._moves.confirm(move.move_id)
        told = f"open for {kept_s:g} s, the copies were equal, and it is not known to be slower"
        await self._note(proposal, act(now, "confirming", told), now)

    async def _worse(self, proposal: Proposal, move: Move) -> str | None:
        """Why the tenant is worse off where it is now; None when it is not known to be."""
        assert move.opened_at is not None  # noqa: S101 - it is open.
        # Windows that began there: the one before has the wait for the change of its place in it.
        windows = await self._store.latencies(
            proposal.tenant_no, move.opened_at, _WINDOWS_JUDGED * self._guard.windows_min
        )
        return self._guard.verdict(proposal.evidence.get("latency_ms"), windows)

    async def _note(
        self, proposal: Proposal, noted: Mapping[str, Any], now: datetime, *, done: bool = False
    ) -> None:
        await self._store.add_act(proposal, noted, at=now, done=done)
        self._tell(proposal, noted["act"], noted["reason"])

    def _tell(self, proposal: Proposal, what: str, reason: str) -> None:
        _log.info(
            "proposal %s (%s tenant %s): %s: %s",
            proposal.proposal_id,
            proposal.action,
            proposal.tenant_id,
            what,
            reason,
        )

    async def _work(self) -> None:
        while True:
            try:
                await self.look()
            except TenancyError as error:
                _log.warning("tenants' levels were not looked at: %s", error.detail)
            except Exception:
                # Nobody awaits this task who could be told, and the next look may go better.
                _log.exception("tenants' levels were not looked at")
            await asyncio.sleep(self._interval_s)


def proof_holds(move: Move) -> bool:
    """Whether all tables were seen to be equal after the tenant had changed its place."""
    compared = move.report.get("after")
    return bool(compared) and all(item.get("equal") is True for item in compared or ())


def _level(item: Known) -> IsolationLevel:
    place = item.tenant.placement
    assert place is not None  # noqa: S101 - the catalog has it joined.
    return place.level
