"""What the watchdogs of this machine are doing: a file of the daemon's that others read.

The daemon has no HTTP, and the processes that answer HTTP have no watchdog.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tenancy.data_isolation.engine.watch_rules import Offence

_ACTING = "acting"
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
    try:
        return time.time() - path.stat().st_mtime >= _STALE_S
    except OSError:
        return True


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
