"""Cells are measured one after the other, each in a process of its own, over and over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import pgbench, stage
from peers.cell import WRONG
from peers.stage import Stage
from peers.variants import Variant
from peers.work import WrongAnswerError
from tenancy.data_isolation.engine.supervision import free_port

_LOADTESTS = Path(__file__).parents[1]
_PEERS = _LOADTESTS.parent / ".venv-peers" / "bin"
_HOST = "127.0.0.1"
#: Beyond the time that a cell is to take, before it counts as stuck.
_GRACE_S = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long, how often, and what."""

    variants: tuple[Variant, ...]
    in_flight: frozenset[int]
    seconds: float
    warm_s: float
    repeats: int
    rows: int

    def cells(self, repeat: int, *, runtime: bool) -> Iterator[tuple[Variant, int, int]]:
        """A variant, tenants and operations in flight; every repeat begins somewhere else."""
        chosen = [item for item in self.variants if item.runtime is runtime]
        start = repeat * len(chosen) // max(1, self.repeats)
        for variant in [*chosen[start:], *chosen[:start]]:
            for tenants in (1, variant.mixed):
                for in_flight in variant.in_flight:
                    if in_flight in self.in_flight:
                        yield variant, tenants, in_flight

    def count(self) -> int:
        """Cells of one repeat."""
        return sum(1 for up in (False, True) for _ in self.cells(0, runtime=up))


async def measure(plan: Plan, place: Stage, results: list[dict[str, Any]]) -> None:
    """Add every result to the list when it is there.

    The runtime is up for the cells that need it alone, in turns first and last.
    """
    total = plan.count() * plan.repeats
    for repeat in range(plan.repeats):
        for up in (False, True) if repeat % 2 == 0 else (True, False):
            cells = list(plan.cells(repeat, runtime=up))
            if not cells:
                continue
            with_runtime = stage.runtime(place) if up else contextlib.nullcontext({})
            async with with_runtime as reached:
                target = place.target() | reached
                for cell in cells:
                    results.append(await _cell(plan, place, target, cell, repeat))
                    _tell(results[-1], len(results), total)


async def _cell(
    plan: Plan,
    place: Stage,
    target: dict[str, Any],
    cell: tuple[Variant, int, int],
    repeat: int,
) -> dict[str, Any]:
    variant, tenants, in_flight = cell
    asked = (
        target
        | variant.options
        | {
            "driver": variant.driver,
            "level": variant.level,
            "threads": variant.threads,
            "per_call": variant.per_call,
            "packages": variant.packages,
            "tenants": tenants,
            "in_flight": in_flight,
            "rows": plan.rows,
            "seconds": plan.seconds,
            "warm_s": plan.warm_s,
            "seed": repeat,
        }
    )
    async with _served(variant, asked) as reached:
        if variant.driver.startswith("pgbench:"):
            figures = await pgbench.measure(place.pgbench, asked)
        else:
            figures = await _in_process(variant, asked | reached)
    return {
        "variant": variant.key,
        "tenants": tenants,
        "in_flight": in_flight,
        "repeat": repeat,
    } | figures


async def _in_process(variant: Variant, asked: dict[str, Any]) -> dict[str, Any]:
    python = sys.executable if variant.own else str(_PEERS / "python")
    process = await asyncio.create_subprocess_exec(
        python, "-m", "peers.cell",
        env=_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(asked["seconds"] + asked["warm_s"] + _GRACE_S):
            said, complained = await process.communicate(json.dumps(asked).encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode == WRONG:
        raise WrongAnswerError(f"{variant.title}: {complained.decode().splitlines()[-1]}")
    if process.returncode != 0:
        raise SystemExit(f"{variant.title} failed:\n{complained.decode()[-4_000:]}")
    figures: dict[str, Any] = json.loads(said.decode().splitlines()[-1])
    return figures


@contextlib.asynccontextmanager
async def _served(variant: Variant, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The variant's application under one uvicorn worker, if it has one."""
    if variant.app is None:
        yield {}
        return
    port = free_port()
    target = {name: asked[name] for name in ("dsn", "isolation") if name in asked}
    process = await asyncio.create_subprocess_exec(
        str(_PEERS / "python"), "-m", "uvicorn", "--factory", f"peers.http_app:{variant.app}",
        "--host", _HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools",
        "--no-access-log", "--log-level", "warning", "--workers", "1",
        env=_environment() | {"PEERS_TARGET": json.dumps(target)},
    )  # fmt: skip
    try:
        await stage.wait_for_port(_HOST, port)
        yield {"http": {"host": _HOST, "port": port}}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    """Without what is ours: fastapi-tenancy reads TENANCY_* variables too."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TENANCY_")}
    return kept | {"PYTHONPATH": str(_LOADTESTS)}


def _tell(result: dict[str, Any], done: int, total: int) -> None:
    error = f"  {result['errors']} errors: {result['error']}" if result["errors"] else ""
    print(
        f"{time.strftime('%H:%M:%S')} {done:4}/{total} {result['variant']:28} "
        f"{result['tenants']:4} tenants {result['in_flight']:4} in flight "
        f"{result['ops_per_s']:10,.0f}/s p50 {result['p50_ms']:8.2f} "
        f"p99 {result['p99_ms']:8.2f} ms steal {result['steal']:4.0%}{error}",
        file=sys.stderr,
        flush=True,
    )


def versions(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Everything that cells used, by name; two versions of one package are both told."""
    found: dict[str, set[str]] = {}
    for result in results:
        for name, text in result["versions"].items():
            found.setdefault(name, set()).add(text)
    return {name: " and ".join(sorted(texts)) for name, texts in sorted(found.items())}
