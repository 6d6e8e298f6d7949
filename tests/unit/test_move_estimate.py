"""What is expected of a move, from what other moves have shown, and how far one has come."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import IsolationLevel
from tenancy.data_isolation.core.move import MoveProgress
from tenancy.data_isolation.core.move_estimate import (
    ASSUMED_ROWS_PER_S,
    MoveEstimate,
    SeenMove,
    SeenMoves,
    estimated,
)

SCHEMA, DATABASE = IsolationLevel.SCHEMA, IsolationLevel.DATABASE
NOTHING = SeenMoves()


def seen(
    rows: int = 100_000,
    *,
    carry_s: float = 1.0,
    size: int | None = None,
    prepare_s: float = 0.3,
    pause_ms: float = 8.0,
) -> SeenMove:
    return SeenMove(rows=rows, bytes=size, prepare_s=prepare_s, carry_s=carry_s, pause_ms=pause_ms)


def estimate(
    moves: SeenMoves,
    *,
    rows: int | None = 200_000,
    size: int | None = 8_000_000,
    level: IsolationLevel = SCHEMA,
    other_server: bool = False,
    warm_s: float = 1.0,
) -> MoveEstimate:
    return estimated(
        moves, rows=rows, size_bytes=size, level=level, other_server=other_server, warm_s=warm_s
    )


def alike(*moves: SeenMove) -> SeenMoves:
    return SeenMoves(sized=moves, alike=moves, all=moves)


def test_without_moves_it_is_assumed_and_says_so():
    there = estimate(NOTHING)
    assert (there.rows_per_s, there.bytes_per_s) == (ASSUMED_ROWS_PER_S, None)
    assert there.duration_s == round(0.5 + 200_000 / ASSUMED_ROWS_PER_S + 1.0, 1)
    assert there.basis == "no moves yet: assumed 50,000 rows/s and a pause of 12 ms"
    assert estimate(NOTHING, other_server=True).pause_ms == 30
    database = estimate(NOTHING, level=DATABASE)
    assert (database.duration_s, there.duration_s) == (7.0, 5.5)


def test_it_is_the_median_of_what_was_seen():
    # One in a busy hour, and one that was held for long, change nothing.
    moves = alike(
        seen(carry_s=2.0, pause_ms=7.0, prepare_s=0.2),
        seen(carry_s=2.5, pause_ms=9.0, prepare_s=0.4),
        seen(carry_s=90.0, pause_ms=900.0, prepare_s=60.0),
    )
    there = estimate(moves)
    assert there.rows_per_s == 40_000
    assert there.duration_s == round(0.4 + 5.0 + 1.0, 1)
    assert (there.pause_ms, there.moves, there.pauses) == (9.0, 3, 3)
    assert there.basis == "from 3 moves here: 40,000 rows/s; pause from 3"


def test_wide_rows_take_as_long_as_their_bytes():
    moves = alike(seen(rows=100_000, carry_s=1.0, size=5_000_000))
    assert estimate(moves, rows=100_000, size=5_000_000).duration_s == 2.3
    assert estimate(moves, rows=100_000, size=50_000_000).duration_s == 11.3
    # Narrow ones take as long as there are rows.
    assert estimate(moves, rows=100_000, size=100).duration_s == 2.3
    assert estimate(moves).bytes_per_s == 5_000_000


def test_what_was_not_counted_has_a_pause_and_no_duration():
    there = estimate(alike(seen()), rows=None, size=None)
    assert (there.duration_s, there.pause_ms) == (None, 8.0)
    assert estimate(alike(seen(size=None)), rows=10, size=10).bytes_per_s is None


def test_each_figure_says_on_how_much_it_rests():
    small = seen(rows=3, carry_s=0.1)
    few = estimate(SeenMoves(all=[small], alike=[small]))
    assert (few.moves, few.pauses, few.rows_per_s) == (0, 1, ASSUMED_ROWS_PER_S)
    assert few.basis == "no large moves yet: assumed 50,000 rows/s; pause from 1 move here"
    assert estimate(alike(seen())).basis == "from 1 move here: 100,000 rows/s; pause from 1"
    # What has measured nothing is not divided by.
    assert estimate(alike(seen(carry_s=0.0))).moves == 0
    document = estimate(alike(seen(size=30_000))).document()
    assert document == {
        "rows_per_s": 100_000,
        "bytes_per_s": 30_000,
        "setup_s": 0.3,
        "moves": 1,
        "pauses": 1,
        "basis": "from 1 move here: 100,000 rows/s, 0.03 MB/s; pause from 1",
    }
    wide = estimate(alike(seen(size=2_460_000)))
    assert wide.basis == "from 1 move here: 100,000 rows/s, 2.46 MB/s; pause from 1"
    assert pickle.loads(pickle.dumps(few)) == few


@given(
    st.lists(
        st.builds(
            SeenMove,
            rows=st.integers(0, 10**9),
            bytes=st.none() | st.integers(0, 10**12),
            prepare_s=st.floats(0, 1e4),
            carry_s=st.floats(0, 1e6),
            pause_ms=st.floats(0, 1e4),
        ),
        max_size=12,
    ),
    st.integers(0, 10**9),
    st.integers(0, 10**12),
)
def test_no_history_makes_an_estimate_impossible(moves: list[SeenMove], rows: int, size: int):
    there = estimate(SeenMoves(sized=moves, alike=moves, all=moves), rows=rows, size=size)
    assert there.duration_s is not None
    assert there.duration_s >= 1.0
    assert there.pause_ms >= 0
    assert there.rows_per_s > 0
    assert there.moves <= len(moves)


def test_what_is_left_follows_from_the_moves_own_rate():
    begun = MoveProgress(rows_total=1_000)
    half = begun.copied(250, 1.0).copied(250, 3.0)
    assert (half.rows_copied, half.copy_s, half.remaining_s) == (500, 4.0, 4.0)
    # Who takes the move over goes on from what is recorded, and not from nothing.
    assert half.copied(250, 0.5).remaining_s == 1.5
    assert half.copied(900, 1.0).remaining_s == 0.0
    assert begun.copied(0, 0.2).remaining_s is None


@pytest.mark.parametrize("rows", [1, 999])
def test_nothing_is_left_of_a_copy_that_is_complete(rows: int):
    assert MoveProgress(rows_total=rows).copied(rows, 0.0).remaining_s == 0.0
