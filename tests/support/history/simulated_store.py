"""A store in memory that is correct, or wrong once on purpose, and clients that call it at once.

Pure: time is the number of the step. A call begins, takes effect and ends at steps of their own, so
that calls of several clients overlap in every way that the steps say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from support.history.call import (
    BUCKET_ITEMS,
    Account,
    Action,
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

OPENING = {Account(table, number): 50 for table in ("current", "savings") for number in (1, 2)}
KEYS = (0, 1)


class Fate(StrEnum):
    """What becomes of a call."""

    DONE = "done"
    REFUSED = "refused"
    #: The client never learns of it: it happened, never does, or happens when it has given up.
    ANSWER_LOST = "answer lost"
    REQUEST_LOST = "request lost"
    LATE = "late"


class Fault(StrEnum):
    """What a store does wrong, to an acknowledged call."""

    LOSE = "lose"
    DOUBLE = "double"
    REORDER = "reorder"
    STALE = "stale"
    #: It answers that it refused, and did it.
    DENY = "deny"
    #: Half of what belongs together happens.
    HALF = "half"


class Family(StrEnum):
    """What a change and the reads that show it belong to."""

    LIST = "list"
    ITEMS = "items"
    BANK = "bank"
    REGISTER = "register"


@dataclass(slots=True)
class Store:
    """The truth."""

    lists: dict[int, list[int]] = field(default_factory=lambda: {key: [] for key in KEYS})
    items: list[int] = field(default_factory=list)
    registers: dict[int, int] = field(default_factory=dict)
    bank: dict[Account, Balance] = field(
        default_factory=lambda: {key: Balance(amount, 0) for key, amount in OPENING.items()}
    )
    journal: list[Entry] = field(default_factory=list)

    def apply(self, action: Action) -> Any:
        """Do it, and give the answer."""
        match action:
            case Append(key=key, value=value):
                self.lists[key].append(value)
                return len(self.lists[key])
            case AddItem(item=item):
                self.items.append(item)
            case Transfer(source=source, target=target, amount=amount):
                self._move(source, -amount)
                self._move(target, amount)
                self.journal.append(self.entry(action))
            case Write(key=key, value=value):
                self.registers[key] = value
            case Swap(key=key, expected=expected, value=value):
                swaps = self.registers.get(key) == expected
                if swaps:
                    self.registers[key] = value
                return swaps
            case _:
                return self.read(action)
        return None

    def read(self, action: Action) -> Any:
        match action:
            case ReadList(key=key):
                return tuple(self.lists[key])
            case ReadItems(bucket=bucket):
                return Items(tuple(item for item in self.items if item // BUCKET_ITEMS == bucket))
            case ReadBank():
                return dict(self.bank)
            case ReadJournal():
                return tuple(self.journal)
            case ReadRegister(key=key):
                return self.registers.get(key)
            case _:
                raise AssertionError(action)

    def entry(self, done: Transfer) -> Entry:
        """What the journal says of a transfer that was the last one of its accounts."""
        return Entry(done, self.bank[done.source].version, self.bank[done.target].version)

    def allows(self, action: Action) -> bool:
        """Whether nothing goes below zero."""
        return not isinstance(action, Transfer) or (
            self.bank[action.source].amount >= action.amount
        )

    def _move(self, account: Account, amount: int) -> None:
        held = self.bank[account]
        self.bank[account] = Balance(held.amount + amount, held.version + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A step of one client: it begins a call as described, or gets on with the one it has."""

    client: int
    family: Family
    reads: bool
    key: int
    fate: Fate
    #: Chooses among what is left open: a swap or a write, which accounts.
    choice: int


