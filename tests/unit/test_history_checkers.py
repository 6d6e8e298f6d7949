"""The checkers accept what a correct store shows, and find each thing that a wrong one does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.history.call import (
    Account,
    AddItem,
    Append,
    Balance,
    Call,
    Entry,
    Items,
    Outcome,
    ReadBank,
    ReadItems,
    ReadJournal,
    ReadList,
    ReadRegister,
    Swap,
    Transfer,
    Write,
)
from support.history.check import anomalies, check
from support.history.figures import figures_of
from support.history.real_time import predecessors
from support.history.register import check_registers
from support.history.report import Kind
from support.history.simulated_store import OPENING, Beat, Family, Fate, Fault, Simulation

OK, REFUSED, UNKNOWN = Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN
CURRENT, SAVINGS = Account("current", 1), Account("savings", 1)
BANK = {CURRENT: 5, SAVINGS: 5}
MOVE = Transfer(1, CURRENT, SAVINGS, 2)


def call(action, start, end, answer=None, outcome=OK, client=None):
    return Call(
        client=client or f"client {start}",
        action=action,
        invoked_ns=start,
        completed_ns=end,
        answer=answer,
        outcome=outcome,
    )


def bank(current, savings, versions=1):
    return {CURRENT: Balance(current, versions), SAVINGS: Balance(savings, versions)}


def kinds(*calls):
    return {item.kind for item in anomalies(calls, BANK)}


def items(*there, damaged=()):
    return Items(there, damaged)


A, B, READ = Append(0, 1), Append(0, 2), ReadList(0)
LISTS = {
    "lost": ([call(A, 1, 2), call(READ, 3, 4, ())], Kind.LOST),
    "doubled": ([call(A, 1, 2), call(READ, 3, 4, (1, 1))], Kind.DOUBLED),
    "refused": ([call(A, 1, 2, None, REFUSED), call(READ, 3, 4, (1,))], Kind.REFUSED_VISIBLE),
    "phantom": ([call(READ, 3, 4, (9,))], Kind.PHANTOM),
    "from the future": ([call(READ, 1, 2, (1,)), call(A, 3, 4)], Kind.PHANTOM),
    "unread": ([call(A, 1, 2)], Kind.UNREAD),
    "two orders": (
        [call(A, 1, 9), call(B, 1, 9), call(READ, 2, 3, (1,)), call(READ, 10, 11, (2, 1))],
        Kind.DISAGREEMENT,
    ),
    "other place": ([call(A, 1, 2, 2), call(READ, 3, 4, (1,))], Kind.DISAGREEMENT),
    "reordered (ww)": ([call(A, 1, 2), call(B, 3, 4), call(READ, 5, 6, (2, 1))], Kind.CYCLE),
    "stale (rw)": (
        [call(A, 1, 2), call(READ, 3, 4, ()), call(READ, 5, 6, (1,))],
        Kind.CYCLE,
    ),
    "stale, through an append of unknown outcome": (
        [call(A, 1, 2, None, UNKNOWN), call(READ, 3, 4, (1,)), call(READ, 5, 6, ())],
        Kind.CYCLE,
    ),
}
SETS = {
    "lost": ([call(AddItem(1), 1, 2), call(ReadItems(0), 3, 4, items())], Kind.LOST),
    "doubled": ([call(AddItem(1), 1, 2), call(ReadItems(0), 3, 4, items(1, 1))], Kind.DOUBLED),
    "unknown and doubled": (
        [call(AddItem(1), 1, 2, None, UNKNOWN), call(ReadItems(0), 3, 4, items(1, 1))],
        Kind.DOUBLED,
    ),
    "refused": (
        [call(AddItem(1), 1, 2, None, REFUSED), call(ReadItems(0), 3, 4, items(1))],
        Kind.REFUSED_VISIBLE,
    ),
    "phantom": ([call(ReadItems(0), 3, 4, items(9))], Kind.PHANTOM),
    "other bucket": ([call(AddItem(1), 1, 2), call(ReadItems(1), 3, 4, items(1))], Kind.PHANTOM),
    "damaged": (
        [call(AddItem(1), 1, 2), call(ReadItems(0), 3, 4, items(1, damaged=(1,)))],
        Kind.DAMAGED,
    ),
    "stale": (
        [
            call(AddItem(1), 1, 2),
            call(ReadItems(0), 3, 4, items()),
            call(ReadItems(0), 5, 6, items(1)),
        ],
        Kind.STALE,
    ),
    "stale after a read": (
        [
            call(AddItem(1), 1, 9),
            call(ReadItems(0), 2, 3, items(1)),
            call(ReadItems(0), 4, 5, items()),
            call(ReadItems(0), 10, 11, items(1)),
        ],
        Kind.STALE,
    ),
    "crossed": (
        [
            call(AddItem(1), 1, 9),
            call(AddItem(2), 1, 9),
            call(ReadItems(0), 2, 5, items(1)),
            call(ReadItems(0), 3, 6, items(2)),
            call(ReadItems(0), 10, 11, items(1, 2)),
        ],
        Kind.DISAGREEMENT,
    ),
    "unread": ([call(AddItem(1), 1, 2)], Kind.UNREAD),
}
DONE = call(MOVE, 1, 2)
JOURNAL = call(ReadJournal(), 3, 4, (Entry(MOVE, 1, 1),))
BANKS = {
    "seen half-way": ([DONE, JOURNAL, call(ReadBank(), 5, 6, bank(3, 5))], Kind.UNBALANCED),
    "overdrawn": ([DONE, JOURNAL, call(ReadBank(), 5, 6, bank(-1, 11))], Kind.OVERDRAWN),
    "account gone": (
        [call(ReadBank(), 5, 6, {CURRENT: Balance(10, 0)})],
        Kind.DAMAGED,
    ),
    "lost with its money": (
        [DONE, call(ReadJournal(), 3, 4, ()), call(ReadBank(), 5, 6, bank(5, 5, 0))],
        Kind.LOST,
    ),
    "not what the journal says": (
        [DONE, JOURNAL, call(ReadBank(), 5, 6, bank(5, 5))],
        Kind.UNBALANCED,
    ),
    "doubled": (
        [
            DONE,
            call(ReadJournal(), 3, 4, (Entry(MOVE, 1, 1), Entry(MOVE, 2, 2))),
            call(ReadBank(), 5, 6, bank(1, 9, 2)),
        ],
        Kind.DOUBLED,
    ),
    "refused": (
        [
            replace(DONE, outcome=REFUSED),
            JOURNAL,
            call(ReadBank(), 5, 6, bank(3, 7)),
        ],
        Kind.REFUSED_VISIBLE,
    ),
    "another amount": (
        [DONE, call(ReadJournal(), 3, 4, (Entry(replace(MOVE, amount=1), 1, 1),))],
        Kind.DAMAGED,
    ),
    "phantom": ([JOURNAL], Kind.PHANTOM),
    "stale": (
        [
            DONE,
            call(ReadBank(), 3, 4, bank(5, 5, 0)),
            call(ReadJournal(), 5, 6, (Entry(MOVE, 1, 1),)),
        ],
        Kind.STALE,
    ),
    "stale after a read": (
        [
            call(MOVE, 1, 2, None, UNKNOWN),
            call(ReadBank(), 3, 4, bank(3, 7)),
            call(ReadBank(), 5, 6, bank(5, 5, 0)),
            call(ReadJournal(), 7, 8, (Entry(MOVE, 1, 1),)),
        ],
        Kind.STALE,
    ),
    "stale, though an earlier transfer of unknown outcome may count": (
        [
            call(Transfer(2, CURRENT, SAVINGS, 1), 1, 2, None, UNKNOWN),
            call(MOVE, 3, 4),
            call(ReadBank(), 5, 6, bank(4, 6)),
            call(
                ReadJournal(),
                7,
                8,
                (Entry(Transfer(2, CURRENT, SAVINGS, 1), 1, 1), Entry(MOVE, 2, 2)),
            ),
        ],
        Kind.STALE,
    ),
    "from the future": (
        [call(ReadBank(), 1, 2, bank(3, 7)), call(MOVE, 3, 4), replace(JOURNAL, invoked_ns=5)],
        Kind.PHANTOM,
    ),
    "a version without a transfer": (
        [call(ReadBank(), 1, 2, bank(5, 5)), call(ReadJournal(), 3, 4, ())],
        Kind.PHANTOM,
    ),
    "one version twice": (
        [
            DONE,
            call(Transfer(2, CURRENT, SAVINGS, 1), 1, 2),
            call(
                ReadJournal(),
                3,
                4,
                (Entry(MOVE, 1, 1), Entry(Transfer(2, CURRENT, SAVINGS, 1), 1, 2)),
            ),
        ],
        Kind.DISAGREEMENT,
    ),
    "crossed": (
        [
            call(ReadBank(), 1, 5, {CURRENT: Balance(5, 1), SAVINGS: Balance(5, 0)}),
            call(ReadBank(), 2, 6, {CURRENT: Balance(5, 0), SAVINGS: Balance(5, 1)}),
        ],
        Kind.DISAGREEMENT,
    ),
    "unread": ([DONE], Kind.UNREAD),
}
REGISTERS = {
    "lost": (
        [call(Write(0, 1), 1, 2), call(ReadRegister(0), 3, 4, None)],
        Kind.NOT_LINEARIZABLE,
    ),
    "stale": (
        [
            call(Write(0, 1), 1, 2),
            call(Write(0, 2), 3, 4),
            call(ReadRegister(0), 5, 6, 1),
            call(ReadRegister(0), 7, 8, 2),
        ],
        Kind.NOT_LINEARIZABLE,
    ),
    "two swaps of one value": (
        [
            call(Write(0, 1), 1, 2),
            call(Swap(0, 1, 2), 3, 6, True),
            call(Swap(0, 1, 3), 4, 5, True),
            call(ReadRegister(0), 7, 8, 3),
        ],
        Kind.NOT_LINEARIZABLE,
    ),
    "a swap that should have been": (
        [
            call(Write(0, 1), 1, 2),
            call(Swap(0, 1, 2), 3, 4, False),
            call(ReadRegister(0), 5, 6, 1),
        ],
        Kind.NOT_LINEARIZABLE,
    ),
    "refused": (
        [call(Write(0, 1), 1, 2, None, REFUSED), call(ReadRegister(0), 3, 4, 1)],
        Kind.NOT_LINEARIZABLE,
    ),
    "back and forth": (
        [
            call(Write(0, 1), 1, 20),
            call(ReadRegister(0), 2, 3, 1),
            call(ReadRegister(0), 4, 5, None),
            call(ReadRegister(0), 21, 22, 1),
        ],
        Kind.NOT_LINEARIZABLE,
    ),
    "unread": ([call(Write(0, 1), 1, 2)], Kind.UNREAD),
}
SESSIONS = {
    "shorter list": [
        call(READ, 1, 2, (1, 2), client="c"),
        call(READ, 3, 4, (1,), client="c"),
    ],
    "own append": [call(A, 1, 2, client="c"), call(READ, 3, 4, (), client="c")],
    "place": [
        call(READ, 1, 2, (1, 2), client="c"),
        call(Append(0, 3), 3, 4, 2, client="c"),
    ],
    "own item": [
        call(AddItem(1), 1, 2, client="c"),
        call(ReadItems(0), 3, 4, items(), client="c"),
    ],
    "item": [
        call(ReadItems(0), 1, 2, items(1), client="c"),
        call(ReadItems(0), 3, 4, items(), client="c"),
    ],
    "own transfer": [
        call(ReadBank(), 1, 2, bank(5, 5), client="c"),
        call(MOVE, 3, 4, client="c"),
        call(ReadBank(), 5, 6, bank(5, 5), client="c"),
    ],
}


@pytest.mark.parametrize(("history", "kind"), LISTS.values(), ids=LISTS)
def test_what_is_wrong_with_a_list_is_found(history, kind):
    assert kind in kinds(*history)


@pytest.mark.parametrize(("history", "kind"), SETS.values(), ids=SETS)
def test_what_is_wrong_with_a_set_is_found(history, kind):
    assert kind in kinds(*history)


@pytest.mark.parametrize(("history", "kind"), BANKS.values(), ids=BANKS)
def test_what_is_wrong_with_a_bank_is_found(history, kind):
    assert kind in kinds(*history)


@pytest.mark.parametrize(("history", "kind"), REGISTERS.values(), ids=REGISTERS)
def test_what_is_wrong_with_a_register_is_found(history, kind):
    assert kind in kinds(*history)


@pytest.mark.parametrize("history", SESSIONS.values(), ids=SESSIONS)
def test_a_client_that_sees_the_past_is_found(history):
    assert Kind.WENT_BACK in kinds(*history)
    # Two clients may see it, as far as this rule goes.
    apart = [replace(item, client=str(number)) for number, item in enumerate(history)]
    assert Kind.WENT_BACK not in kinds(*apart)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [call(A, 1, 2, None, UNKNOWN), call(READ, 3, 4, ())],
        [call(A, 1, 2, None, UNKNOWN), call(READ, 3, 4, ()), call(READ, 5, 6, (1,))],
        [call(A, 1, 4), call(B, 1, 4), call(READ, 2, 3, ()), call(READ, 5, 6, (2, 1))],
        [call(AddItem(1), 1, 2, None, UNKNOWN), call(ReadItems(0), 3, 4, items())],
        [DONE, JOURNAL, call(ReadBank(), 5, 6, bank(3, 7))],
        [
            call(Write(0, 1), 1, 2),
            call(Swap(0, 1, 2), 3, 4, None, UNKNOWN),
            call(ReadRegister(0), 5, 6, 1),
            call(ReadRegister(0), 7, 8, 2),
        ],
        [
            call(Write(0, 1), 1, 9),
            call(Swap(0, 1, 2), 2, 3, True),
            call(ReadRegister(0), 10, 11, 2),
        ],
    ],
)
def test_what_can_be_explained_is_accepted(history):
    assert list(anomalies(history, BANK)) == []


def test_a_report_tells_what_is_wrong_and_how_quick_it_was():
    history = [call(A, 1_000_000, 3_000_000), call(READ, 4_000_000, 9_000_000, ())]
    odd = replace(history[0], action=B, unexpected="it fell over", errors=("KeyError",))
    history.append(replace(odd, outcome=UNKNOWN))

    report = check("acme", history, BANK, began_ns=0, ended_ns=10_000_000)

    assert report.kinds == {Kind.LOST, Kind.UNEXPECTED_ERROR}
    text = str(report)
    for words in (
        "acme: 3 calls, 2 anomalies; 200 calls/s, longest gap 6.0 ms (7.0 ms of writes), ",
        "p50 2.0 ms, p95 5.0 ms",
        "refused 0, unknown 1; errors: KeyError 1",
        "an acknowledged write is missing: list 0 has no 1",
        "Append(key=0, value=1) -> None, ok, 1000000 to 3000000 ns",
        "it fell over",
    ):
        assert words in text


def test_figures_of_a_stretch_without_acknowledgements():
    figures = figures_of([call(A, 1, 2, None, REFUSED)], 0, 5)

    assert (figures.acknowledged, figures.refused, figures.longest_gap_s) == (0, 1, 5e-9)
    assert figures_of([], 7, 7).acknowledged_per_s == 0


def test_a_search_that_is_too_long_is_not_taken_for_a_good_one():
    history = [call(Write(0, n), 1, 50 + n) for n in range(12)]
    history += [call(ReadRegister(0), 100, 101, 99)]

    (found,) = check_registers(history, places_max=50)
    assert found.kind is Kind.UNDECIDED
    (found,) = check_registers(history)
    assert found.kind is Kind.NOT_LINEARIZABLE


beats = st.builds(
    Beat,
    client=st.integers(0, 3),
    family=st.sampled_from(Family),
    reads=st.booleans(),
    key=st.sampled_from((0, 1)),
    fate=st.sampled_from([Fate.DONE] * 4 + list(Fate)),
    choice=st.integers(0, 60),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(beats, max_size=120))
def test_what_a_correct_store_shows_is_accepted(steps):
    simulation = Simulation()
    simulation.run(steps)

    assert list(anomalies(simulation.finish(), OPENING)) == []


FAULTS = [
    *((fault, family) for fault in (Fault.LOSE, Fault.STALE, Fault.DENY) for family in Family),
    (Fault.DOUBLE, Family.LIST),
    (Fault.DOUBLE, Family.ITEMS),
    (Fault.DOUBLE, Family.BANK),
    (Fault.REORDER, Family.LIST),
    (Fault.REORDER, Family.REGISTER),
    (Fault.HALF, Family.BANK),
]


@pytest.mark.parametrize(("fault", "family"), FAULTS)
@settings(max_examples=20, deadline=None)
@given(before=st.lists(beats, max_size=40), after=st.lists(beats, max_size=40))
def test_one_fault_among_correct_calls_is_found(fault, family, before, after):
    if family is Family.REGISTER:
        # A write of unknown outcome may come at any later time, and so excuses what a read shows.
        before = [replace(beat, fate=Fate.DONE) for beat in before]
    simulation = Simulation()
    simulation.run(before)
    simulation.go_wrong(fault, family)
    simulation.run(after)

    assert list(anomalies(simulation.finish(), OPENING)) != []


@settings(max_examples=30, deadline=None)
@given(st.lists(beats, max_size=60))
def test_predecessors_say_all_about_time_and_nothing_else(steps):
    simulation = Simulation()
    simulation.run(steps)
    calls = simulation.finish()
    found = predecessors(calls)
    reach = {}
    for item in sorted(calls, key=lambda item: item.invoked_ns):
        reach[item] = set(found[item]).union(*(reach[earlier] for earlier in found[item]))

    for item in calls:
        assert reach[item] == {other for other in calls if other.before(item)}
