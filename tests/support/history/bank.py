"""A bank over two tables: money moves between them, and is never made, lost or seen on the way.

The journal is written in the transaction of a transfer and says which version it gave to its two
accounts. So the order of the transfers of every account is known exactly, and what an account held
at each version.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from support.history.call import Account, Call, Entry, Outcome, ReadBank, ReadJournal, Transfer
from support.history.report import Anomaly, Kind, anomaly


@dataclass(slots=True)
class _Bank:
    """The calls on the bank, and the last journal by account and version."""

    opening: Mapping[Account, int]
    transfers: dict[int, Call] = field(default_factory=dict)
    reads: list[Call] = field(default_factory=list)
    journals: list[Call] = field(default_factory=list)
    order: dict[Account, dict[int, Entry]] = field(default_factory=lambda: defaultdict(dict))

    def amounts(self, account: Account) -> list[int]:
        """What the account held at each version, by the journal."""
        found = [self.opening[account]]
        for _, entry in sorted(self.order[account].items(), key=lambda item: item[0]):
            moved = entry.transfer.amount
            found.append(found[-1] + (moved if entry.transfer.target == account else -moved))
        return found


def check_bank(calls: Iterable[Call], opening: Mapping[Account, int]) -> Iterator[Anomaly]:
    """The anomalies of the bank. `opening` is what every account held at version 0."""
    bank = _Bank(opening)
    for call in calls:
        match call.action:
            case Transfer(number=number):
                bank.transfers[number] = call
            case ReadBank() if call.ok:
                bank.reads.append(call)
            case ReadJournal() if call.ok:
                bank.journals.append(call)
    bank.reads.sort(key=lambda call: call.invoked_ns)
    for read in bank.reads:
        yield from _sums(read, opening)
    for journal in bank.journals:
        yield from _entries(journal, bank.transfers)
    yield from _unread(bank)
    contradictions = list(_set_in_order(bank))
    yield from contradictions
    if bank.journals and not contradictions:
        yield from _by_the_journal(bank)
        for account in opening:
            yield from _stale(account, bank)
    yield from _crossed(bank.reads)


def _sums(read: Call, opening: Mapping[Account, int]) -> Iterator[Anomaly]:
    balances = read.answer
    if balances.keys() != opening.keys():
        yield anomaly(Kind.DAMAGED, "the read has not the accounts that there are", read)
    total, expected = sum(item.amount for item in balances.values()), sum(opening.values())
    if total != expected:
        yield anomaly(Kind.UNBALANCED, f"the sum is {total}, and was {expected}", read)
    for account, balance in balances.items():
        if balance.amount < 0:
            yield anomaly(Kind.OVERDRAWN, f"{account} has {balance.amount}", read)


def _entries(journal: Call, transfers: Mapping[int, Call]) -> Iterator[Anomaly]:
    for number, times in Counter(entry.transfer.number for entry in journal.answer).items():
        if times > 1:
            what = f"transfer {number} is in the journal {times} times"
            yield anomaly(Kind.DOUBLED, what, *filter(None, (transfers.get(number),)))
    for entry in journal.answer:
        call = transfers.get(entry.transfer.number)
        if call is None or call.invoked_ns > journal.completed_ns:
            yield anomaly(Kind.PHANTOM, f"the journal has {entry.transfer}")
        elif call.outcome is Outcome.REFUSED:
            yield anomaly(Kind.REFUSED_VISIBLE, "the journal has the transfer", call)
        elif entry.transfer != call.action:
            yield anomaly(Kind.DAMAGED, f"the journal has {entry.transfer}", call)
    numbers = {entry.transfer.number for entry in journal.answer}
    for number, call in transfers.items():
        if number not in numbers and call.before(journal):
            yield anomaly(Kind.LOST, f"transfer {number} is not in the journal", call)


def _unread(bank: _Bank) -> Iterator[Anomaly]:
    last = max((journal.invoked_ns for journal in bank.journals), default=-1)
    for call in bank.transfers.values():
        if call.ok and call.completed_ns >= last:
            yield anomaly(Kind.UNREAD, f"transfer {call.action.number}", call)


def _set_in_order(bank: _Bank) -> Iterator[Anomaly]:
    last = max(bank.journals, key=lambda call: call.invoked_ns, default=None)
    for entry in last.answer if last is not None else ():
        for account, version in entry.versions.items():
            if version in bank.order[account]:
                what = f"two transfers made version {version} of {account}"
                yield anomaly(Kind.DISAGREEMENT, f"by the journal {what}")
            bank.order[account][version] = entry
    for account, entries in bank.order.items():
        if sorted(entries) != list(range(1, len(entries) + 1)):
            what = f"the versions of {account} in the journal have holes"
            yield anomaly(Kind.DISAGREEMENT, what)


def _by_the_journal(bank: _Bank) -> Iterator[Anomaly]:
    """Hold the reads against the last journal, as far as it goes."""
    known = {account: dict(enumerate(bank.amounts(account))) for account in bank.opening}
    end = max(journal.invoked_ns for journal in bank.journals)
    for read in bank.reads:
        for account, balance in read.answer.items():
            amount = known.get(account, {}).get(balance.version)
            if amount is None and read.completed_ns < end:
                what = f"{account} has version {balance.version}, not known to the journal"
                yield anomaly(Kind.PHANTOM, what, read)
            elif amount not in (None, balance.amount):
                what = f"{account} has {balance.amount}, and {amount} by the journal"
                yield anomaly(Kind.UNBALANCED, what, read)


def _stale(account: Account, bank: _Bank) -> Iterator[Anomaly]:
    """Reads of an account without what an earlier call had done or seen, or with what had not
    begun."""
    done = [
        (call, version)
        for version, entry in bank.order[account].items()
        if (call := bank.transfers.get(entry.transfer.number)) is not None
    ]
    reads = [read for read in bank.reads if account in read.answer]
    marks = [(call, version) for call, version in done if call.ok]
    marks += [(read, read.answer[account].version) for read in reads]
    marks.sort(key=lambda mark: mark[0].completed_ns)
    passed, floor, witness = 0, 0, None
    for read in reads:
        version = read.answer[account].version
        while marks[passed][0].before(read):
            if marks[passed][1] > floor:
                witness, floor = marks[passed]
            passed += 1
        if version < floor:
            what = f"{account} had version {floor} before, and now {version}"
            yield anomaly(Kind.STALE, what, *filter(None, (witness, read)))
    ends = sorted((read.completed_ns, read.answer[account].version) for read in reads)
    highest = list(accumulate((version for _, version in ends), max, initial=0))
    for call, version in done:
        if highest[bisect_left(ends, (call.invoked_ns,))] >= version:
            what = f"{account} was read with a transfer that had not begun"
            yield anomaly(Kind.PHANTOM, what, call)


def _crossed(reads: list[Call]) -> Iterator[Anomaly]:
    """Of two reads, one is of the earlier moment, for all accounts."""

    def age(read: Call) -> int:
        return sum(balance.version for balance in read.answer.values())

    for earlier, later in pairwise(sorted(reads, key=age)):
        for account, balance in earlier.answer.items():
            if account in later.answer and balance.version > later.answer[account].version:
                what = f"{account} is older in one read, other accounts in the other"
                yield anomaly(Kind.DISAGREEMENT, what, earlier, later)
