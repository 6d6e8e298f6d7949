"""All checkers over one history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from support.history.bank import check_bank
from support.history.call import Account, Call
from support.history.figures import figures_of
from support.history.list_append import check_lists
from support.history.register import check_registers
from support.history.report import Anomaly, Kind, Report, anomaly
from support.history.session import check_sessions
from support.history.unique_set import check_set


def anomalies(calls: Sequence[Call], opening: Mapping[Account, int]) -> Iterator[Anomaly]:
    """What is wrong with a history. `opening` is what the bank's accounts held at first."""
    for call in calls:
        if call.unexpected is not None:
            yield anomaly(Kind.UNEXPECTED_ERROR, call.unexpected, call)
    yield from check_lists(calls)
    yield from check_set(calls)
    yield from check_bank(calls, opening)
    yield from check_registers(calls)
    yield from check_sessions(calls)


def check(
    tenant: str,
    calls: Sequence[Call],
    opening: Mapping[Account, int],
    *,
    began_ns: int,
    ended_ns: int,
) -> Report:
    """The report on a tenant's history, with its figures between two times."""
    return Report(
        tenant=tenant,
        calls=len(calls),
        anomalies=tuple(anomalies(calls, opening)),
        figures=figures_of(calls, began_ns, ended_ns),
    )
