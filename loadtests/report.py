"""What a benchmark tells: a table for people and, as the last line, one JSON object for programs.

`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met", "last"}, ...]}`, with the
same keys for every benchmark. `goal` is the number to reach, a pair of them for a range, or null,
and then `met` is null as well: nobody promised anything. Whether a goal is met does not fail a
benchmark. `last` is the value in `last_figures.json`, which is committed, or null;
`BENCH_COMMIT=1` writes what was measured there.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

#: Later it would be the benchmark's own.
_LOAD_BEFORE = os.getloadavg()[0]
LAST = Path(__file__).with_name("last_figures.json")
#: The variable that has the figures written there.
COMMIT = "BENCH_COMMIT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The bounds of a value; both belong to what is allowed."""

    at_least: float = -math.inf
    at_most: float = math.inf

    def met_by(self, value: float) -> bool:
        """Whether a value is within; what is no number is not."""
        return self.at_least <= value <= self.at_most

    def json(self) -> float | list[float]:
        """The bound, or both."""
        bounds = [bound for bound in (self.at_least, self.at_most) if math.isfinite(bound)]
        return bounds[0] if len(bounds) == 1 else bounds

    def __str__(self) -> str:
        if math.isinf(self.at_least):
            return f"at most {self.at_most:g}"
        if math.isinf(self.at_most):
            return f"at least {self.at_least:g}"
        return f"{self.at_least:g} to {self.at_most:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A measured value with its unit; without a goal it is there to be read."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met by the value as it was measured, before it is rounded."""
        return None if self.goal is None else self.goal.met_by(self.value)

    def json(self, last: float | None = None) -> dict[str, Any]:
        """The figure as it stands in the report; `last` is what it was before."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "goal": None if self.goal is None else self.goal.json(),
            "met": self.met,
            "last": last,
        }


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    at_most: float = math.inf,
    at_least: float = -math.inf,
) -> Figure:
    """A figure, with a goal when a bound is given."""
    bounded = math.isfinite(at_most) or math.isfinite(at_least)
    goal = Goal(at_least=at_least, at_most=at_most) if bounded else None
    return Figure(name=name, value=value, unit=unit, goal=goal)


def percentile(values: Sequence[float], hundredth: int) -> float:
    """The value below which so many hundredths lie: 50 is the median.

    Between two measured values it is interpolated, and it never lies outside all of them
    (`statistics.quantiles`, method "inclusive"). Without values it raises
    `statistics.StatisticsError`.
    """
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[hundredth - 1]


def print_report(figures: Iterable[Figure], *, last: Path = LAST) -> None:
    """Print the table, then the line of JSON.

    Raises `ValueError` for a value that is no number: JSON has none for it.
    """
    told, before = list(figures), _read(last)
    text = json.dumps(
        {"machine": machine(), "figures": [item.json(before.get(item.name)) for item in told]},
        allow_nan=False,
    )
    for line in table(told, before):
        print(line)
    print(text, flush=True)
    if os.environ.get(COMMIT) == "1":
        values = dict(before) | {item.name: _rounded(item.value) for item in told}
        last.write_text(json.dumps(values, indent=0, sort_keys=True) + "\n")


def table(figures: Sequence[Figure], before: Mapping[str, float] | None = None) -> list[str]:
    """A line for each figure, in columns; `before` has what they were, by name."""
    names = max((len(item.name) for item in figures), default=0)
    units = max((len(item.unit) for item in figures), default=0)
    verdicts = max((len(_verdict(item)) for item in figures), default=0)
    lines = (
        f"{item.name:{names}} {_rounded(item.value):>10} {item.unit:{units}} "
        f"{_verdict(item):{verdicts}} {_compared(item, (before or {}).get(item.name))}"
        for item in figures
    )
    return [line.rstrip() for line in lines]


def machine() -> dict[str, Any]:
    """Where it was measured; the load is the one before the benchmark began."""
    system = os.uname()
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_1m": round(_LOAD_BEFORE, 1),
        "python": platform.python_version(),
        "system": " ".join((system.sysname, system.release, system.machine)),
    }


def _read(last: Path) -> Mapping[str, float]:
    found: dict[str, float] = json.loads(last.read_text()) if last.exists() else {}
    return found


def _compared(item: Figure, before: float | None) -> str:
    if not before:
        return ""
    return f"{item.value / before:.2f} x the last one, {before:g}"


def _verdict(item: Figure) -> str:
    if item.goal is None:
        return ""
    return f"{item.goal} {'met' if item.met else 'MISSED'}"


def _rounded(value: float) -> float:
    """To four digits that count; what is whole or in the thousands, to the whole number."""
    if not math.isfinite(value):
        return value
    if abs(value) >= 1_000 or value == int(value):
        return round(value)
    return float(f"{value:.4g}")
