"""More requests than can be answered: the HTTP endpoint with ten times its capacity.

Run by `make bench-http-overload` against a runtime of its own. Client and runtime share the
machine; the client is one process that opens a connection for each request under way.

* Connections: closed loops of point reads over more and more connections.
* At once: so many connections, opened in one go, with a request each.
* Light and heavy: what a closed loop manages, then an open loop that offers ten times as many
  requests per second, each with a deadline (`Prefer: wait=2`). Of point reads no process can begin
  ten times as many beside the runtime on two cores, and it is told how many there were. The heavy
  statement keeps PostgreSQL busy for so long (`--cost`) that ten times can be offered, refusals
  included. What is answered in time is the goodput.

Every refusal has to be 429 or 503 and say when to come again. In the end the runtime has to be
there, all processes of before included, and to answer at once. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from filled_tenants import make_filled_tenants, tenant_name
from http_lines import HttpLines, NoLineError
from loops import GOODPUT_MIN, SETTLE_S, Memory, Tally, closed_loop, open_loop
from own_runtime import OwnRuntime, own_runtime
from report import Figure, figure, percentile, print_report
from runtime_processes import pids

LIGHT = "select bal from users where id = $1"
HEAVY = (
    "select count(*) from users a join users b on b.id <= a.id and b.bal <> $1::bigint "
    "cross join generate_series(1, {cost}) where a.email <> b.email"
)
WRITE = "update users set email = 'changed' || id where id = $1"
TENANTS, ROWS = 200, 400
#: Of so many operations one is a write.
WRITES_OF = 10
CONNECTIONS = (64, 512, 2_048)
CLOSED = {"light": 512, "heavy": 64}
DEADLINE_S, LONG_DEADLINE_S = 2, 30
#: How long after its deadline a request is waited for before the client gives up; more than that
#: an actor that is stuck is not given.
GRACE_S: Final = 5.0
_KINDS = ("HAProxy", "HTTP replica", "tenant actors")


class Work:
    """Requests of one kind, for tenants that are drawn."""

    def __init__(self, runtime: OwnRuntime, lines: HttpLines, read: str) -> None:
        self._lines = lines
        self._read = read
        self._draw = random.Random(7)
        self._head = (
            f"Host: {urlsplit(runtime.url).netloc}\r\nAuthorization: Bearer {runtime.key}\r\n"
            "Content-Type: application/json\r\n"
        )

    def _request(self, deadline_s: float) -> bytes:
        draw = self._draw
        write = draw.randrange(WRITES_OF) == 0
        body = {"query": WRITE if write else self._read, "params": [draw.randrange(1, ROWS + 1)]}
        text = orjson.dumps(body)
        path = f"/v1/tenants/{tenant_name(draw.randrange(TENANTS))}/query"
        start = (
            f"POST {path} HTTP/1.1\r\n{self._head}Prefer: wait={deadline_s:.0f}\r\n"
            f"Content-Length: {len(text)}\r\n\r\n"
        )
        return start.encode() + text

    async def run(self, tally: Tally, deadline_s: float) -> None:
        """One request; what became of it."""
        request, began = self._request(deadline_s), time.perf_counter()
        try:
            async with asyncio.timeout(deadline_s + GRACE_S):
                answer = await self._lines.ask(request)
        except NoLineError:
            tally.note("not sent: no connection left", began, deadline_s)
        except TimeoutError:
            tally.note("no answer", began, deadline_s)
        except OSError as error:
            tally.note(type(error).__name__, began, deadline_s)
        else:
            refused = answer.status in (429, 503)
            tally.untold += refused and not answer.retry_after
            tally.note(_outcome(answer.status, refused), began, deadline_s)


def _outcome(status: int, refused: bool) -> str:
    if refused:
        return "refused"
    return {200: "answered", 504: "deadline"}.get(status, f"status {status}")


class Course:
    """One runtime, and what is measured on it."""

    def __init__(self, runtime: OwnRuntime, wanted: argparse.Namespace) -> None:
        self._runtime = runtime
        self._wanted = wanted
        place = urlsplit(runtime.url)
        self._place = place.hostname or "", place.port or 0
        self._pids = pids(runtime.home, *_KINDS) | {"this process": os.getpid()}

    def _lines(self) -> HttpLines:
        return HttpLines(*self._place, self._wanted.connections_max)

    async def connections(self) -> list[Figure]:
        """Point reads over more and more connections."""
        figures, rates = [], []
        for count in CONNECTIONS:
            lines = self._lines()
            work = Work(self._runtime, lines, LIGHT)
            tally, took = await closed_loop(work.run, count, LONG_DEADLINE_S, self._wanted.seconds)
            await lines.close()
            rates.append(len(took) / self._wanted.seconds)
            _note(f"{count} connections: {rates[-1]:.0f}/s, {dict(tally.outcomes)}")
            what = f"HTTP, {count} connections"
            figures += [
                figure(f"{what}: answered", rates[-1], "/s"),
                figure(f"{what}: p50", percentile(took or [0.0], 50) * 1_000, "ms"),
                figure(f"{what}: p99", percentile(took or [0.0], 99) * 1_000, "ms"),
                figure(f"{what}: refused", tally.share("refused"), "%"),
                figure(f"{what}: anything else", tally.others(), "requests", at_most=0),
            ]
        what = f"HTTP, {CONNECTIONS[-1]} connections over {CONNECTIONS[0]}"
        figures.append(figure(what, rates[-1] / rates[0], "x", at_least=GOODPUT_MIN))
        return figures

    async def at_once(self) -> list[Figure]:
        """So many connections in one go, with a request each."""
        count, lines, tally = self._wanted.at_once, self._lines(), Tally()
        work = Work(self._runtime, lines, LIGHT)
        memory, watching = self._watched()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work.run(tally, LONG_DEADLINE_S))
        seconds = time.perf_counter() - began
        watching.cancel()
        await lines.close()
        _note(f"{count} at once: {dict(tally.outcomes)} in {seconds:.1f} s")
        what = f"HTTP, {count} connections at once"
        return [
            *tally.figures(what, late_s=0),
            figure(f"{what}: answered per second", tally.outcomes["answered"] / seconds, "/s"),
            *memory.figures(what),
        ]

    async def overload(self, name: str, read: str) -> list[Figure]:
        """What a closed loop manages, and what is left of that at ten times as many requests."""
        seconds, at_once = self._wanted.seconds, CLOSED[name]
        first = await self._closed(read, at_once)
        lines, tally = self._lines(), Tally()
        work = Work(self._runtime, lines, read)
        memory, watching = self._watched()
        since = time.perf_counter() + SETTLE_S
        rate = first * self._wanted.factor
        offered = await open_loop(work.run, tally, rate, DEADLINE_S, seconds + SETTLE_S)
        watching.cancel()
        await lines.close()
        in_time = tally.within(since, seconds)
        good = len(in_time) / seconds
        _note(f"{name}: {first:.0f}/s; {offered:.0f}/s offered over {lines.most} connections, "
              f"{good:.0f}/s good, {dict(tally.outcomes)}")  # fmt: skip
        # Before and after: others may be at work on the machine, and not always as much.
        most = (first + await self._closed(read, at_once)) / 2
        what = f"HTTP overload, {name}"
        return [
            figure(f"{what}: closed loop of {at_once}, before and after", most, "/s"),
            figure(f"{what}: offered over that", offered / most, "x"),
            figure(f"{what}: connections at the same time", lines.most, "connections"),
            figure(f"{what}: goodput over it", good / most, "x", at_least=GOODPUT_MIN),
            *tally.figures(what, late_s=GRACE_S / 2),
            figure(f"{what}: p50 of what was answered",
                   percentile(in_time or [0.0], 50) * 1_000, "ms"),
            *memory.figures(what),
        ]  # fmt: skip

    async def left(self) -> list[Figure]:
        """What is there when all is over."""
        lines, tally = self._lines(), Tally()
        work = Work(self._runtime, lines, LIGHT)
        await work.run(tally, DEADLINE_S)
        await lines.close()
        now = pids(self._runtime.home, *_KINDS) | {"this process": os.getpid()}
        lost = set(self._pids.values()) - set(now.values())
        state = self._runtime.tenancy("status")["state"]
        return [
            figure("afterwards: a read is answered", tally.outcomes["answered"], "", at_least=1),
            figure("afterwards: it takes", (tally.took_s or [0.0])[0] * 1_000, "ms"),
            figure("processes of the runtime that ended", len(lost), "processes", at_most=0),
            figure("the runtime runs", float(state == "running"), "", at_least=1),
        ]

    async def _closed(self, read: str, at_once: int) -> float:
        lines = self._lines()
        work = Work(self._runtime, lines, read)
        _, took = await closed_loop(work.run, at_once, LONG_DEADLINE_S, self._wanted.seconds)
        await lines.close()
        return len(took) / self._wanted.seconds

    def _watched(self) -> tuple[Memory, asyncio.Task[None]]:
        memory = Memory(self._pids)
        return memory, asyncio.create_task(memory.watch())


async def measured(runtime: OwnRuntime, wanted: argparse.Namespace) -> list[Figure]:
    """All figures."""
    await make_filled_tenants(runtime, TENANTS, ROWS)
    course = Course(runtime, wanted)
    heavy = HEAVY.format(cost=wanted.cost)
    steps: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
        "connections": course.connections,
        "at-once": course.at_once,
        "light": lambda: course.overload("light", LIGHT),
        "heavy": lambda: course.overload("heavy", heavy),
    }
    figures: list[Figure] = []
    for name in wanted.parts:
        figures += await steps[name]()
    return figures + await course.left()


def _note(text: str) -> None:
    print(f"{text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and report."""
    parts = ("connections", "at-once", "light", "heavy")
    parser = argparse.ArgumentParser(description=__doc__)
    add: Any = parser.add_argument
    add("--at-once", type=int, default=5_000, help="connections in one go (default 5000)")
    add("--connections-max", type=int, default=8_000, help="at any time (default 8000)")
    add("--factor", type=float, default=10.0, help="times the capacity that is offered")
    add("--cost", type=int, default=4, help="how long a heavy statement takes (default 4: 40 ms)")
    add("--seconds", type=float, default=15.0, help="window of each measurement (default 15)")
    add("--parts", nargs="+", choices=parts, default=parts)
    wanted = parser.parse_args()
    with own_runtime() as runtime:
        figures = asyncio.run(measured(runtime, wanted))
    print_report(figures)


if __name__ == "__main__":
    main()
