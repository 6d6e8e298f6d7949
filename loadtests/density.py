"""What a machine makes of 100,000 tenants of level ROW, and whether anything grows with them.

Run by `make bench-density` against a runtime of its own. Tenants are made from files, as an
operator would (`tenancy tenant create --from`). At some numbers of tenants it is measured what a
listing, the figures, the readiness, a new tenant and the first operation of a tenant take. At the
end 10,000 tenants are active at the same time: what that takes of memory, how long they take to be
let go, and what an operation notices of it; then the doctor. A start, and the first operations
after it, are measured with hardly any tenants and with all. The last line is one JSON object;
`--plot FILE` draws the lines.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from line_charts import plot
from own_runtime import OwnRuntime, own_runtime
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.client import TenancyClient

SCHEMA = "create table users (id integer primary key, email text not null)"
READ = "select count(*) from users"
#: The parts of all tenants at which it is measured.
STOPS = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
#: Requests, and first operations, of which the median is told.
SAMPLES = 30
#: First operations that are under way at the same time when many tenants become active.
AT_ONCE = 200
#: Tenants that may be active still when all are said to be let go, and how often that is asked.
LEFT_MAX, WATCH_S = 3, 0.1
#: Starts of which the median is told.
STARTS = 3
#: How many times as long as with the fewest tenants anything may take, and what is too short to say
#: so; bytes per active tenant.
GROWTH_MAX = 1.5
NOISE_MS = 3.0
TENANT_KIB_MAX = 10.0
_SEED = 5


@dataclass(kw_only=True, slots=True)
class Course:
    """What was measured, by name: pairs of a number of tenants and a value."""

    lines: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    rates: list[tuple[int, float]] = field(default_factory=list)
    #: Of stops and starts, in seconds.
    starts: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))

    def growth(self, name: str) -> float:
        """How many times the first value the last one is, differences below the noise left out."""
        first, last = self.lines[name][0][1], self.lines[name][-1][1]
        return last / first if abs(last - first) > NOISE_MS else 1.0


def main() -> None:
    """Measure, draw, and report."""
    wanted = _arguments()
    idle = {"TENANCY_TENANT_IDLE_S": f"{wanted.idle:g}"}
    course = Course()
    with own_runtime(idle) as runtime, tempfile.TemporaryDirectory() as folder:
        _prepare(runtime)
        _started(runtime, course, STARTS)
        figures = asyncio.run(_measured(runtime, Path(folder), wanted, course))
        try:
            figures += _doctored(runtime, wanted.tenants)
            _started(runtime, course, wanted.tenants)
        except SystemExit as error:
            # What was measured before is worth having.
            _note(str(error))
    if wanted.plot is not None:
        plot(wanted.plot, _chart(course))
    print_report(figures + _start_figures(course))


async def _measured(
    runtime: OwnRuntime, folder: Path, wanted: argparse.Namespace, course: Course
) -> list[Figure]:
    headers = {"Authorization": f"Bearer {runtime.key}"}
    figures: list[Figure] = []
    url = runtime.tenancy("status")["url"]
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http,
        connect(home=runtime.home) as client,
    ):
        unused = _Unused(random.Random(_SEED))
        made, took_s = 0, 0.0
        for stop in STOPS:
            until = max(made + 2 * SAMPLES, round(wanted.tenants * stop))
            seconds = await asyncio.to_thread(_make, runtime, folder, range(made, until))
            course.rates.append((until, (until - made) / seconds))
            unused.add(range(made, until))
            took_s, made = took_s + seconds, until
            await _look(http, client, unused, made, course)
            told = ", ".join(f"{name} {line[-1][1]:.1f}" for name, line in course.lines.items())
            _note(f"{made} tenants, {(course.rates[-1][1]):.0f}/s; {told}")
        figures += _flatness(course, made)
        figures.append(figure(f"tenants made per second, to {made}", made / took_s, "/s"))
        figures += await _activated(client, unused, wanted.active, wanted.idle)
    return figures


def _make(runtime: OwnRuntime, folder: Path, numbers: range) -> float:
    """Make tenants as an operator does; the seconds that it took."""
    file = folder / "tenants.csv"
    file.write_text("tenant_id,isolation_level\n" + "".join(f"{_name(n)},row\n" for n in numbers))
    began = time.perf_counter()
    done = runtime.tenancy("tenant", "create", "--from", str(file))
    if (done["created"], done["failed"]) != (len(numbers), 0):
        raise SystemExit(f"not all were made: {done}")
    return time.perf_counter() - began


async def _look(
    http: httpx.AsyncClient, client: TenancyClient, unused: _Unused, made: int, course: Course
) -> None:
    """What the things take that must not grow with the tenants: medians in ms."""
    middle = _name(made // 2)
    extra = itertools.count()

    async def create() -> None:
        body = {"tenant_id": f"new-{made}-{next(extra)}", "isolation_level": "row"}
        (await http.post("/v1/tenants", json=body)).raise_for_status()

    async def first() -> None:
        await client.execute(_name(unused.one()), READ)

    async def again() -> None:
        await client.execute(_name(0), READ)

    def got(path: str) -> Callable[[], Awaitable[Any]]:
        async def get() -> None:
            (await http.get(path)).raise_for_status()

        return get

    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "first page of tenants": got("/v1/tenants?limit=100"),
        "page from the middle": got(f"/v1/tenants?limit=100&after={middle}"),
        "/metrics": got("/metrics"),
        "/readyz": got("/readyz"),
        "a new tenant": create,
        "first operation of a tenant": first,
        "operation of an active tenant": again,
    }
    for name, ask in asked.items():
        took = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await ask()
            took.append((time.perf_counter() - began) * 1_000)
        course.lines[name].append((made, percentile(took, 50)))


class _Unused:
    """Tenants that have had no operation yet."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._numbers: list[int] = []

    def add(self, numbers: range) -> None:
        """More of them; tenant 0 is for operations of an active one."""
        self._numbers += [number for number in numbers if number]
        self._draw.shuffle(self._numbers)

    def one(self) -> int:
        """One of them, which is used from now on."""
        return self._numbers.pop()


