"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from support.history.call import Call
from support.history.figures import Figures

#: Anomalies that the text of a report tells; one fault often shows in many reads.
_TOLD_MAX: Final = 20


class Kind(StrEnum):
    """What is wrong."""

    LOST = "an acknowledged write is missing"
    DOUBLED = "a write happened more than once"
    REFUSED_VISIBLE = "a write that was refused happened"
    PHANTOM = "a value that nobody had written"
    DAMAGED = "a row is not what was written"
    STALE = "a read shows the past"
    WENT_BACK = "a client saw less than it had seen or written before"
    DISAGREEMENT = "answers contradict each other on the order of writes"
    CYCLE = "no order of the calls explains what they saw"
    NOT_LINEARIZABLE = "no order of the calls on a register explains what they saw"
    UNBALANCED = "the sum over all accounts is wrong"
    OVERDRAWN = "an account is below zero"
    UNEXPECTED_ERROR = "an error that no client should see"
    UNREAD = "nothing was read after a write, so it was not checked"
    UNDECIDED = "the search for an order was given up, so this was not checked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Anomaly:
    """One thing that is wrong, and the calls that show it."""

    kind: Kind
    what: str
    calls: tuple[Call, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.kind}: {self.what}", *map(str, self.calls)])


def anomaly(kind: Kind, what: str, *calls: Call) -> Anomaly:
    return Anomaly(kind=kind, what=what, calls=calls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The anomalies in one tenant's history, and its figures."""

    tenant: str
    calls: int
    anomalies: tuple[Anomaly, ...]
    figures: Figures

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(item.kind for item in self.anomalies)

    def __str__(self) -> str:
        head = f"{self.tenant}: {self.calls} calls, {len(self.anomalies)} anomalies; {self.figures}"
        told = [str(item) for item in self.anomalies[:_TOLD_MAX]]
        if len(self.anomalies) > _TOLD_MAX:
            told.append(f"and {len(self.anomalies) - _TOLD_MAX} more")
        return "\n  ".join([head, *told])
