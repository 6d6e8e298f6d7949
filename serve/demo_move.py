"""The chapter of the demonstration in which an airline moves while it is used.

From the shared tables to a schema, to a database of its own, and back, while clients with its own
key read and write it over HTTP. Everything that they are told is held against what is known: the
answers against the source files, and what was acknowledged against what is there in the end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from rich.console import Console

from tenancy.data_isolation.core import IsolationLevel, TenancyError
from tenancy.data_isolation.serve.demo_data import Airline
from tenancy.data_isolation.serve.demo_load import progress_bar
from tenancy.data_isolation.serve.demo_questions import QUESTIONS, Answer, Findings

#: Where it goes, one after the other.
_LEGS: Final = (IsolationLevel.SCHEMA, IsolationLevel.DATABASE, IsolationLevel.ROW)
#: Clients that write and clients that read, and how long each thinks between two requests.
_WRITERS: Final = 2
_READERS: Final = 2
_THINK_S: Final = 0.01
#: One more asks the questions, which read every flight.
_QUESTION_PAUSE_S: Final = 0.25
#: How long the clients are at work before a move begins: what they notice then is no move's doing.
_QUIET_S: Final = 1.0
_POLL_S: Final = 0.05
#: How long a move may take before the demonstration gives it up.
_WAIT_S: Final = 300.0

# Planes without flights change no answer.
_BUY: Final = (
    "insert into planes (tailnum, year, type, manufacturer, model, engines, seats, engine) "
    "values ($1, 2013, 'bought on the move', 'NOBODY', 'PAPER', 2, 0, 'rubber')"
)
_SEAT: Final = "update planes set seats = seats + 1 where tailnum = $1"
_FLIGHT: Final = "select dest, dep_delay from flights where id = $1"
_BOUGHT: Final = (
    "select tailnum, seats from planes where manufacturer = 'NOBODY' order by tailnum collate \"C\""
)
_SELL: Final = "delete from planes where manufacturer = 'NOBODY'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """What one move took, and what its clients noticed. Times in s and ms."""

    words: str
    rows: int
    bytes: int
    seconds: float
    pause_ms: float
    #: The longest gap that there was before the move began.
    usual_ms: float
    requests: int
    errors: int
    differences: int

    def line(self) -> str:
        """As it is printed."""
        verdict = "all equal" if not self.differences else f"{self.differences} differ"
        return (
            f"{self.words:18} {self.rows:,} rows {self.bytes / 1e6:4.1f} MB {self.seconds:5.1f} s  "
            f"pause {self.pause_ms:3.0f} ms (else {self.usual_ms:3.0f})  "
            f"{self.requests:>6,} requests, {self.errors} errors, {verdict}"
        )


class Traffic:
    """Clients of one airline, and what they were told. For one event loop."""

    def __init__(self, client: httpx.AsyncClient, airline: Airline, findings: Findings) -> None:
        self._client = client
        self._flights = airline.rows["flights"]
        self._path = f"/v1/tenants/{airline.tenant_id}/query"
        self._answers = [(question, question.compute(airline)) for question in QUESTIONS]
        self._findings = findings
        #: When requests were acknowledged, on `time.perf_counter`.
        self._acknowledged: list[float] = []
        #: What is there when everything acknowledged is: planes with their seats.
        self._planes: dict[str, int] = {}
        self.requests = 0
        self.errors = 0

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """The clients are at work within the block; after it each has had its last answer."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(_WRITERS):
                group.create_task(self._write(number, stop))
            for number in range(_READERS):
                group.create_task(self._read(number, stop))
            group.create_task(self._question(stop))
            try:
                yield
            finally:
                stop.set()

    def longest_gap_ms(self, began: float, ended: float) -> float:
        """The longest time between two acknowledgements, whoever had them."""
        inside = [at for at in self._acknowledged if began <= at <= ended]
        points = [began, *inside, ended]
        return max(later - at for at, later in itertools.pairwise(points)) * 1_000

    @property
    def writes(self) -> int:
        """Acknowledged ones: planes, and seats that were added to them."""
        return len(self._planes) + sum(self._planes.values())

    async def check(self, leg: str) -> None:
        """Hold what is there against what was acknowledged, and the answers against the source."""
        for question, answer in self._answers:
            rows = await self._ask(question.sql)
            self._findings.expect(f"{question.words}, after {leg}", answer, rows)
        there = [[name, seats] for name, seats in sorted(self._planes.items())]
        self._findings.expect(f"what was written until {leg}", there, await self._ask(_BOUGHT))

    async def forget(self) -> None:
        """Take away what the clients have written."""
        await self._ask(_SELL)
        self._planes.clear()
        self._findings.expect("what is left of it", [], await self._ask(_BOUGHT))

    async def _ask(self, query: str, *params: Any) -> Answer | None:
        """The rows of an answer; an error is told, and then it is None."""
        self.requests += 1
        try:
            answer = await self._client.post(self._path, json={"query": query, "params": params})
            told = f"{answer.status_code} {answer.text[:300]}"
        except httpx.HTTPError as error:
            answer, told = None, f"{type(error).__name__}: {error}"
        if answer is None or answer.status_code != httpx.codes.OK:
            self.errors += 1
            self._findings.expect(f"the answer to {query[:40]}", "200", told)
            return None
        self._acknowledged.append(time.perf_counter())
        rows: Answer = answer.json()["rows"]
        return rows

    async def _write(self, writer: int, stop: asyncio.Event) -> None:
        """Buy planes with numbers that follow each other, each time adding a seat to the first."""
        before = len(self._planes)
        first = f"W{writer}-{before:06}"
        for number in itertools.count(before):
            if stop.is_set():
                return
            name = f"W{writer}-{number:06}"
            if await self._ask(_BUY, name) is not None:
                self._planes[name] = 0
            await asyncio.sleep(_THINK_S)
            if first in self._planes and await self._ask(_SEAT, first) is not None:
                self._planes[first] += 1
            await asyncio.sleep(_THINK_S)

    async def _read(self, reader: int, stop: asyncio.Event) -> None:
        """Look flights up, and compare each with the source."""
        for turn in itertools.count(reader, _READERS):
            if stop.is_set():
                return
            # A prime number of steps, to come to all parts of the year.
            flight = self._flights[turn * 7_919 % len(self._flights)]
            rows = await self._ask(_FLIGHT, flight["id"])
            wanted = [[flight["dest"], flight["dep_delay"]]]
            self._findings.expect(f"flight {flight['id']} during a move", wanted, rows)
            await asyncio.sleep(_THINK_S)

    async def _question(self, stop: asyncio.Event) -> None:
        """Ask what is known already."""
        for question, answer in itertools.cycle(self._answers):
            if stop.is_set():
                return
            rows = await self._ask(question.sql)
            self._findings.expect(f"{question.words}, during a move", answer, rows)
            await asyncio.sleep(_QUESTION_PAUSE_S)