async def _activated(
    client: TenancyClient, unused: _Unused, count: int, idle_s: float
) -> list[Figure]:
    """Make tenants active, use all of them once more, and see them being let go again."""
    before, grown = await _actors(client), await _resident(client)
    chosen = [unused.one() for _ in range(count)]
    seconds = await _used(client, chosen)
    after = await _actors(client)
    active = after["active_tenants"] - before["active_tenants"]
    kib = (await _resident(client) - grown) / 1_024 / max(active, 1)
    _note(f"{active} tenants became active in {seconds:.0f} s, {kib:.1f} KiB each")
    since = time.perf_counter()
    again_s = await _used(client, chosen)
    used_at = time.perf_counter()
    took, gone_at = await _let_go(client, used_at, idle_s)
    # The first ones are due so long after their second operation, the last ones later.
    quiet = [ms for at, ms in took if used_at + 1 < at < since + idle_s]
    meanwhile = [ms for at, ms in took if since + idle_s <= at < gone_at]
    return [
        figure("tenants active at the same time", after["active_tenants"], "tenants",
               at_least=count),
        figure("activations per second", count / seconds, "/s"),
        figure("operations per second, one of each active tenant", count / again_s, "/s"),
        figure("memory of an active tenant, of the actors' resident set", kib, "KiB",
               at_most=TENANT_KIB_MAX),
        figure("all let go, after the last one's idle time", gone_at - used_at - idle_s, "s"),
        figure("let go, from the first to the last", gone_at - since - idle_s, "s"),
        figure("operation while all are idle, p50", percentile(quiet, 50), "ms"),
        figure("operation while all are idle, p99", percentile(quiet, 99), "ms"),
        figure("operation while they are let go, p50", percentile(meanwhile, 50), "ms"),
        figure("operation while they are let go, p99", percentile(meanwhile, 99), "ms"),
        figure("operation while they are let go, longest", max(meanwhile), "ms"),
        figure("operations while they are let go", len(meanwhile), "operations"),
        figure("sessions of clients left at the actors", (await _actors(client))["sessions"],
               "sessions"),
    ]  # fmt: skip


