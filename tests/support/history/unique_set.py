"""A set that only grows: a later read has all that was acknowledged, once, and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from support.history.call import BUCKET_ITEMS, AddItem, Call, Outcome, ReadItems
from support.history.report import Anomaly, Kind, anomaly


def check_set(calls: Iterable[Call]) -> Iterator[Anomaly]:
    """The anomalies of the set, whose buckets are read on their own."""
    adds: dict[int, dict[int, Call]] = defaultdict(dict)
    reads: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        match call.action:
            case AddItem(item=item):
                adds[item // BUCKET_ITEMS][item] = call
            case ReadItems(bucket=bucket) if call.ok:
                reads[bucket].append(call)
    for bucket in sorted(adds.keys() | reads.keys()):
        yield from _check_bucket(bucket, adds[bucket], reads[bucket])


def _check_bucket(bucket: int, adds: dict[int, Call], reads: list[Call]) -> Iterator[Anomaly]:
    for read in reads:
        yield from _contents(read, adds)
    yield from _absences(adds, reads)
    # Two reads of a set that grows are one part of the other, the part not after the whole.
    ordered = sorted(reads, key=lambda read: (len(set(read.answer.there)), read.invoked_ns))
    for smaller, larger in pairwise(ordered):
        if not set(smaller.answer.there) <= set(larger.answer.there):
            what = f"bucket {bucket}: each of two reads has what the other one lacks"
            yield anomaly(Kind.DISAGREEMENT, what, smaller, larger)
    yield from _backward(bucket, reads)


def _contents(read: Call, adds: dict[int, Call]) -> Iterator[Anomaly]:
    for item, times in Counter(read.answer.there).items():
        add = adds.get(item)
        if times > 1:
            what = f"item {item} is there {times} times"
            yield anomaly(Kind.DOUBLED, what, *filter(None, (add, read)))
        if item in read.answer.damaged:
            what = f"item {item} has other columns than were written"
            yield anomaly(Kind.DAMAGED, what, *filter(None, (add, read)))
        if add is None or read.completed_ns < add.invoked_ns:
            what = f"item {item} is there before anybody added it"
            yield anomaly(Kind.PHANTOM, what, *filter(None, (add, read)))
        elif add.outcome is Outcome.REFUSED:
            yield anomaly(Kind.REFUSED_VISIBLE, f"item {item} is there", add, read)


def _absences(adds: dict[int, Call], reads: list[Call]) -> Iterator[Anomaly]:
    there = {read: set(read.answer.there) for read in reads}
    for item, add in adds.items():
        if not add.ok:
            continue
        later = [read for read in reads if add.before(read)]
        without = [read for read in later if item not in there[read]]
        if not later:
            yield anomaly(Kind.UNREAD, f"item {item}", add)
        elif without:
            last = max(later, key=lambda read: read.invoked_ns)
            kind = Kind.LOST if last in without else Kind.STALE
            yield anomaly(kind, f"item {item} is not there", add, without[0])


def _backward(bucket: int, reads: list[Call]) -> Iterator[Anomaly]:
    """Items that one read shows and a later one does not, whoever added them."""
    by_end = sorted(reads, key=lambda read: read.completed_ns)
    seen: dict[int, Call] = {}
    ended = 0
    for read in sorted(reads, key=lambda read: read.invoked_ns):
        while by_end[ended].before(read):
            seen |= dict.fromkeys(by_end[ended].answer.there, by_end[ended])
            ended += 1
        missing = seen.keys() - set(read.answer.there)
        if missing:
            item = min(missing)
            what = f"bucket {bucket}: item {item} was read before, and is not there"
            yield anomaly(Kind.STALE, what, seen[item], read)