class Simulation:
    """Clients, a store and the calls so far."""

    def __init__(self) -> None:
        self.store = Store()
        self.calls: list[Call] = []
        self.fault_seen = False
        self._now = 0
        self._value = 0
        self._open: dict[int, tuple[Call, Fate, bool]] = {}
        self._late: dict[int, Action] = {}

    def run(self, beats: Iterable[Beat]) -> None:
        for beat in beats:
            self._step(beat)

    def quiesce(self) -> None:
        """Let every call end, and what comes late come."""
        for client in list(self._open):
            while client in self._open:
                self._advance(client)
        for client in list(self._late):
            self._flush(client)

    def finish(self) -> list[Call]:
        """The history, with reads of everything at its end."""
        self.quiesce()
        for key in KEYS:
            self._do("reader", ReadList(key))
            self._do("reader", ReadRegister(key))
        for bucket in range(self._value // BUCKET_ITEMS + 1):
            self._do("reader", ReadItems(bucket))
        self._do("reader", ReadJournal())
        self._do("reader", ReadBank())
        return self.calls

    def go_wrong(self, fault: Fault, family: Family) -> None:
        """One call after the other, the first of which meets a fault that the others show."""
        self.quiesce()
        first = self._change(family, 0, 0, swaps=False)
        match fault:
            case Fault.LOSE:
                self._record("faulty", first, self._answer_only(first))
            case Fault.DOUBLE:
                answer = self.store.apply(first)
                self._record("faulty", first, answer)
                self.store.apply(first)
            case Fault.DENY:
                self.store.apply(first)
                self._record("faulty", first, None, Outcome.REFUSED)
            case Fault.REORDER:
                second = self._change(family, 0, 0, swaps=False)
                self.store.apply(second)
                self.store.apply(first)
                self._record("faulty", first, None)
                self._record("faulty", second, None)
            case Fault.STALE:
                past = copy.deepcopy(self.store)
                self._do("faulty", first)
                self._record("other", self._read_of(family), past.read(self._read_of(family)))
                return
            case Fault.HALF:
                assert isinstance(first, Transfer)
                self.store._move(first.source, -first.amount)
                self.store.journal.append(self.store.entry(first))
                self._record("faulty", first, None)
        self._do("other", self._read_of(family))

    def _read_of(self, family: Family) -> Action:
        match family:
            case Family.LIST:
                return ReadList(0)
            case Family.ITEMS:
                return ReadItems(self._value // BUCKET_ITEMS)
            case Family.BANK:
                return ReadBank()
            case Family.REGISTER:
                return ReadRegister(0)

    def _answer_only(self, action: Action) -> Any:
        """What the store would have said."""
        return copy.deepcopy(self.store).apply(action)

    def _step(self, beat: Beat) -> None:
        client = beat.client
        if client in self._open:
            self._advance(client)
            return
        self._flush(client)
        action = (
            self._read(beat)
            if beat.reads
            else self._change(beat.family, beat.key, beat.choice, swaps=beat.choice % 2 == 0)
        )
        self._now += 1
        call = Call(client=f"client {client}", action=action, invoked_ns=self._now, completed_ns=0)
        self._open[client] = (call, beat.fate, False)

    def _advance(self, client: int) -> None:
        call, fate, effected = self._open[client]
        self._now += 1
        if effected:
            del self._open[client]
            self.calls.append(replace(call, completed_ns=self._now))
            return
        outcome, answer = Outcome.UNKNOWN, None
        match fate:
            case Fate.DONE if not self.store.allows(call.action):
                outcome = Outcome.REFUSED
            case Fate.DONE:
                outcome, answer = Outcome.OK, self.store.apply(call.action)
            case Fate.REFUSED:
                outcome = Outcome.REFUSED
            case Fate.ANSWER_LOST if self.store.allows(call.action):
                self.store.apply(call.action)
            case Fate.LATE:
                self._late[client] = call.action
            case _:
                pass
        self._open[client] = (replace(call, outcome=outcome, answer=answer), fate, True)

    def _flush(self, client: int) -> None:
        action = self._late.pop(client, None)
        if action is not None and self.store.allows(action):
            self.store.apply(action)

    def _do(self, client: str, action: Action) -> None:
        self._record(client, action, self.store.apply(action))

    def _record(
        self, client: str, action: Action, answer: Any, outcome: Outcome = Outcome.OK
    ) -> None:
        self._now += 2
        self.calls.append(
            Call(
                client=client,
                action=action,
                invoked_ns=self._now - 1,
                completed_ns=self._now,
                outcome=outcome,
                answer=answer,
            )
        )

    def _read(self, beat: Beat) -> Action:
        match beat.family:
            case Family.LIST:
                return ReadList(beat.key)
            case Family.ITEMS:
                return ReadItems(max(0, self._value - beat.choice) // BUCKET_ITEMS)
            case Family.BANK:
                return ReadBank() if beat.choice % 4 else ReadJournal()
            case Family.REGISTER:
                return ReadRegister(beat.key)

    def _change(self, family: Family, key: int, choice: int, *, swaps: bool) -> Action:
        self._value += 1
        match family:
            case Family.LIST:
                return Append(key, self._value)
            case Family.ITEMS:
                return AddItem(self._value)
            case Family.BANK:
                tables = ("current", "savings") if choice % 2 else ("savings", "current")
                source, target = (
                    Account(table, choice // part % 2 + 1)
                    for table, part in zip(tables, (2, 4), strict=True)
                )
                return Transfer(self._value, source, target, choice % 7 + 1)
            case Family.REGISTER if swaps and key in self.store.registers:
                return Swap(key, self.store.registers[key] - choice // 2 % 2, self._value)
            case Family.REGISTER:
                return Write(key, self._value)
