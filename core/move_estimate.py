"""How long a move may take, and how long its tenant is held: learned from moves seen here. Pure.

Each figure is the median of what the last moves have shown, because one that met a busy hour says
little about the next. Until there was one, figures are assumed, and the estimate says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from tenancy.data_isolation.core.types import IsolationLevel

#: Rows that are copied and compared in a second, of small rows on two cores.
ASSUMED_ROWS_PER_S: Final = 50_000.0
#: Making the place and beginning to note changes, in seconds.
_ASSUMED_SETUP_S: Final = {
    IsolationLevel.ROW: 0.1,
    IsolationLevel.SCHEMA: 0.5,
    IsolationLevel.DATABASE: 2.0,
}
#: For how long a tenant is held, in ms: within one server, and between two.
_ASSUMED_PAUSE_MS: Final = {False: 12.0, True: 30.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenMove:
    """What a move that came to be open has shown.

    `bytes` are those of its rows as its plan has counted them; None when it had not.
    """

    rows: int
    bytes: int | None
    #: Until the first row was copied, and for copying and comparing them all, in seconds.
    prepare_s: float
    carry_s: float
    #: How long the tenant was held, its last statement included, in ms.
    pause_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenMoves:
    """Moves of one kind, within one server or between two.

    `sized` are those of so many rows that their rates say something, `alike` those to the same
    isolation level, and `all` any.
    """

    sized: Sequence[SeenMove] = ()
    alike: Sequence[SeenMove] = ()
    all: Sequence[SeenMove] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveEstimate:
    """What to expect of a move, and what that rests on.

    `duration_s` is None when the tenant's rows were not counted.
    """

    duration_s: float | None
    pause_ms: float
    #: Of copying and comparing together. Bytes are those of rows as a plan counts them; None when
    #: no move has shown how many of them go in a second.
    rows_per_s: float
    bytes_per_s: float | None
    #: Until the first row is copied, in seconds.
    setup_s: float
    #: From how many moves the rates come, and the pause; 0 = assumed.
    moves: int
    pauses: int

    @property
    def basis(self) -> str:
        """What it rests on, in words."""
        rate = f"{self.rows_per_s:,.0f} rows/s"
        if self.bytes_per_s is not None:
            rate += f", {self.bytes_per_s / 1e6:.3g} MB/s"
        pause = f"a pause of {self.pause_ms:g} ms"
        match self.moves > 0, self.pauses > 0:
            case True, _:
                return f"from {_moves(self.moves)} here: {rate}; pause from {self.pauses}"
            case _, True:
                return f"no large moves yet: assumed {rate}; pause from {_moves(self.pauses)} here"
            case _:
                return f"no moves yet: assumed {rate} and {pause}"

    def document(self) -> dict[str, Any]:
        """What the estimate rests on, as the interface has it."""
        return {
            "rows_per_s": round(self.rows_per_s),
            "bytes_per_s": None if self.bytes_per_s is None else round(self.bytes_per_s),
            "setup_s": round(self.setup_s, 2),
            "moves": self.moves,
            "pauses": self.pauses,
            "basis": self.basis,
        }


def estimated(
    seen: SeenMoves,
    *,
    rows: int | None,
    size_bytes: int | None,
    level: IsolationLevel,
    other_server: bool,
    warm_s: float,
) -> MoveEstimate:
    """What to expect of a move of so much to `level`.

    `warm_s` is how long sessions have to be opened at the new place. Where rows and bytes tell
    different times it is the longer one: rows can be wider than those that were seen.
    """
    rates = _rates(seen.sized, lambda move: move.rows)
    speeds = _rates(seen.sized, lambda move: move.bytes)
    rows_per_s = median(rates) if rates else ASSUMED_ROWS_PER_S
    bytes_per_s = median(speeds) if speeds else None
    setups = [move.prepare_s for move in seen.alike]
    setup_s = median(setups) if setups else _ASSUMED_SETUP_S[level]
    pauses = [move.pause_ms for move in seen.all]
    duration_s = None
    if rows is not None:
        carry_s = rows / rows_per_s
        if bytes_per_s is not None and size_bytes is not None:
            carry_s = max(carry_s, size_bytes / bytes_per_s)
        duration_s = round(setup_s + carry_s + warm_s, 1)
    return MoveEstimate(
        duration_s=duration_s,
        pause_ms=round(median(pauses) if pauses else _ASSUMED_PAUSE_MS[other_server], 1),
        rows_per_s=rows_per_s,
        bytes_per_s=bytes_per_s,
        setup_s=setup_s,
        moves=len(rates),
        pauses=len(pauses),
    )


def _rates(moves: Sequence[SeenMove], amount: Callable[[SeenMove], int | None]) -> list[float]:
    """How much went in a second, of the moves that tell."""
    return [found / move.carry_s for move in moves if move.carry_s > 0 and (found := amount(move))]


def _moves(count: int) -> str:
    return f"{count} move{'' if count == 1 else 's'}"
