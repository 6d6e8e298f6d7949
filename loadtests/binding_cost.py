"""What the signed binding costs, with its lock and its fence, beside a plain setting.

Both are measured in the same runs of pgbench, which takes one or the other script at random, on the
same session, over the same rows: what disturbs one disturbs both. A transaction binds the session
to the other one of two tenants and reads rows by their keys, 1 or 64. Run by `make bench-binding`
against embedded servers of its own. The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from report import Figure, figure, print_report

from tenancy.data_isolation.core import EngineConfig, IsolationLevel, TenantContext
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.postgres_binaries import PostgresBinaries

GOAL_RATIO = 1.5
ROWS = 1_000
#: Name, reads of a transaction, how it begins and ends. In a pipeline nothing waits for an answer,
#: as in the runtime's flights; one by one is what an ordinary driver does.
SHAPES = (
    ("1 read per binding, pipelined", 1, "\\startpipeline", "\\endpipeline"),
    ("64 reads per binding, pipelined", 64, "\\startpipeline", "\\endpipeline"),
    ("64 reads per binding, one by one", 64, "begin;", "commit;"),
)
TABLES = "create table notes (id integer primary key, body text not null);"
FILL = f"""
insert into app.notes (id, body, tenant_id)
select id, repeat('x', 40), tenant_no
from generate_series(1, {ROWS}) as id, tenancy.fence
"""
SETUP = Path(__file__).with_suffix(".sql")
#: pgbench: "SQL script 1: plain ... - latency average = 0.123 ms".
LATENCY = re.compile(r"SQL script \d+: (\S+)\n(?:.*\n)*? - latency average = ([0-9.]+) ms")
SIGN = r"""\if :ready = 0
select bench.sign(:first) as binding_0, bench.sign(:second) as binding_1 \gset
\set ready 1
\endif
"""
BIND = {
    "plain": "select set_config('app.tenant', :{hand}::text, false);",
    "signed": "select set_config('tenancy.binding', :binding_{index}, false);",
}
TABLE = {"plain": "bench.notes", "signed": "app.notes"}


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=6, help="time of one run")
    arguments.add_argument("--rounds", type=int, default=7, help="runs for each kind")
    arguments.add_argument(
        "--postgres-bin", type=Path, action="append", help="binaries to measure with as well"
    )
    wanted = arguments.parse_args()
    figures = []
    for binaries in (None, *(wanted.postgres_bin or ())):
        with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
            os.chmod(home, 0o755)  # The database server may run as another user.
            settings = Settings(home=Path(home), postgres_bin=binaries)
            figures += asyncio.run(_measure(settings, wanted))
    print_report(figures)


async def _measure(settings: Settings, wanted: argparse.Namespace) -> list[Figure]:
    binaries = PostgresBinaries.find(settings.postgres_bin, None)
    figures: list[Figure] = []
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_notes", TABLES)
        tenants = [
            await engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
            for name in ("first", "second")
        ]
        numbers = [tenant.tenant_no for tenant in tenants]
        environment = await _prepare(engine, settings.database)
        for name, *shape in SHAPES:
            command = _command(binaries.directory, settings.home, numbers, shape, wanted.seconds)
            runs = [
                await asyncio.to_thread(_run, command, environment) for _ in range(wanted.rounds)
            ]
            figures += _figures(f"PostgreSQL {binaries.major}, {name}", runs)
    return figures


async def _prepare(engine: Engine, database: str) -> dict[str, str]:
    """Rows, the other table and a login; the environment in which pgbench finds them."""
    server = urlsplit(engine.servers[0].dsn)
    password = secrets.token_hex(16)
    admin = await asyncpg.connect(server._replace(path=f"/{database}").geturl())
    try:
        await admin.execute(FILL)
        await admin.execute(SETUP.read_text())
        await admin.execute(f"alter role bench_login password '{password}'")
        await admin.execute(f'grant connect on database "{database}" to bench_login')
        await admin.execute("vacuum analyze app.notes, bench.notes")
    finally:
        await admin.close()
    return os.environ | {
        "PGHOST": str(server.hostname),
        "PGPORT": str(server.port),
        "PGUSER": "bench_login",
        "PGPASSWORD": password,
        "PGDATABASE": database,
    }


def _command(
    directory: Path, home: Path, numbers: list[int], shape: list[Any], seconds: int
) -> list[str | Path]:
    """pgbench with both scripts in one run."""
    command: list[str | Path] = [
        directory / "pgbench", "--no-vacuum", "--protocol=prepared", "--client=1",
        f"--time={seconds}", "--define=ready=0", "--define=other=0",
        f"--define=first={numbers[0]}", f"--define=second={numbers[1]}",
    ]  # fmt: skip
    for kind in BIND:
        script = home / kind
        script.write_text(_script(kind, *shape))
        command.append(f"--file={script}@1")
    return command


def _script(kind: str, reads: int, begin: str, end: str) -> str:
    keys = "".join(f"\\set id{n} random(1, {ROWS})\n" for n in range(reads))
    body = "".join(f"select body from {TABLE[kind]} where id = :id{n};\n" for n in range(reads))
    hands = [
        f"{begin}\n{BIND[kind].format(index=index, hand=hand)}\n{body}{end}\n"
        for index, hand in enumerate(("first", "second"))
    ]
    return (
        f"{SIGN}{keys}\\set other 1 - :other\n"
        f"\\if :other = 0\n{hands[0]}\\else\n{hands[1]}\\endif\n"
    )


def _run(command: list[str | Path], environment: dict[str, str]) -> dict[str, float]:
    """Microseconds per transaction of each script."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found = {Path(name).name: float(ms) * 1_000 for name, ms in LATENCY.findall(done.stdout)}
    assert found.keys() == BIND.keys(), done.stdout
    return found


def _figures(name: str, runs: list[dict[str, float]]) -> list[Figure]:
    median = statistics.median
    ratio = median(run["signed"] / run["plain"] for run in runs)
    return [
        figure(f"{name}: a plain setting", median(run["plain"] for run in runs), "us"),
        figure(f"{name}: the signed binding", median(run["signed"] for run in runs), "us"),
        figure(f"{name}: signed / plain", ratio, "times", at_most=GOAL_RATIO),
    ]


if __name__ == "__main__":
    main()
