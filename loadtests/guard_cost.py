"""What the statement guard costs, in one process: no server, no Ray.

A statement that is known is looked up by its text, and each text is a new object, as it is when it
comes out of a request. Run by `make bench-guard`. The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import statistics
import time

from report import Figure, figure, print_report

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
    figures: list[Figure] = []
    for name, query in STATEMENTS.items():
        known = _known(query, wanted.turns)
        figures.append(figure(f"guard, known: {name}", known, "ns", at_most=GOAL_NS))
        figures.append(figure(f"guard, new: {name}", _new(query, wanted.turns), "ns"))
    print_report(figures)


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


if __name__ == "__main__":
    main()
