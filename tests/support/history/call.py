"""What one client asked of a tenant, when, and what it was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

#: Items of the unique set that are read together.
BUCKET_ITEMS: Final = 64


@dataclass(frozen=True, slots=True)
class Append:
    """Append a value, unique per key, to a list. Answer: its position, from 1."""

    key: int
    value: int


@dataclass(frozen=True, slots=True)
class ReadList:
    """Answer: the values of the list, as a tuple."""

    key: int


@dataclass(frozen=True, slots=True)
class AddItem:
    """Add a number, unique in the history, to the set. Answer: None."""

    item: int


@dataclass(frozen=True, slots=True)
class ReadItems:
    """Answer: the `Items` of a bucket."""

    bucket: int


@dataclass(frozen=True, slots=True)
class Items:
    """What is in a bucket, what is there twice twice; and whose other columns are wrong."""

    there: tuple[int, ...]
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """An account in one of the two tables of the bank."""

    table: str
    number: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move money from an account of one table to one of the other, and write it in the journal.

    `number` is unique in the history. Answer: None.
    """

    number: int
    source: Account
    target: Account
    amount: int


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account holds, and how many transfers have touched it."""

    amount: int
    version: int


@dataclass(frozen=True, slots=True)
class ReadBank:
    """Answer: a mapping of every `Account` to its `Balance`, of one moment."""


@dataclass(frozen=True, slots=True)
class ReadJournal:
    """Answer: what the journal holds, as a tuple of `Entry`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer in the journal, and the versions that it gave to its two accounts."""

    transfer: Transfer
    source_version: int
    target_version: int

    @property
    def versions(self) -> Mapping[Account, int]:
        return {
            self.transfer.source: self.source_version,
            self.transfer.target: self.target_version,
        }


@dataclass(frozen=True, slots=True)
class Write:
    """Set a register to a value that is unique per key. Answer: None."""

    key: int
    value: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Set a register to `value` if it holds `expected`. Answer: whether it did."""

    key: int
    expected: int
    value: int


@dataclass(frozen=True, slots=True)
class ReadRegister:
    """Answer: the value, or None before the first."""

    key: int


Read = ReadList | ReadItems | ReadBank | ReadJournal | ReadRegister
Change = Append | AddItem | Transfer | Write | Swap
Action = Read | Change


class Outcome(StrEnum):
    """What a client knows of its call in the end."""

    OK = "ok"
    #: The error's class says that nothing was done.
    REFUSED = "refused"
    #: It may have been done, or be done later.
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """One call of a client, whole: repetitions with the same idempotency key are part of it.

    Times are of CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share. `errors`
    are the classes of all errors that the client met on the way, `unexpected` is what one of them
    said that no client should ever see.
    """

    client: str
    action: Action
    invoked_ns: int
    completed_ns: int
    outcome: Outcome = Outcome.OK
    answer: Any = None
    errors: tuple[str, ...] = ()
    unexpected: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def may_have_happened(self) -> bool:
        return self.outcome is not Outcome.REFUSED

    def before(self, other: Call) -> bool:
        """Whether this call had been acknowledged when the other one began."""
        return self.ok and self.completed_ns < other.invoked_ns

    def __str__(self) -> str:
        said = f" -> {_shortened(self.answer)}" if self.ok else ""
        met = f" ({', '.join(self.errors)})" if self.errors else ""
        return (
            f"{self.client}: {self.action}{said}, {self.outcome}{met}, "
            f"{self.invoked_ns} to {self.completed_ns} ns"
        )


def _shortened(answer: Any) -> str:
    if isinstance(answer, Mapping):
        answer = {f"{key.table} {key.number}": value.amount for key, value in answer.items()}
    text = str(answer)
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-90:]}"
