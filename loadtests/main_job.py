"""The figures of the main job: creating tenants, waking them, and what an idle runtime weighs.

Run by `make bench` against a runtime of its own, by the public API alone. The last line is one JSON
object (`report.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import psutil
from own_runtime import own_runtime
from report import Figure, figure, percentile, print_report
from throughput import throughput

CREATED = {"row": 60, "schema": 30, "database": 15, "hybrid": 30}
#: The specification names none for hybrid tenants; they get a schema, so they get its goal.
CREATION_GOALS_MS = {"row": 20, "schema": 150, "database": 500, "hybrid": 150}
ACTIVATION_GOAL_MS = 50
IDLE_GOAL_MB = 1_500
DEMO_GOAL_S = 120


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--demo", action="store_true", help="time the demonstration as well")
    arguments.add_argument("--throughput", action="store_true", help="operations/s as well")
    wanted = arguments.parse_args()
    figures = []
    with own_runtime() as runtime:
        figures.append(_idle(runtime.home))
        figures += asyncio.run(_measure(runtime.url, runtime.key))
    if wanted.throughput:
        figures += throughput(seconds=2.0, repeats=3)
    if wanted.demo:
        figures.append(_demo())
    print_report(figures)


async def _measure(url: str, key: str) -> list[Figure]:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        folder = files("tenancy.data_isolation.serve") / "data" / "demo"
        for item in sorted(folder.iterdir(), key=lambda item: item.name):
            body = {"name": item.name.removesuffix(".sql"), "sql": item.read_text()}
            (await client.post("/v1/schema/migrations", json=body)).raise_for_status()
        figures = [await _creation(client, kind) for kind in CREATED]
        return [*figures, await _activation(client)]


async def _creation(client: httpx.AsyncClient, kind: str) -> Figure:
    """Median time of POST /v1/tenants, one after the other; the first three are not counted.

    `kind` is an isolation level, or hybrid.
    """
    wish: dict[str, Any] = {"isolation_level": kind}
    if kind == "hybrid":
        wish = {"metadata": {"workload": "unknown"}}
        body = {"name": "0009_mark", "sql": "comment on table flights is '@sensitive'"}
        (await client.post("/v1/schema/migrations", json=body)).raise_for_status()
    took = []
    for index in range(CREATED[kind] + 3):
        body = {"tenant_id": f"{kind}-{index}", **wish}
        started = time.perf_counter()
        answer = await client.post("/v1/tenants", json=body)
        took.append((time.perf_counter() - started) * 1000)
        answer.raise_for_status()
    return figure(
        f"tenant creation p50, {kind}",
        percentile(took[3:], 50),
        "ms",
        at_most=CREATION_GOALS_MS[kind],
    )


async def _activation(client: httpx.AsyncClient) -> Figure:
    """99th percentile of the first operation of tenants that no actor has active."""
    names = [f"fresh-{index}" for index in range(200)]
    for name in names:
        body = {"tenant_id": name, "isolation_level": "row"}
        (await client.post("/v1/tenants", json=body)).raise_for_status()
    await client.post("/v1/tenants/row-0/query", json={"query": "select count(*) from flights"})
    took = []
    for name in names:
        started = time.perf_counter()
        answer = await client.post(
            f"/v1/tenants/{name}/query", json={"query": "select count(*) from flights"}
        )
        took.append((time.perf_counter() - started) * 1000)
        answer.raise_for_status()
    p99 = percentile(took, 99)
    name = "first operation of a passive tenant p99, row"
    return figure(name, p99, "ms", at_most=ACTIVATION_GOAL_MS)


def _idle(home: Path) -> Figure:
    """Memory of every process of the runtime, shared pages counted once (PSS)."""
    total = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get("TENANCY_HOME") == str(home) and process.pid != os.getpid():
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
    total += sum(_pss(pid) for pid in _servers(home))
    return figure("memory of the idle runtime", total / 1e6, "MB", at_most=IDLE_GOAL_MB)


def _servers(home: Path) -> set[int]:
    """Processes that name our directory on their command line but not in their environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            ours = any(str(home) in word for word in process.cmdline())
            if ours and process.environ().get("TENANCY_HOME") != str(home):
                found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.Error:
            continue
    return found


def _pss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def _demo() -> Figure:
    with tempfile.TemporaryDirectory(prefix="tenancy-demo-") as home:
        os.chmod(home, 0o755)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tenancy.data_isolation.serve.cli", "demo"],
            env=os.environ | {"TENANCY_HOME": home},
            check=True,
        )
        seconds = time.perf_counter() - started
        return figure("make demo after installation", seconds, "s", at_most=DEMO_GOAL_S)


if __name__ == "__main__":
    main()
