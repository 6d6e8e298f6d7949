"""Registers with compare-and-set: is there an order of the calls, within real time, that explains
every answer?

The search is that of J. Wing and C. Gong ("Testing and Verification of Concurrent Objects", 1993)
with G. Lowe's memory of places where it has been ("Testing for linearizability", 2017). Registers
are independent of each other (linearizability is local), which keeps each search short.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from support.history.call import Action, Call, ReadRegister, Swap, Write
from support.history.report import Anomaly, Kind, anomaly

#: Places that a search may look at; a register of 60 calls by 8 clients takes a few hundred.
_PLACES_MAX: Final = 300_000


def check_registers(calls: Iterable[Call], *, places_max: int = _PLACES_MAX) -> Iterator[Anomaly]:
    """The anomalies of all registers."""
    by_key: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        match call.action:
            case ReadRegister(key=key) if call.ok:
                by_key[key].append(call)
            case Write(key=key) | Swap(key=key) if call.may_have_happened:
                by_key[key].append(call)
    for key, several in sorted(by_key.items()):
        several.sort(key=lambda call: call.invoked_ns)
        yield from _unread(key, several)
        yield from _check_register(key, several, places_max)


def _unread(key: int, calls: list[Call]) -> Iterator[Anomaly]:
    last = max((call.invoked_ns for call in calls if type(call.action) is ReadRegister), default=-1)
    for call in calls:
        if type(call.action) is not ReadRegister and call.ok and last <= call.completed_ns:
            yield anomaly(Kind.UNREAD, f"register {key}", call)


def _check_register(key: int, calls: list[Call], places_max: int) -> Iterator[Anomaly]:
    """Look for an order. `calls` are in the order in which they began."""
    required = sum(1 << index for index, call in enumerate(calls) if call.ok)
    places: list[tuple[int, int | None]] = [(0, None)]
    known = set(places)
    farthest = 0
    while places:
        done, value = places.pop()
        if done & required == required:
            return
        if len(known) > places_max:
            yield anomaly(Kind.UNDECIDED, f"register {key}, {len(calls)} calls", *calls[:1])
            return
        if (done & required).bit_count() > (farthest & required).bit_count():
            farthest = done
        # What is pushed last is looked at first: certain calls, the earliest of them.
        for index in sorted(_next(calls, done), key=lambda index: (calls[index].ok, -index)):
            call = calls[index]
            fits, then = _step(call.action, call.answer, value, certain=call.ok)
            place = (done | 1 << index, then)
            if fits and place not in known:
                known.add(place)
                places.append(place)
    stuck = [calls[index] for index in _next(calls, farthest)]
    what = f"register {key}, {len(calls)} calls; no order gets further than to one of these"
    yield anomaly(Kind.NOT_LINEARIZABLE, what, *stuck)


def _next(calls: list[Call], done: int) -> list[int]:
    """The calls that may be next: begun before any other that is still to come had ended."""
    first_end = math.inf
    found = []
    for index, call in enumerate(calls):
        if done >> index & 1:
            continue
        if call.invoked_ns > first_end:
            break
        found.append(index)
        if call.ok:
            first_end = min(first_end, call.completed_ns)
    return found


def _step(
    action: Action, answer: object, value: int | None, *, certain: bool
) -> tuple[bool, int | None]:
    """Whether a call can have come to a register with that value, and the value after it."""
    match action:
        case ReadRegister():
            return answer == value, value
        case Write(value=new):
            return True, new
        case Swap(expected=expected, value=new):
            swaps = value == expected
            # One of unknown outcome that changes nothing need not be placed at all.
            fits = swaps == answer if certain else swaps
            return fits, new if swaps else value
        case _:
            raise AssertionError(action)
