"""Which call had ended when which other began, with as few pairs as say it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from support.history.call import Call


def predecessors(calls: Iterable[Call]) -> Mapping[Call, frozenset[Call]]:
    """For each call those that had been acknowledged before it began.

    Left out is what follows from the rest: of two calls one after the other the later one is
    enough. A call whose outcome is unknown may take effect at any later time, so it precedes none.
    """
    events = []
    for call in calls:
        events.append((call.invoked_ns, 0, call))
        if call.ok:
            events.append((call.completed_ns, 1, call))
    found: dict[Call, frozenset[Call]] = {}
    latest: frozenset[Call] = frozenset()
    for _, ends, call in sorted(events, key=lambda event: event[:2]):
        if ends:
            latest = latest - found[call] | {call}
        else:
            found[call] = latest
    return found
