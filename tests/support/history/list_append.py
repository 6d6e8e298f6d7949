"""Lists that clients append to: every read shows the order of all appends before it.

So the order of versions is known exactly, and with it which call must have come before which (after
K. Kingsbury and P. Alvaro, "Elle", VLDB 2020): an append before the next one (ww), before a read
that shows it (wr), a read before the first append that it does not show (rw), and a call before one
that began after its end. A cycle among these has no explanation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from support.history.call import Append, Call, Outcome, ReadList
from support.history.real_time import predecessors
from support.history.report import Anomaly, Kind, anomaly


def check_lists(calls: Iterable[Call]) -> Iterator[Anomaly]:
    """The anomalies of all lists."""
    appends: dict[int, list[Call]] = defaultdict(list)
    reads: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        match call.action:
            case Append(key=key):
                appends[key].append(call)
            case ReadList(key=key) if call.ok:
                reads[key].append(call)
    for key in sorted(appends.keys() | reads.keys()):
        yield from _check_list(key, appends[key], reads[key])


def _check_list(key: int, appends: list[Call], reads: list[Call]) -> Iterator[Anomaly]:
    longest = max(reads, key=lambda read: len(read.answer), default=None)
    order: Sequence[int] = longest.answer if longest is not None else ()
    found = [
        *_contradictions(key, longest, reads),
        *_contents(key, appends, reads),
        *_absences(key, order, appends, reads),
        *_positions(key, order, appends),
    ]
    yield from found
    if not found:
        yield from _cycle(key, order, appends, reads)


def _contradictions(key: int, longest: Call | None, reads: list[Call]) -> Iterator[Anomaly]:
    for read in reads:
        if longest is not None and longest.answer[: len(read.answer)] != read.answer:
            what = f"list {key}: one read does not begin like the other"
            yield anomaly(Kind.DISAGREEMENT, what, read, longest)


def _contents(key: int, appends: list[Call], reads: list[Call]) -> Iterator[Anomaly]:
    writers = {call.action.value: call for call in appends}
    # What a read shows and the longest does not is a contradiction as well.
    for read in reads:
        for value, times in Counter(read.answer).items():
            writer = writers.get(value)
            if times > 1:
                what = f"list {key} has {value} {times} times"
                yield anomaly(Kind.DOUBLED, what, *filter(None, (writer, read)))
            if writer is None or read.completed_ns < writer.invoked_ns:
                what = f"list {key} has {value} before anybody appended it"
                yield anomaly(Kind.PHANTOM, what, *filter(None, (writer, read)))
            elif writer.outcome is Outcome.REFUSED:
                yield anomaly(Kind.REFUSED_VISIBLE, f"list {key} has {value}", writer, read)


def _absences(
    key: int, order: Sequence[int], appends: list[Call], reads: list[Call]
) -> Iterator[Anomaly]:
    there = set(order)
    for append in appends:
        if not append.ok:
            continue
        value = append.action.value
        later = [read for read in reads if append.before(read)]
        if not later:
            yield anomaly(Kind.UNREAD, f"list {key}, {value}", append)
        elif value not in there:
            yield anomaly(Kind.LOST, f"list {key} has no {value}", append, later[-1])


def _positions(key: int, order: Sequence[int], appends: list[Call]) -> Iterator[Anomaly]:
    places = {value: place for place, value in enumerate(order, 1)}
    for append in appends:
        place = places.get(append.action.value)
        if append.ok and append.answer is not None and place not in (None, append.answer):
            what = f"list {key}: {append.action.value} was told place {append.answer}, has {place}"
            yield anomaly(Kind.DISAGREEMENT, what, append)


def _cycle(
    key: int, order: Sequence[int], appends: list[Call], reads: list[Call]
) -> Iterator[Anomaly]:
    writers = {call.action.value: call for call in appends}
    versions = [writers[value] for value in order]
    graph: TopologicalSorter[Call] = TopologicalSorter()
    for call, earlier in predecessors([*versions, *reads]).items():
        graph.add(call, *earlier)
    for earlier, later in pairwise(versions):
        graph.add(later, earlier)
    for read in reads:
        seen = len(read.answer)
        if seen:
            graph.add(read, versions[seen - 1])
        if seen < len(versions):
            graph.add(versions[seen], read)
    try:
        graph.prepare()
    except CycleError as error:
        circle = error.args[1][:-1]
        yield anomaly(Kind.CYCLE, f"list {key}: each of these calls precedes the next", *circle)
