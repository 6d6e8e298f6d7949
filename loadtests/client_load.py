"""The client path under load from within the cluster: generators that are Ray actors themselves.

Run by `make loadtest-client` against a runtime of its own. Each generator is a process of the
cluster with a Python client of its own; together they keep so many operations in flight on tenants
that are drawn by Zipf's law, reads and writes mixed. Every answer is looked at. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from filled_tenants import make_filled_tenants
from own_runtime import own_runtime
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.actors import connect

READ = "select bal from users where id = $1"
WRITE = "update users set email = $2 where id = $1 returning bal"
ROWS = 200
#: The more often a tenant is used, the less often the next one (Zipf's law).
EXPONENT = 1.1
#: Of so many operations one is a write.
WRITES_OF = 5
WARM_UP_S = 2.0
#: Times that one generator tells of, the first ones.
_TIMES_MAX = 200_000


class Generator:
    """One process that sends operations. Ray makes an actor of it."""

    def __init__(self, folder: str, tenants: int, seed: int) -> None:
        sys.path.insert(0, folder)
        from filled_tenants import tenant_name
        from zipf import ZipfDraw

        self._name = tenant_name
        self._draw = random.Random(seed)
        self._tenants = ZipfDraw(tenants, EXPONENT, self._draw)

    async def run(self, in_flight: int, seconds: float) -> dict[str, Any]:
        """Keep so many in flight for so long: times in ms, errors by name, wrong answers."""
        # Blocks, and this process has nothing else to do.
        client = await asyncio.to_thread(connect)
        began = time.perf_counter() + WARM_UP_S
        took: list[float] = []
        errors: Counter[str] = Counter()
        done = wrong = 0

        async def work(turn: int) -> None:
            nonlocal done, wrong
            while (started := time.perf_counter()) < began + seconds:
                turn += 1
                number, row = self._tenants.one(), self._draw.randrange(1, ROWS + 1)
                text, params = READ, [row]
                if turn % WRITES_OF == 0:
                    text, params = WRITE, [row, f"user{turn}@example.com"]
                try:
                    result = await client.execute(self._name(number), text, params)
                except Exception as error:
                    errors[type(error).__name__] += 1
                    await asyncio.sleep(0.05)
                    continue
                wrong += result.rows != [[number * 1_000 + row]]
                ended = time.perf_counter()
                if began <= ended < began + seconds:
                    done += 1
                    if len(took) < _TIMES_MAX:
                        took.append((ended - started) * 1_000)

        async with asyncio.TaskGroup() as group:
            for turn in range(in_flight):
                group.create_task(work(turn))
        await client.aclose()
        return {"done": done, "took_ms": took, "errors": dict(errors), "wrong": wrong}


def measured(wanted: argparse.Namespace) -> list[Figure]:
    """Start the generators, let them work, and add up what they tell."""
    remote = ray.remote(num_cpus=0.01)(Generator)
    folder = str(Path(__file__).parent)
    generators: list[Any] = [
        remote.remote(folder, wanted.tenants, seed) for seed in range(wanted.generators)
    ]
    share = max(1, wanted.in_flight // wanted.generators)
    told = ray.get([item.run.remote(share, wanted.seconds) for item in generators])
    for item in generators:
        ray.kill(item)
    took = [value for one in told for value in one["took_ms"]]
    errors: Counter[str] = sum((Counter(one["errors"]) for one in told), Counter())
    if errors:
        print(f"errors: {dict(errors)}", file=sys.stderr)
    what = f"in the cluster, {wanted.generators} generators, {share * wanted.generators} in flight"
    return [
        figure(f"{what}: operations/s", sum(one["done"] for one in told) / wanted.seconds, "/s"),
        figure(f"{what}: p50", percentile(took, 50), "ms"),
        figure(f"{what}: p99", percentile(took, 99), "ms"),
        figure(f"{what}: wrong answers", sum(one["wrong"] for one in told), "answers", at_most=0),
        figure(f"{what}: errors", errors.total(), "operations", at_most=0),
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--tenants", type=int, default=1_000, help="how many are used (default 1000)")
    add("--generators", type=int, default=2, help="processes that send (default 2)")
    add("--in-flight", type=int, default=256, help="operations of all together (default 256)")
    add("--seconds", type=float, default=20.0, help="how long is measured (default 20)")
    wanted = parser.parse_args()
    with own_runtime() as runtime:
        asyncio.run(make_filled_tenants(runtime, wanted.tenants, ROWS))
        joined = connect(home=runtime.home)
        try:
            figures = measured(wanted)
        finally:
            joined.close()
    print_report(figures)


if __name__ == "__main__":
    main()
