"""What may follow what in a move, what may be asked of it, and how fast it copies."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    MoveNotFoundError,
    MoveRefusedError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.core.move import (
    ASKABLE,
    Move,
    MoveId,
    MoveState,
    MoveTarget,
    MoveWish,
    check_priority,
)
from tenancy.data_isolation.core.move_pace import (
    REST_MAX_S,
    REST_MIN_S,
    SHARE_MIN,
    SHARE_UNKNOWN,
    ChunkSize,
    MovePace,
)
from tenancy.data_isolation.core.types import IsolationLevel, Placement
from tenancy.data_isolation.engine.move_table import MoveColumn, MoveTable

PLACE = Placement(
    level=IsolationLevel.ROW,
    server=ServerName("main"),
    database=DatabaseName("tenancy"),
    schema=SchemaName("app"),
    role=RoleName("tenancy_rows"),
    epoch=Epoch(1),
)


def move_in(state: MoveState) -> Move:
    return Move(
        move_id=MoveId("m_" + "0" * 20),
        tenant_id=TenantId("acme"),
        tenant_no=TenantNo(1),
        state=state,
        source=PLACE,
        target=PLACE,
    )


def followers(state: MoveState) -> set[MoveState]:
    found = set()
    for other in MoveState:
        try:
            move_in(state).check_next(other)
        except ConflictError:
            continue
        found.add(other)
    return found


def test_every_state_can_come_to_an_end_and_ends_are_ends():
    for state in MoveState:
        reached, fresh = {state}, {state}
        while fresh:
            fresh = set().union(*(followers(item) for item in fresh)) - reached
            reached |= fresh
        assert any(item.is_final for item in reached)
        if state.is_final:
            assert followers(state) == set()


def test_the_tenant_gets_to_the_target_only_through_a_proof_and_a_cutover():
    assert {state for state in MoveState if MoveState.OPEN in followers(state)} == {
        MoveState.CUTTING_OVER
    }
    assert {state for state in MoveState if MoveState.CUTTING_OVER in followers(state)} == {
        MoveState.VERIFIED,
        MoveState.OPEN,
    }
    # Nobody is left in the middle: what is cutting over goes on or back, and does not just fail.
    assert not followers(MoveState.CUTTING_OVER) & {MoveState.FAILED, MoveState.CANCELLED}


@pytest.mark.parametrize("wish", MoveWish)
def test_a_wish_is_granted_only_where_it_can_be(wish):
    for state in MoveState:
        move = move_in(state)
        if state in ASKABLE[wish]:
            move.check_wish(wish)
        else:
            with pytest.raises(ConflictError, match=str(state)):
                move.check_wish(wish)
    assert not any(state.is_final for state in ASKABLE[wish])


@pytest.mark.parametrize("reversing", [False, True])
@pytest.mark.parametrize("state", MoveState)
def test_only_what_is_on_its_way_stands_still(state: MoveState, reversing: bool):
    move = replace(move_in(state), reversing=reversing, paused=True)
    if reversing or state.is_final or state is MoveState.OPEN:
        assert not move.stands_still
        with pytest.raises(ConflictError, match="only a move that is not open yet"):
            move.check_pause()
        return
    move.check_pause()
    assert move.stands_still
    assert not replace(move, wish=MoveWish.CANCEL).stands_still
    assert not replace(move, paused=False).stands_still


def test_the_other_side_is_where_the_tenant_does_not_work():
    there = replace(PLACE, server=ServerName("second"))
    for state in MoveState:
        for reversing in (False, True):
            move = replace(move_in(state), target=there, reversing=reversing)
            at_target = state in (MoveState.OPEN, MoveState.CONFIRMED) or (
                reversing and not state.is_final
            )
            assert move.other_side == (PLACE if at_target else there)


def test_only_what_waits_for_its_other_side_can_be_abandoned():
    for state in MoveState:
        move = move_in(state)
        assert not move.is_abandoned
        if state.is_final or state is MoveState.OPEN:
            move.check_abandonment()
        else:
            with pytest.raises(ConflictError, match="cancel it first"):
                move.check_abandonment()
        # On the way back the tenant is at the target until the end.
        replace(move, reversing=True).check_abandonment()
        if state.is_final:
            with pytest.raises(ConflictError, match="is settled"):
                replace(move, cleaned=True).check_abandonment()
    move = replace(move_in(MoveState.OPEN), target=replace(PLACE, server=ServerName("far")))
    left, kept = ({"abandoned": {"server": side.server}} for side in (move.source, move.target))
    assert replace(move, report=left).is_abandoned
    # The tenant has changed its place since: it is the other server now that may be needed.
    assert not replace(move, report=kept).is_abandoned


def test_a_target_says_something_and_a_priority_is_a_small_number():
    with pytest.raises(InvalidInputError):
        MoveTarget()
    with pytest.raises(InvalidInputError, match="use row, schema, database"):
        MoveTarget(level="colum")
    assert MoveTarget(level="row").level is IsolationLevel.ROW
    for wrong in (101, -101, True, 1.5, "1"):
        with pytest.raises(InvalidInputError):
            check_priority(wrong)
    assert check_priority(-100) == -100


def test_errors_of_moves_travel():
    for error in (MoveNotFoundError("no"), MoveRefusedError("why")):
        assert pickle.loads(pickle.dumps(error)).detail == error.detail


def _pace(**changes: float) -> MovePace:
    return MovePace(**{"latency_factor": 2.0, "dip_max": 0.1} | changes)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))))
def test_a_pace_never_stops_and_never_lets_go(samples):
    pace = _pace()
    for worked_s, working_s, usual_s, at_work in samples:
        pace.note_working(working_s)
        assert REST_MIN_S <= pace.rest_s(worked_s) <= REST_MAX_S
        assert SHARE_MIN <= pace.share <= 1.0
        pace.note_usual(usual_s, at_work)


def _measured(pace: MovePace, *, usual_ms: float, working_ms: float, at_work: int = 1) -> MovePace:
    for _ in range(100):
        pace.note_usual(usual_ms / 1_000, at_work)
        pace.note_working(working_ms / 1_000)
    return pace


@pytest.mark.parametrize(
    ("usual_ms", "working_ms", "at_work", "share"),
    [
        # Copying takes half of what others reach, of which they may lose a tenth.
        (1.0, 2.0, 1, 0.2),
        (1.0, 2.0, 8, 0.2),
        # The server as a whole is slow, which is not our doing.
        (20.0, 20.0, 8, 1.0),
        (20.0, 21.0, 8, 1.0),
        (1.0, 1_000.0, 1, 0.1 / 0.999),
        # Nobody is there who waits.
        (1.0, 1_000.0, 0, 1.0),
    ],
)
def test_a_pace_keeps_the_budget_of_throughput(usual_ms, working_ms, at_work, share):
    pace = _measured(
        _pace(latency_factor=1e6), usual_ms=usual_ms, working_ms=working_ms, at_work=at_work
    )
    assert pace.share == pytest.approx(share)
    assert pace.rest_s(0.1) == pytest.approx(max(REST_MIN_S, 0.1 * (1 - share) / share))


@given(
    st.floats(0.1, 10), st.floats(0.1, 10), st.integers(0, 3), st.floats(1, 5), st.floats(0.01, 1)
)
def test_what_copying_takes_is_within_the_budgets(usual_ms, working_ms, at_work, factor, dip_max):
    pace = _measured(
        _pace(latency_factor=factor, dip_max=dip_max),
        usual_ms=usual_ms,
        working_ms=working_ms,
        at_work=at_work,
    )
    ratio = max(1.0, working_ms / usual_ms)
    if pace.share > SHARE_MIN:
        assert pace.share * (ratio - 1) * min(at_work, 1) <= (factor - 1) + 1e-6
        assert pace.share * (1 - 1 / ratio) * min(at_work, 1) <= dip_max + 1e-6


@pytest.mark.parametrize(("working_ms", "share"), [(2.0, 1.0), (5.0, 0.25), (1e6, SHARE_MIN)])
def test_a_pace_keeps_the_budget_of_latency(working_ms, share):
    pace = _measured(_pace(dip_max=1.0), usual_ms=1.0, working_ms=working_ms)
    assert pace.share == pytest.approx(share)


def test_a_server_at_which_somebody_is_seen_every_second_time_is_busy():
    pace = _pace()
    for turn in range(100):
        pace.note_usual(0.001, turn % 2)
        pace.note_working(0.002)
    assert pace.share == pytest.approx(0.2)


def test_what_is_missing_of_a_rest_comes_after_the_next_piece():
    pace = _measured(_pace(), usual_ms=1.0, working_ms=2.0)
    assert pace.share == pytest.approx(0.2)
    assert [pace.rest_s(2.0), pace.rest_s(0.1), pace.rest_s(0.1)] == [
        REST_MAX_S, pytest.approx(3.4), pytest.approx(0.4),
    ]  # fmt: skip
    pace.rest_s(2.0)
    assert _measured(pace, usual_ms=1.0, working_ms=1.0).rest_s(0.1) == REST_MIN_S


def test_who_is_there_once_in_a_while_is_not_kept_waiting():
    pace = _pace()
    for turn in range(60):
        pace.note_usual(0.001, int(turn == 30))
        pace.note_working(0.01)
    assert pace.share == pytest.approx(1 / 9)


def test_a_debt_is_no_longer_than_one_rest():
    pace = _measured(_pace(), usual_ms=1.0, working_ms=1e6)
    for _ in range(10):
        pace.rest_s(5.0)
    _measured(pace, usual_ms=1.0, working_ms=2.0)
    assert [pace.rest_s(0.0), pace.rest_s(0.0)] == [REST_MAX_S, REST_MIN_S]


def test_pieces_get_smaller_until_they_are_short_and_larger_again():
    size = ChunkSize(1_000, alone_factor=4, piece_max_s=0.5)
    assert (size.rows(alone=False), size.rows(alone=True)) == (1_000, 4_000)
    size.took(1.9, alone=True)
    assert size.rows(alone=True) == 4_000
    for rows in (500, 250, 125):
        size.took(0.6, alone=False)
        assert size.rows(alone=False) == rows
    size.took(0.3, alone=False)
    assert size.rows(alone=False) == 125
    for rows in (250, 500, 1_000, 1_000):
        size.took(0.1, alone=False)
        assert size.rows(alone=False) == rows
    for _ in range(40):
        size.took(60.0, alone=False)
    assert size.rows(alone=False) == 1


def test_hiccups_of_the_machine_are_of_no_account():
    pace = _pace()
    for turn in range(60):
        pace.note_usual(0.001, 1)
        pace.note_working(9.0 if turn % 10 == 0 else 0.001)
    assert pace.share == 1.0


def test_a_pace_forgets_what_was_long_ago():
    pace = _measured(_pace(), usual_ms=1.0, working_ms=100.0)
    assert pace.share < 0.2
    assert _measured(pace, usual_ms=1.0, working_ms=1.0).share == 1.0


def test_a_pace_that_knows_nothing_is_careful():
    pace = _pace()
    pace.note_working(0.001)
    pace.note_usual(0.001, 0)
    assert pace.share == SHARE_UNKNOWN
    for _ in range(10):
        pace.note_usual(0.001, 1)
    assert pace.share == SHARE_UNKNOWN


def test_where_nobody_is_there_is_nothing_to_find_out():
    pace = _pace()
    for _ in range(10):
        pace.note_usual(0.001, 0)
    assert pace.share == 1.0


@pytest.mark.parametrize(
    ("kind", "looked_up"),
    [
        *[("bigint", True), ("character varying(20)", True), ("timestamp(3) with time zone", True)],
        *[("numeric(10,2)", False), ("public.mood", False), ("jsonb", False)],
    ],
)
def test_rows_are_looked_up_one_by_one_where_row_security_lets_an_index_do_it(kind, looked_up):
    key = (MoveColumn(name="a", type="bigint"), MoveColumn(name="b", type=kind))
    table = MoveTable(label="source_0", name="t", columns=key, key=key)
    text = table.changed_rows(MoveId("m_" + "0" * 20), SchemaName("app"), TenantNo(7))
    assert (" OFFSET 0" in text) is looked_up


def test_names_and_values_of_users_stay_names_and_values():
    evil = MoveColumn(name='a"; drop table x; --', type="text")
    table = MoveTable(label="source_0", name='t"', columns=(evil,), key=(evil,))
    chunk = table.chunk(
        MoveId("m_" + "0" * 20),
        SchemaName("app"),
        TenantNo(7),
        after=("it's \\ here",),
        until=("z",),
    )
    assert '"a""; drop table x; --"' in chunk
    assert "E'it''s \\\\ here'::" in chunk
    assert 'app."t"""' in chunk
