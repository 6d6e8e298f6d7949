"""What the statement guard costs, in one process: no server, no Ray.

A statement that is known is looked up by its text, and each text is a new object, as it is when it
comes out of a request. Run by `make bench-guard`. The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import psutil

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

GOAL_NS = 5_000
#: Checks that are timed together: reading the clock would weigh too much on a single one.
TURN = 200

SCHEMA = VisibleSchema(
    relations={
        "users": VisibleRelation(
            name="users", columns=("id", "name", "email"), primary_key=("id",), runs_code=False
        ),
        "orders": VisibleRelation(
            name="orders", columns=("id", "user_id", "total"), primary_key=("id",), runs_code=False
        ),
    }
)
STATEMENTS = {
    "a point read": "select name, email from users where id = $1",
    "an upsert": (
        "insert into users (id, name, email) values ($1, $2, $3) "
        "on conflict (id) do update set name = excluded.name returning id"
    ),
    "a report": (
        "select u.name, count(*), sum(o.total) from users u join orders o on o.user_id = u.id "
        "where o.total > $1 group by u.name having count(*) > 1 order by 3 desc limit 20"
    ),
    "4 kB of text": "select id from users where name in ("
    + ", ".join(f"'name-{number:06}'" for number in range(265))
    + ")",
}


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=400, help="times that each is measured")
    wanted = arguments.parse_args()
    figures: list[dict[str, Any]] = []
    for name, query in STATEMENTS.items():
        known = _known(query, wanted.turns)
        figures.append(_figure(f"guard, known: {name}", known, GOAL_NS))
        figures.append(_figure(f"guard, new: {name}", _new(query, wanted.turns)))
    for figure in figures:
        goal = f"goal {figure['goal']} {'met' if figure['met'] else 'MISSED'}"
        shown = f"{figure['value']:>10} {figure['unit']}"
        print(f"{figure['name']:32} {shown}   {'' if figure['goal'] is None else goal}".rstrip())
    print(json.dumps({"machine": _machine(), "figures": figures}))


def _known(query: str, turns: int) -> float:
    """Nanoseconds of a check of a text that is in the cache: the median of the turns."""
    guard = Guard(settings=Settings(), schema=SCHEMA)
    check, raw = guard.check, query.encode()
    check(query)
    took = []
    for _ in range(turns):
        texts = [raw.decode() for _ in range(TURN)]
        started = time.perf_counter_ns()
        for text in texts:
            check(text)
        took.append((time.perf_counter_ns() - started) / TURN)
    return statistics.median(took)


def _new(query: str, turns: int) -> float:
    """Nanoseconds of a check of a text that has to be parsed: the median."""
    guard = Guard(settings=Settings(), schema=SCHEMA)
    took = []
    for _ in range(turns):
        guard.reset(SCHEMA)
        started = time.perf_counter_ns()
        guard.check(query)
        took.append(time.perf_counter_ns() - started)
    return statistics.median(took)


def _figure(name: str, value: float, goal: float | None = None) -> dict[str, Any]:
    met = None if goal is None else value <= goal
    return {"name": name, "value": round(value), "unit": "ns", "goal": goal, "met": met}


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


if __name__ == "__main__":
    main()
