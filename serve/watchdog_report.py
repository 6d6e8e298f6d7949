"""What the watchdogs of this machine are doing: a file of the daemon's that others read.

The daemon has no HTTP, and the processes that answer HTTP have no watchdog.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tenancy.data_isolation.engine.watch_rules import Offence

_ACTING = "acting"
#: Another machine's watchdog acts for the server.
_STANDBY = "standby"
#: What was written so long ago is no more than what was: it is written once a second.
_STALE_S = 10.0


def report_path(home: Path) -> Path:
    """Where the file is, under `TENANCY_HOME`."""
    return home / "run" / "watchdog.json"


def write_reports(path: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file. It need not outlast a power failure, so nothing waits for the disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(list(reports), file)
    fresh.replace(path)


def read_reports(path: Path) -> list[dict[str, Any]]:
    """What was written last; nothing when there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def is_stale(path: Path) -> bool:
    """Whether nobody has written the reports for a while."""
    return _silent_s(path) >= _STALE_S


def _silent_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchState:
    """What the watchdog of one server does; `problem` and `remedy` when nobody watches."""

    #: Empty when nothing says which servers there are.
    server: str
    state: str
    problem: str | None = None
    remedy: str | None = None

    @property
    def may_pass(self) -> bool:
        """Whether a moment later it may be well again: it begins, or a look took long."""
        return self.state.startswith(_PASSING)


_PASSING: Final = ("starting", "late")
_LIMITS: Final = "limits that are held from outside a tenant's session are not held"
_ANEW: Final = "look into log/daemon.log of the home; then `tenancy down` and `tenancy up`"
#: How a state begins that means that nobody watches → what that is, and what to do.
_BLIND: Final = "blind: "
_PROBLEMS: Final[Mapping[str, tuple[str, str]]] = {
    "starting": ("has not begun to watch", "look again in a minute; else " + _ANEW),
    "late": (
        "looks too seldom",
        "give the machine of the daemon, or the server, more processors; " + _ANEW,
    ),
    "not watching": ("does not watch", "see that the server answers its admin; " + _ANEW),
    "stopped": ("has ended", _ANEW),
}


def watch_states(path: Path) -> list[WatchState]:
    """What the watchdogs of a runtime that runs do; at least one."""
    reports = read_reports(path)
    if not reports:
        told = f"no watchdog has written {path}: {_LIMITS}"
        return [WatchState(server="", state="unknown", problem=told, remedy=_ANEW)]
    silent_s = _silent_s(path)
    return [_watch_state(report, silent_s) for report in reports]


def _watch_state(report: Mapping[str, Any], silent_s: float) -> WatchState:
    server, state = str(report.get("server", "")), str(report.get("state", "unknown"))
    if silent_s >= _STALE_S:
        told = f"has told nothing for {silent_s:.0f} s (then it was: {state}): {_LIMITS}"
        return WatchState(server=server, state="silent", problem=told, remedy=_ANEW)
    if state in (_ACTING, _STANDBY):
        return WatchState(server=server, state=state)
    if state.startswith(_BLIND):
        told = f"is blind, because the admin role may not see or end tenants' sessions: {_LIMITS}"
        remedy = f"let a superuser run: {state.removeprefix(_BLIND)}; it is noticed within seconds"
        return WatchState(server=server, state=state, problem=told, remedy=remedy)
    for begin, (problem, remedy) in _PROBLEMS.items():
        if state.startswith(begin):
            told = f"{problem} ({state}): {_LIMITS}"
            return WatchState(server=server, state=state, problem=told, remedy=remedy)
    return WatchState(server=server, state=state, problem=f"{state}: {_LIMITS}", remedy=_ANEW)


class WatchdogCollector(Collector):
    """The reports as figures: by offence and never by tenant."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """The figures of all servers together."""
        reports = read_reports(self._path)
        actions: Counter[str] = Counter()
        for report in reports:
            actions.update(report.get("actions", {}))
        done = CounterMetricFamily(
            "tenancy_watchdog_actions",
            "Sessions ended, statements cancelled and changes of logins undone.",
            labels=("offence",),
        )
        for offence in Offence:
            done.add_metric((offence.value,), actions[offence.value])
        yield done
        yield CounterMetricFamily(
            "tenancy_watchdog_lowered",
            "Sessions whose server processes were made less important.",
            value=sum(report.get("lowered", 0) for report in reports),
        )
        yield GaugeMetricFamily(
            "tenancy_watchdog_acting",
            "Servers that a watchdog of this machine watches.",
            value=0
            if is_stale(self._path)
            else sum(report.get("state") == _ACTING for report in reports),
        )
        yield GaugeMetricFamily(
            "tenancy_watchdog_look_seconds",
            "Time of the last look at a server's sessions, the longest of all servers.",
            value=max((report.get("look_ms", 0.0) for report in reports), default=0.0) / 1_000,
        )
