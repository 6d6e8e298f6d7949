"""pgbench: what the server gives when there is next to nothing between it and the client.

Never more than eight sessions, since two processors serve no more; what is in flight beyond that
waits in pipelines, as many statements (or transactions) in each. A wrong value is a division by
zero, which ends the run.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from report import percentile

from peers.machine import ProcessorTimes
from peers.work import LONE_TENANT, WrongAnswerError

#: In flight -> sessions, and operations in the pipeline of each.
_SPREAD = {1: (1, 1), 64: (4, 16), 512: (8, 64)}
_THREADS = 2
_FEW = 8
_CHECK = "1 / (bal = {tenant} * 1000 + {row})::int"
_VALUE_IS_WRONG = "division by zero"
_VERSION = re.compile(r"pgbench \((?:PostgreSQL\) )?([0-9.]+)")


async def measure(program: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The figures of one cell. Raises `WrongAnswerError`, and `SystemExit` when it fails."""
    rows_secured, pipelined = asked["driver"].split(":")[1:]
    in_flight = asked["in_flight"]
    sessions, depth = _SPREAD[in_flight] if pipelined == "pipelined" else (in_flight, 1)
    with tempfile.TemporaryDirectory(prefix="peers-pgbench-") as folder:
        script = Path(folder) / "script"
        script.write_text(
            _script(rows_secured == "secured", pipelined == "pipelined", depth, asked)
        )
        user = "app" if rows_secured == "secured" else "bare"
        command = [
            str(program), "--no-vacuum", "--protocol=prepared", f"--file={script}",
            f"--client={sessions}", f"--jobs={min(_THREADS, sessions)}",
        ]  # fmt: skip
        environment = _environment(asked["dsn"][user])
        await _run([*command, f"--time={_seconds(asked['warm_s'], sessions)}"], environment)
        seconds = _seconds(asked["seconds"], sessions)
        before = ProcessorTimes.now()
        said = await _run(
            [*command, f"--time={seconds}", "--log", f"--log-prefix={folder}/log"], environment
        )
        busy, steal = ProcessorTimes.now().shares_since(before)
        latencies = _latencies(Path(folder))
    rate = re.search(r"tps = ([0-9.]+)", said)
    if rate is None:
        raise SystemExit(said)
    return {
        "ops_per_s": float(rate[1]) * depth,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "errors": 0,
        "error": None,
        "busy": busy,
        "steal": steal,
        "versions": {"pgbench": (_VERSION.findall(said) or ["that of the server"])[0]},
    }


def _script(secured: bool, pipelined: bool, depth: int, asked: dict[str, Any]) -> str:
    """What a session does again and again."""
    lines = []
    for turn in range(depth):
        tenant = str(LONE_TENANT) if asked["tenants"] == 1 else f"random(1, {asked['tenants']})"
        lines += [f"\\set t{turn} {tenant}", f"\\set i{turn} random(1, {asked['rows']})"]
    if pipelined:
        lines.append("\\startpipeline")
    for turn in range(depth):
        check = _CHECK.format(tenant=f":t{turn}", row=f":i{turn}")
        if secured:
            lines += [
                "begin;",
                f"select set_config('app.tenant', :t{turn}, true);",
                f"select bal, {check} from users where id = :i{turn};",
                "commit;",
            ]
        else:
            lines.append(
                f"select bal, {check} from users where tenant_id = :t{turn} and id = :i{turn};"
            )
    if pipelined:
        lines.append("\\endpipeline")
    return "\n".join(lines) + "\n"


def _seconds(wished: float, sessions: int) -> int:
    """Whole seconds, and more of them for many sessions: logging in takes its part of them."""
    return max(1 if sessions <= _FEW else 3, round(wished))


def _environment(dsn: str) -> dict[str, str]:
    parts = urlsplit(dsn)
    return os.environ | {
        "PGHOST": str(parts.hostname),
        "PGPORT": str(parts.port),
        "PGUSER": str(parts.username),
        "PGPASSWORD": str(parts.password),
        "PGDATABASE": parts.path.lstrip("/"),
        "PGSSLMODE": "disable",
    }


async def _run(command: list[str], environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        raise
    said = output.decode()
    if _VALUE_IS_WRONG in said:
        raise WrongAnswerError(said)
    if process.returncode != 0:
        raise SystemExit(said)
    return said


def _latencies(folder: Path) -> list[float]:
    """Milliseconds of each transaction; the third column has microseconds (manual, pgbench)."""
    return [
        int(line.split()[2]) / 1_000
        for path in folder.glob("log*")
        for line in path.read_text().splitlines()
    ]
