"""What well-behaved tenants notice of one that attacks: their p50 and p99 with it and without it.

Run by `make bench-neighbours` against a runtime of its own, with its watchdog. The neighbours ask
over HTTP. The attackers a, b and c come straight to PostgreSQL with a login's password, past the
guard, and come back as soon as they are put out; d asks over HTTP like everybody else. Rounds with
and without an attacker take turns, and each figure is the median over the rounds of one kind. The
last line is one JSON object: `{"machine": {...}, "figures": [...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from tenancy.data_isolation.core.crypto import parse_master_key, role_password
from tenancy.data_isolation.core.identifiers import RoleName

NEIGHBOURS = ("row", "row", "row", "schema")
PACE_S = 0.1
RATIO_GOAL = 1.5
SHARED_LOGIN = "tenancy_rows"
#: How long who was put out waits before it comes back.
BACK_S = 0.01
DOOR_TIMEOUT_S = 60.0
TABLE = "create table items (id integer primary key, name text not null, price integer not null)"
HEAVY = "select count(*), sum(n * 7 % 13) from generate_series(1, 30000000) n"
LARGE = "select n, repeat('x', 700) as filling from generate_series(1, 10000) n"


@dataclass(kw_only=True)
class Stage:
    """A runtime with its tenants."""

    url: str
    admin_dsn: str
    key: str
    master_key: str
    home: Path
    #: The login of the attacker that has one of its own.
    own_login: str = ""
    #: What attackers got done, and what they were answered.
    tally: Counter[str] = field(default_factory=Counter)
    #: Whether an attack is on. Cancelling is not enough: a connection that is being made may
    #: swallow it.
    attacking: bool = False

    def dsn(self, login: str) -> str:
        """The way straight to PostgreSQL with a login's password."""
        password = role_password(parse_master_key(self.master_key), "main", RoleName(login))
        parts = httpx.URL(self.admin_dsn)
        return f"postgresql://{login}:{password}@{parts.host}:{parts.port}/tenancy"

    def client(self) -> httpx.AsyncClient:
        """A client of its own, as every customer has one."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60)


Attack = Callable[[Stage], Coroutine[Any, Any, None]]


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    arguments.add_argument("--seconds", type=float, default=12, help="length of a round")
    arguments.add_argument("--attack", choices=sorted(ATTACKS), action="append")
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        environment = os.environ | {"TENANCY_HOME": home, "TENANCY_HTTP_PORT": str(_free_port())}
        state = _tenancy("up", environment)
        try:
            stage = Stage(
                url=state["url"],
                admin_dsn=state["postgres_dsn"],
                key=Path(state["admin_key_file"]).read_text().strip(),
                master_key=_master_key(Path(home)),
                home=Path(home),
            )
            names = wanted.attack or list(ATTACKS)
            figures = asyncio.run(_measure(stage, names, wanted.rounds, wanted.seconds))
        finally:
            _tenancy("down", environment)
    for figure in figures:
        goal = "" if figure["goal"] is None else f"goal {figure['goal']} "
        met = {True: "met", False: "MISSED", None: ""}[figure["met"]]
        print(f"{figure['name']:58} {figure['value']:>9} {figure['unit']:3} {goal}{met}")
    print(json.dumps({"machine": _machine(), "figures": figures}))


async def _measure(
    stage: Stage, names: list[str], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    await _set_up(stage)
    await _round(stage, 3, None)  # Nothing is cold from here on.
    figures = []
    for name in names:
        calm, stormy = [], []
        stage.tally.clear()
        for _ in range(rounds):
            calm.append(await _round(stage, seconds, None))
            await _doors_open(stage)
            stormy.append(await _round(stage, seconds, ATTACKS[name]))
            await _calm_down(stage)
        print(f"# {name}: {dict(stage.tally)}", file=sys.stderr)
        figures += _figures(name, calm, stormy)
    return [*figures, *_watchdog_figures(stage)]


async def _set_up(stage: Stage) -> None:
    async with stage.client() as client:
        body = {"name": "0001_items", "sql": TABLE}
        (await client.post("/v1/schema/migrations", json=body)).raise_for_status()
        levels = {f"neighbour-{index}": level for index, level in enumerate(NEIGHBOURS)}
        for name, level in ({"attacker": "schema", "heavy": "row"} | levels).items():
            made = {"tenant_id": name, "isolation_level": level}
            (await client.post("/v1/tenants", json=made)).raise_for_status()
            query = (
                "insert into items select n, 'item ' || n, n % 97 from generate_series(1, 2000) n"
            )
            answer = await client.post(f"/v1/tenants/{name}/query", json={"query": query})
            answer.raise_for_status()
    connection = await asyncpg.connect(stage.admin_dsn.replace("/postgres?", "/tenancy?"))
    try:
        stage.own_login = await connection.fetchval(
            "select role from catalog.placement p join catalog.tenant t using (tenant_no) "
            "where t.tenant_id = 'attacker'"
        )
    finally:
        await connection.close()


async def _round(stage: Stage, seconds: float, attack: Attack | None) -> list[float]:
    """The neighbours' times in milliseconds, with the attacker at work from the beginning."""
    stage.attacking = attack is not None
    attacker = None if attack is None else asyncio.create_task(attack(stage))
    try:
        times = await asyncio.gather(
            *(_neighbour(stage, f"neighbour-{n}", seconds) for n in range(len(NEIGHBOURS)))
        )
    finally:
        stage.attacking = False
        if attacker is not None:
            attacker.cancel()
            await asyncio.gather(attacker, return_exceptions=True)
    return [item for own in times for item in own]


