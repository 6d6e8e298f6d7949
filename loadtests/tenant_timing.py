"""Whether the time of an answer tells another tenant from one that does not exist.

Run by `make bench-timing` against a runtime of its own, by the public API alone. A tenant's key
asks for another tenant and for one that does not exist, one after the other in random order over
one connection. The two samples are compared by ranks (H. B. Mann and D. R. Whitney, 1947): `chance`
is how often a random answer of the one kind takes longer than one of the other, 0.5 when time tells
nothing, and `z` the distance from that in standard deviations. The control is a difference that
there is: the tenant's own name, which is looked up. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx
from own_runtime import OwnRuntime, own_runtime
from report import Figure, figure, print_report

_OWN, _OTHER, _GHOST = "acme", "globex", "ghosty"
_WARM_UP = 200
#: Of a normal distribution: beyond it by chance once in a thousand.
_Z_MAX = 3.29
_ROUTES: dict[str, tuple[str, str, Any]] = {
    "GET tenant": ("GET", "/v1/tenants/{}", None),
    "POST query": ("POST", "/v1/tenants/{}/query", {"query": "select 1"}),
    "DELETE tenant": ("DELETE", "/v1/tenants/{}", None),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two samples differ."""

    chance: float
    z: float


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4_000, help="answers of each kind")
    samples = parser.parse_args().samples
    with own_runtime() as runtime:
        figures = _measure(runtime, samples)
    print_report(figures)


def _measure(runtime: OwnRuntime, samples: int) -> list[Figure]:
    for tenant in (_OWN, _OTHER):
        runtime.tenancy("tenant", "create", tenant)
    key = runtime.tenancy("key", "create", "--tenant", _OWN)["key"]
    figures = []
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=runtime.url, headers=headers, trust_env=False, timeout=60) as client:
        for name, route in _ROUTES.items():
            taken = _interleaved(client, route, (_OTHER, _GHOST), samples)
            figures += _figures(name, taken[_OTHER], taken[_GHOST])
        taken = _interleaved(client, _ROUTES["GET tenant"], (_OWN, _GHOST), samples // 10)
        seen = compared(taken[_OWN], taken[_GHOST])
        figures.append(figure("control: own name against none, z", seen.z, "", at_least=_Z_MAX))
    return figures


def _interleaved(
    client: httpx.Client, route: tuple[str, str, Any], names: tuple[str, str], samples: int
) -> dict[str, list[float]]:
    """Times of answers in microseconds by name, asked for in random order."""
    method, path, body = route
    requests = {name: client.build_request(method, path.format(name), json=body) for name in names}
    order = list(names) * samples
    random.shuffle(order)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number, name in enumerate([*names] * (_WARM_UP // 2) + order):
        began = time.perf_counter_ns()
        client.send(requests[name])
        elapsed = (time.perf_counter_ns() - began) / 1_000
        if number >= _WARM_UP:
            taken[name].append(elapsed)
    return taken


def _figures(name: str, other: list[float], ghost: list[float]) -> list[Figure]:
    found = compared(other, ghost)
    difference = statistics.median(other) - statistics.median(ghost)
    middle = statistics.median(ghost)
    return [
        figure(f"{name}: median for one that does not exist", middle, "us"),
        figure(f"{name}: another tenant takes longer by", difference, "us"),
        figure(f"{name}: chance", found.chance, "", at_least=0.48, at_most=0.52),
        figure(f"{name}: z", found.z, "", at_least=-_Z_MAX, at_most=_Z_MAX),
    ]


def compared(left: list[float], right: list[float]) -> Comparison:
    """Mann and Whitney's U of two samples, with the normal approximation. Ties count half."""
    ranked = sorted([(value, 0) for value in left] + [(value, 1) for value in right])
    ranks = ties = 0.0
    position = 0
    for _, group in groupby(ranked, key=lambda item: item[0]):
        members = list(group)
        count = len(members)
        ties += count**3 - count
        ranks += (position + (count + 1) / 2) * sum(side == 0 for _, side in members)
        position += count
    n, m = len(left), len(right)
    u = ranks - n * (n + 1) / 2
    spread = math.sqrt(n * m / 12 * ((n + m + 1) - ties / ((n + m) * (n + m - 1))))
    return Comparison(chance=u / (n * m), z=(u - n * m / 2) / spread)


if __name__ == "__main__":
    main()