class MoveInUse:
    """Moves an airline from place to place while it is used.

    `admin` and `own` speak HTTP with the administrator's key and with the airline's.
    """

    def __init__(
        self,
        admin: httpx.AsyncClient,
        own: httpx.AsyncClient,
        airline: Airline,
        *,
        console: Console,
        findings: Findings,
    ) -> None:
        self._admin = admin
        self._console = console
        self._findings = findings
        self._airline = airline
        self._traffic = Traffic(own, airline, findings)
        self._path = f"/v1/tenants/{airline.tenant_id}/moves"

    async def run(self, here: IsolationLevel) -> list[Leg]:
        """All moves, each told in a line when it is over."""
        self._console.print(
            f"moving      {self._airline.name}, with {_WRITERS} clients that write it and "
            f"{_READERS + 1} that read it over HTTP"
        )
        legs, began = [], time.perf_counter()
        for there in _LEGS:
            leg = await self._leg(here, there)
            self._console.print(f"            {leg.line()}", soft_wrap=True, highlight=False)
            legs.append(leg)
            here = there
        writes = self._traffic.writes
        await self._traffic.forget()
        self._console.print(
            f"moved       there and back in {time.perf_counter() - began:.0f} s; {writes:,} "
            "acknowledged writes were held against what is there"
        )
        return legs

    async def _leg(self, here: IsolationLevel, there: IsolationLevel) -> Leg:
        words, traffic = f"{here} to {there}", self._traffic
        differences = len(self._findings.differences)
        requests, errors = traffic.requests, traffic.errors
        plan = await self._post(self._path, {"isolation_level": there, "dry_run": True})
        async with traffic.flowing():
            quiet = time.perf_counter()
            await asyncio.sleep(_QUIET_S)
            began = time.perf_counter()
            move = await self._post(self._path, {"isolation_level": there})
            await self._followed(move["move_id"], "open")
            opened = time.perf_counter()
            await self._post(f"/v1/moves/{move['move_id']}/confirm")
            move = await self._followed(move["move_id"], "settled")
            ended = time.perf_counter()
        self._findings.expect(f"the end of the move from {words}", "confirmed", move["state"])
        await traffic.check(f"the move from {words}")
        return Leg(
            words=words,
            rows=move["progress"]["rows_copied"],
            bytes=plan["bytes"] or 0,
            seconds=opened - began,
            pause_ms=traffic.longest_gap_ms(began, ended),
            usual_ms=traffic.longest_gap_ms(quiet, began),
            requests=traffic.requests - requests,
            errors=traffic.errors - errors,
            differences=len(self._findings.differences) - differences,
        )

    async def _followed(self, move_id: str, phase: str) -> Any:
        """The move once it is in that phase, with a bar until then."""
        deadline = time.perf_counter() + _WAIT_S
        with progress_bar(self._console, transient=True) as progress:
            task = progress.add_task("move", total=None)
            while True:
                move = await self._get(f"/v1/moves/{move_id}")
                how = move["progress"]
                progress.update(
                    task,
                    description=move["phase"].replace("_", " "),
                    completed=how["rows_copied"],
                    total=how["rows_total"] or None,
                )
                if move["phase"] == phase:
                    return move
                if move["settled"] or time.perf_counter() > deadline:
                    raise TenancyError(f"move {move_id} is {move['state']}: {move['error']}")
                await asyncio.sleep(_POLL_S)

    async def _get(self, path: str) -> Any:
        return _document(await self._admin.get(path))

    async def _post(self, path: str, body: object = None) -> Any:
        return _document(await self._admin.post(path, json=body))


def _document(answer: httpx.Response) -> Any:
    if answer.status_code >= 400:
        raise TenancyError(f"{answer.url.path} answered {answer.status_code}: {answer.text[:500]}")
    return answer.json()