async def _used(client: TenancyClient, numbers: Sequence[int]) -> float:
    """One operation of each tenant, some at the same time; the seconds that all took."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def use(number: int) -> None:
        async with turns:
            await client.execute(_name(number), READ)

    began = time.perf_counter()
    await asyncio.gather(*map(use, numbers))
    return time.perf_counter() - began


async def _let_go(
    client: TenancyClient, used_at: float, idle_s: float
) -> tuple[list[tuple[float, float]], float]:
    """Send operations of one tenant until all others are passive.

    When each ended and its time in ms, and when the last tenant was seen to be let go.
    """
    took: list[tuple[float, float]] = []

    async def watch() -> float:
        """The time at which hardly any was left."""
        await asyncio.sleep(idle_s * 0.5)
        while time.perf_counter() - used_at < 3 * idle_s:
            if (await _actors(client))["active_tenants"] <= LEFT_MAX:
                break
            await asyncio.sleep(WATCH_S)
        return time.perf_counter()

    watching = asyncio.create_task(watch())
    while not watching.done():
        await asyncio.sleep(0.005)
        began = time.perf_counter()
        await client.execute(_name(0), READ)
        now = time.perf_counter()
        took.append((now, (now - began) * 1_000))
    return took, await watching


async def _actors(client: TenancyClient) -> dict[str, int]:
    """The counts of all shared actors together."""
    names = client.directory.shared_names()
    found = [await client.gateway.call(name, "statistics") for name in names]
    return {key: sum(item[key] for item in found) for key in found[0]}


async def _resident(client: TenancyClient) -> int:
    """Bytes of memory of their processes."""
    names = client.directory.shared_names()
    found = [await client.gateway.call(name, "statistics") for name in names]
    return sum(psutil.Process(item["pid"]).memory_info().rss for item in found)


def _flatness(course: Course, made: int) -> list[Figure]:
    """What the lines came to at the end, and how much they have grown."""
    found = []
    for name, line in course.lines.items():
        found.append(figure(f"{name}, {made} tenants, p50", line[-1][1], "ms"))
        found.append(
            figure(
                f"{name}, {made} tenants over {line[0][0]}",
                course.growth(name),
                "x",
                at_most=GROWTH_MAX,
            )
        )
    return found


def _started(runtime: OwnRuntime, course: Course, tenants: int) -> None:
    """How long a stop and a start take, and the first operations after it: medians."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(STARTS):
        began = time.perf_counter()
        runtime.tenancy("down")
        took["`tenancy down`"].append(time.perf_counter() - began)
        began = time.perf_counter()
        state = runtime.tenancy("up")
        took["`tenancy up`"].append(time.perf_counter() - began)
        headers = {"Authorization": f"Bearer {runtime.key}"}
        with httpx.Client(base_url=state["url"], headers=headers, timeout=60) as http:
            # The same tenant three times, which has never been used before.
            for name in ("first operation after it", "second one", "third one"):
                began = time.perf_counter()
                path = f"/v1/tenants/{_first_name(turn)}/query"
                http.post(path, json={"query": READ}).raise_for_status()
                took[name].append(time.perf_counter() - began)
    for name, values in took.items():
        course.starts[name].append((tenants, percentile(values, 50)))
    told = ", ".join(f"{name} {line[-1][1]:.3f} s" for name, line in course.starts.items())
    _note(f"with {tenants} tenants: {told}")


def _start_figures(course: Course) -> list[Figure]:
    """Each with few tenants and with all, and how many times as long."""
    found = []
    for name, line in course.starts.items():
        found += [figure(f"{name}, {tenants} tenants", value, "s") for tenants, value in line]
        if name == "`tenancy up`" and len(line) > 1:
            found.append(
                figure(f"{name}, {line[-1][0]} tenants over {line[0][0]}",
                       line[-1][1] / line[0][1], "x", at_most=GROWTH_MAX)
            )  # fmt: skip
    return found


def _doctored(runtime: OwnRuntime, tenants: int) -> list[Figure]:
    """What has to look at everything."""
    began = time.perf_counter()
    runtime.tenancy("doctor")
    took = time.perf_counter() - began
    _note(f"doctor: {took:.1f} s")
    return [figure(f"`tenancy doctor`, {tenants} tenants", took, "s")]


def _prepare(runtime: OwnRuntime) -> None:
    """The tables, and tenants for the first operations after a start."""
    headers = {"Authorization": f"Bearer {runtime.key}"}
    with httpx.Client(base_url=runtime.url, headers=headers, timeout=120) as http:
        body = {"name": "0001_users", "sql": SCHEMA}
        http.post("/v1/schema/migrations", json=body).raise_for_status()
        for turn in range(STARTS):
            wish = {"tenant_id": _first_name(turn), "isolation_level": "row"}
            http.post("/v1/tenants", json=wish).raise_for_status()


def _chart(course: Course) -> dict[str, Any]:
    def panel(title: str, unit: str, *names: str) -> dict[str, Any]:
        return {
            "title": title,
            "unit": unit,
            "lines": {name: course.lines[name] for name in names},
        }

    return {
        "title": "What grows with the number of tenants (level row, two cores)",
        "x": "tenants",
        "panels": [
            panel("Listing", "ms, median", "first page of tenants", "page from the middle"),
            panel("Figures and readiness", "ms, median", "/metrics", "/readyz"),
            panel("Operations", "ms, median", "first operation of a tenant",
                  "operation of an active tenant"),
            panel("A new tenant", "ms, median", "a new tenant"),
            {"title": "Tenants from a file", "unit": "tenants/s",
             "lines": {"since the last measurement": course.rates}},
            {"title": "Stop and start", "unit": "s, median",
             "lines": {name: line for name, line in course.starts.items() if "tenancy" in name}},
        ],
    }  # fmt: skip


def _first_name(turn: int) -> str:
    """A tenant for operations after a start."""
    return f"first-{turn}"


def _name(number: int) -> str:
    return f"t{number:06}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--tenants", type=int, default=100_000, help="how many are made (default 100000)")
    add("--active", type=int, default=10_000, help="how many of them become active (default 10000)")
    add(
        "--idle",
        type=float,
        default=240.0,
        metavar="SECONDS",
        help="when an idle tenant is let go; longer than activating all takes (default 240)",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the lines (SVG)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
