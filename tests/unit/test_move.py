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
from tenancy.data_isolation.core.move_pace import REST_MAX_S, REST_MIN_S, SHARE_MIN, MovePace
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
    assert replace(move_in(MoveState.OPEN), report={"abandoned": {}}).is_abandoned


def test_a_target_says_something_and_a_priority_is_a_small_number():
    with pytest.raises(InvalidInputError):
        MoveTarget()
    for wrong in (101, -101, True, 1.5, "1"):
        with pytest.raises(InvalidInputError):
            check_priority(wrong)
    assert check_priority(-100) == -100


def test_errors_of_moves_travel():
    for error in (MoveNotFoundError("no"), MoveRefusedError("why")):
        assert pickle.loads(pickle.dumps(error)).detail == error.detail


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(1e-5, 1)), max_size=60))
def test_a_pace_never_stops_and_never_lets_go(samples):
    pace = MovePace(latency_factor=2.0)
    for worked_s, latency_s in samples:
        assert REST_MIN_S <= pace.rest_s(worked_s, latency_s) <= REST_MAX_S
        assert SHARE_MIN <= pace.share <= 1.0
        pace.note_usual(latency_s)


def test_a_pace_slows_down_when_writes_take_longer_after_copying_than_after_a_rest():
    pace = MovePace(latency_factor=2.0)
    for _ in range(10):
        pace.note_usual(0.001)
        pace.rest_s(0.1, 0.01)
    assert pace.share == pytest.approx(SHARE_MIN)
    # When the server as a whole is slower, it is not our doing.
    for _ in range(20):
        pace.note_usual(0.01)
        pace.rest_s(0.1, 0.01)
    assert pace.share == pytest.approx(1.0)


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