async def _neighbour(stage: Stage, name: str, seconds: float) -> list[float]:
    """Asks at its own pace, whether the last answer was quick or not."""
    took: list[float] = []

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {"query": "select name, price from items where id = $1", "params": [number % 2000]}
        began = time.perf_counter()
        answer = await client.post(f"/v1/tenants/{name}/query", json=body)
        took.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()

    async with stage.client() as client, asyncio.TaskGroup() as asking:
        began = time.perf_counter()
        for number in itertools.count(1):
            asking.create_task(ask(client, number))
            wait = began + number * PACE_S - time.perf_counter()
            await asyncio.sleep(max(wait, 0))
            if number * PACE_S >= seconds:
                break
    return took


# Attackers


@asynccontextmanager
async def _straight(stage: Stage, login: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(stage.dsn(login), timeout=20)
    stage.tally["sessions"] += 1
    try:
        yield connection
    finally:
        connection.terminate()


async def _again(stage: Stage, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do it again and again, whatever is done against it."""
    while stage.attacking:
        try:
            await work()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            stage.tally[type(error).__name__] += 1
        await asyncio.sleep(BACK_S)


async def _heavy(stage: Stage, login: str) -> None:
    async def work() -> None:
        async with _straight(stage, login) as connection:
            await connection.execute("set statement_timeout = 0; set work_mem = '1GB'")
            while True:
                await connection.fetch(HEAVY)
                stage.tally["statements"] += 1

    await asyncio.gather(*(_again(stage, work) for _ in range(16)))


async def attack_own_heavy(stage: Stage) -> None:
    """Heavy statements on as many connections as there are, without a timeout of its own."""
    await _heavy(stage, stage.own_login)


async def attack_shared_heavy(stage: Stage) -> None:
    """The same on the login that all tenants of level ROW share."""
    await _heavy(stage, SHARED_LOGIN)


async def attack_lock(stage: Stage) -> None:
    """ACCESS EXCLUSIVE on a table that all tenants of level ROW share, and keep it."""

    async def work() -> None:
        async with _straight(stage, SHARED_LOGIN) as connection:
            await connection.execute("begin; lock table app.items in access exclusive mode")
            stage.tally["locks"] += 1
            while True:
                await connection.fetch("select 1")
                await asyncio.sleep(BACK_S)

    await asyncio.gather(*(_again(stage, work) for _ in range(4)))


async def attack_transaction(stage: Stage) -> None:
    """Transactions that stay open."""

    async def work() -> None:
        async with _straight(stage, stage.own_login) as connection:
            await connection.execute("begin isolation level repeatable read; select txid_current()")
            while True:
                await asyncio.sleep(1)
                await connection.fetch("select 1")

    await asyncio.gather(*(_again(stage, work) for _ in range(8)))


async def _ask_on(stage: Stage, query: str, at_once: int) -> None:
    async with stage.client() as client:
        numbers = itertools.count()

        async def work() -> None:
            while True:
                # A text of its own each time, so that none is known to be heavy.
                body = {"query": f"{query} where n <> -{next(numbers)}"}
                answer = await client.post("/v1/tenants/heavy/query", json=body)
                stage.tally[str(answer.status_code)] += 1
                if answer.status_code in (429, 503):
                    await asyncio.sleep(BACK_S)

        await asyncio.gather(*(work() for _ in range(at_once)))


async def attack_stream(stage: Stage) -> None:
    """A stream of statements that take as much processor time as they can get."""
    await _ask_on(stage, HEAVY, 32)


async def attack_results(stage: Stage) -> None:
    """A stream of statements with results as large as they may be."""
    await _ask_on(stage, LARGE, 8)


ATTACKS: dict[str, Attack] = {
    "a: heavy, own login": attack_own_heavy,
    "a: heavy, shared login": attack_shared_heavy,
    "b: ACCESS EXCLUSIVE": attack_lock,
    "c: open transactions": attack_transaction,
    "d: heavy statements": attack_stream,
    "d: largest results": attack_results,
}


# Between rounds


async def _doors_open(stage: Stage) -> None:
    """Wait until the attacker's logins may have sessions again: each round starts from there."""
    connection = await asyncpg.connect(stage.admin_dsn)
    try:
        async with asyncio.timeout(DOOR_TIMEOUT_S):
            while await connection.fetchval(  # noqa: ASYNC110 - the server tells nobody
                "select count(*) from pg_roles where (rolname = $1 and rolconnlimit < 16) "
                "or (rolname = $2 and rolconnlimit < 60)",
                stage.own_login,
                SHARED_LOGIN,
            ):
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def _calm_down(stage: Stage) -> None:
    """Wait until nothing of an attack is at work any more."""
    connection = await asyncpg.connect(stage.admin_dsn)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DOOR_TIMEOUT_S):
                while await connection.fetchval(  # noqa: ASYNC110 - the server tells nobody
                    "select count(*) from pg_stat_activity where state = 'active' "
                    "and backend_type = 'client backend' and pid <> pg_backend_pid() "
                    "and clock_timestamp() - query_start > interval '50 ms'"
                ):
                    await asyncio.sleep(0.1)
    finally:
        await connection.close()


# Figures


def _figures(name: str, calm: list[list[float]], stormy: list[list[float]]) -> list[dict[str, Any]]:
    found = []
    for label, measure in (("p50", statistics.median), ("p99", _p99)):
        before = statistics.median(measure(times) for times in calm)
        during = statistics.median(measure(times) for times in stormy)
        found += [
            _figure(f"{name}, {label} without", before, "ms"),
            _figure(f"{name}, {label} with", during, "ms"),
            _figure(f"{name}, {label} ratio", during / before, "x", RATIO_GOAL),
        ]
    return found


def _watchdog_figures(stage: Stage) -> list[dict[str, Any]]:
    reports = json.loads((stage.home / "run" / "watchdog.json").read_text())
    return [
        _figure("watchdog, one look", reports[0]["look_ms"], "ms"),
        *(
            _figure(f"watchdog, {offence}", count, "")
            for offence, count in reports[0]["actions"].items()
            if count
        ),
    ]


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def _figure(name: str, value: float, unit: str, goal: float | None = None) -> dict[str, Any]:
    met = None if goal is None else value <= goal
    return {"name": name, "value": round(value, 2), "unit": unit, "goal": goal, "met": met}


def _master_key(home: Path) -> str:
    return (home / "master.key").read_text().strip()


def _tenancy(command: str, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tenancy.data_isolation.serve.cli", command, "--json"],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_1m": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
