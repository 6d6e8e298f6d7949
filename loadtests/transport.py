"""What TLS to PostgreSQL costs: opening a session, and point reads over sessions that are open.

Run by `make bench-transport` against a server of its own on this machine, whose binaries must have
TLS. Plain text and TLS take turns, so that both see the same machine. The last line is one JSON
object: `{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import uvloop
from report import Figure, figure, print_report

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Operation,
    ServerConfig,
    Settings,
    TenantContext,
    TenantType,
)
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.server_connection import open_connection

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.certificates import Authority
from support.postgres import PostgresServer, postgres_running

OPENED = 60
READS_AT_ONCE = 64
ROUNDS = 5
ROUND_S = 3.0
ROWS = 200
TABLES = "create table notes (id integer primary key, body text not null)"
FILL = "insert into notes (id, body) select n, repeat('x', 100) from generate_series(1, $1) n"
READ = "select body from notes where id = $1"


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--postgres-bin", type=Path, required=True)
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as name:
        directory = Path(name)
        authority = Authority(directory)
        pair = authority.issue("server", "localhost", "127.0.0.1")
        tls = (pair.certificate, pair.key, authority.certificate)
        with postgres_running(wanted.postgres_bin.resolve(), tls=tls) as server:
            # The event loop of tenant actors and of the HTTP processes.
            figures = uvloop.run(_measure(server, authority, directory))
    print_report(figures)


async def _measure(server: PostgresServer, authority: Authority, directory: Path) -> list[Figure]:
    ours = authority.issue("runtime")
    plain = ServerConfig(dsn=server.admin_dsn, sslmode="disable")
    checked = ServerConfig(
        dsn=server.admin_dsn, sslmode="verify-full", sslrootcert=authority.certificate
    )
    shown = ServerConfig(
        dsn=server.admin_dsn,
        sslmode="verify-full",
        sslrootcert=authority.certificate,
        sslcert=ours.certificate,
        sslkey=ours.key,
    )
    opening = await _opening({"plain": plain, "TLS": checked, "TLS, client certificate": shown})
    figures = [figure(f"opening a session, {way}", ms, "ms") for way, ms in opening.items()]
    rates = await _reading({"plain": plain, "TLS": checked}, directory)
    figures += [figure(f"point reads, {way}", rate, "/s") for way, rate in rates.items()]
    ratio = rates["TLS"] / rates["plain"]
    return [*figures, figure("point reads, TLS against plain", ratio, "times")]


async def _opening(ways: dict[str, ServerConfig]) -> dict[str, float]:
    """The median, in milliseconds, one after the other."""
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(OPENED):
        for way, server in ways.items():
            started = time.perf_counter()
            connection = await open_connection(server, timeout=10)
            took[way].append((time.perf_counter() - started) * 1_000)
            await connection.close()
    return {way: statistics.median(times) for way, times in took.items()}


async def _reading(ways: dict[str, ServerConfig], directory: Path) -> dict[str, float]:
    """Reads per second of one tenant of level ROW, the median of some rounds."""
    rates: dict[str, list[float]] = defaultdict(list)
    settings = Settings(home=directory / "home")
    first = next(iter(ways.values()))
    async with await Engine.open(EngineConfig(servers=(first,), settings=settings)) as engine:
        await engine.apply_migration("0001_notes", TABLES)
        # Of a type that may send more operations than are measured.
        context = TenantContext(tenant_id="acme", tenant_type=TenantType.ENTERPRISE)
        await engine.create_tenant(context, level=IsolationLevel.ROW)
        await engine.execute("acme", Operation(query=FILL, params=[ROWS]))
    for number in range(ROUNDS + 1):
        for way, server in ways.items():
            config = EngineConfig(servers=(server,), settings=settings)
            async with await Engine.attach(config) as engine:
                await _round(engine, 0.3)
                rate = await _round(engine, ROUND_S)
                # The first round is for everything that is done once.
                if number:
                    rates[way].append(rate)
    return {way: statistics.median(found) for way, found in rates.items()}


async def _round(engine: Engine, seconds: float) -> float:
    started, numbers = time.perf_counter(), itertools.count()

    async def worker() -> None:
        while time.perf_counter() - started < seconds:
            await engine.execute("acme", Operation(query=READ, params=[next(numbers) % ROWS + 1]))

    await asyncio.gather(*(worker() for _ in range(READS_AT_ONCE)))
    return next(numbers) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
