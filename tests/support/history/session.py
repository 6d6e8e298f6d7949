"""What one client sees never goes back in time: monotonic reads, and it reads its own writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from support.history.call import (
    BUCKET_ITEMS,
    Account,
    AddItem,
    Append,
    Call,
    ReadBank,
    ReadItems,
    ReadList,
    Transfer,
)
from support.history.report import Anomaly, Kind, anomaly


@dataclass(slots=True)
class _Seen:
    """What one client knows to have happened."""

    lists: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    lengths: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    items: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    versions: dict[Account, int] = field(default_factory=lambda: defaultdict(int))


def check_sessions(calls: Iterable[Call]) -> Iterator[Anomaly]:
    """The anomalies of every client, each of which makes one call after the other.

    Registers say nothing of versions; that they do not go back follows from their own check.
    """
    by_client: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.ok:
            by_client[call.client].append(call)
    for several in by_client.values():
        seen = _Seen()
        for call in sorted(several, key=lambda call: call.invoked_ns):
            for what in _look(seen, call):
                yield anomaly(Kind.WENT_BACK, what, call)


def _look(seen: _Seen, call: Call) -> Iterator[str]:
    """What the client misses in an answer; what it shows is seen from now on."""
    match call.action:
        case Append() | ReadList():
            yield from _look_at_list(seen, call)
        case AddItem(item=item):
            seen.items[item // BUCKET_ITEMS].add(item)
        case ReadItems(bucket=bucket):
            missing = seen.items[bucket] - set(call.answer.there)
            if missing:
                yield f"bucket {bucket} has no {min(missing)} any more"
            seen.items[bucket] |= set(call.answer.there)
        case Transfer(source=source, target=target):
            for account in (source, target):
                seen.versions[account] += 1
        case ReadBank():
            for account, balance in call.answer.items():
                if balance.version < seen.versions[account]:
                    yield f"{account} had version {seen.versions[account]}, now {balance.version}"
                seen.versions[account] = balance.version


def _look_at_list(seen: _Seen, call: Call) -> Iterator[str]:
    key, had = call.action.key, seen.lengths[call.action.key]
    match call.action:
        case Append(value=value):
            seen.lists[key].add(value)
            if call.answer is not None:
                if call.answer <= had:
                    yield f"list {key} had {had} values, and now {call.answer}"
                seen.lengths[key] = call.answer
        case ReadList():
            missing = seen.lists[key] - set(call.answer)
            if missing or len(call.answer) < had:
                lacks = f" without {min(missing)}" if missing else ""
                yield f"list {key} had {had} values, now {len(call.answer)}{lacks}"
            seen.lists[key] |= set(call.answer)
            seen.lengths[key] = len(call.answer)
