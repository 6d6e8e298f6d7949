"""Locust's users on the HTTP endpoint of a runtime of its own.

Run by `make loadtest`, without anybody looking: the users come and go in the shape that
`locust_users/locustfile.py` gives, and Locust's report is written as HTML and as JSON. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from filled_tenants import make_filled_tenants, tenant_name
from line_charts import PYTHON
from own_runtime import OwnRuntime, own_runtime
from report import Figure, figure, print_report

ROWS = 500
EXPONENT = 1.1
_USERS = Path(__file__).parent / "locust_users" / "locustfile.py"
#: How long Locust may take to come and go.
_MARGIN_S = 120


async def prepare(runtime: OwnRuntime, tenants: int) -> list[str]:
    """The tenants, with rows and a key each; the keys, in the order of the tenants."""
    keys: dict[str, str] = {}

    async def make_key(client: httpx.AsyncClient, tenant: str) -> None:
        wish = {"scope": "tenant", "tenant_id": tenant}
        made = await client.post("/v1/keys", json=wish)
        keys[tenant] = made.raise_for_status().json()["key"]

    await make_filled_tenants(runtime, tenants, ROWS, also=make_key)
    return [keys[tenant_name(number)] for number in range(tenants)]


def run_users(url: str, plan: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Let the users come; what Locust tells of each kind of request."""
    folder.mkdir(parents=True, exist_ok=True)
    # Keys are secrets: only this user reads them, and only as long as it takes.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan, file)
        file.flush()
        report = folder / "locust"
        command = [
            *(PYTHON, "-m", "locust", "-f", _USERS, "--headless", "--host", url),
            *("--html", f"{report}.html", "--json-file", report),
            *("--only-summary", "--exit-code-on-error", "0", "--loglevel", "WARNING"),
        ]
        subprocess.run(
            command,
            env=os.environ | {"LOADTEST_PLAN": file.name},
            check=True,
            timeout=plan["seconds"] + _MARGIN_S,
            stdout=sys.stderr,
        )
    found: list[dict[str, Any]] = json.loads(report.with_suffix(".json").read_text())
    return found


def figures_of(stats: Sequence[dict[str, Any]], seconds: float) -> list[Figure]:
    """What the report comes to."""
    asked = [item for item in stats if item["method"] == "POST"]
    told = [item for item in stats if item["method"] != "POST"]
    refused = sum(item["num_requests"] for item in told if item["method"] == "refused")
    wrong = sum(item["num_requests"] for item in told if item["method"] == "wrong answer")
    failed = sum(item["num_failures"] for item in asked)
    total = sum(item["num_requests"] for item in asked)
    figures = [
        figure("HTTP: requests per second, over the whole shape", total / seconds, "/s"),
        figure("HTTP: failed requests", failed, "requests", at_most=0),
        figure("HTTP: wrong answers", wrong, "answers", at_most=0),
        figure("HTTP: refused, with a time to come again", refused, "requests"),
    ]
    for item in asked:
        figures += [
            figure(f"HTTP {item['name']}: p50", _quantile(item, 0.5), "ms"),
            figure(f"HTTP {item['name']}: p99", _quantile(item, 0.99), "ms"),
        ]
    return figures


def _quantile(item: dict[str, Any], share: float) -> float:
    """Of the counts that Locust has of each time in ms."""
    counts = sorted((float(at), count) for at, count in item["response_times"].items())
    left = share * sum(count for _, count in counts)
    for at, count in counts:
        left -= count
        if left <= 0:
            return at
    return 0.0


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--tenants", type=int, default=200, help="how many are used (default 200)")
    add("--users", type=int, default=100, help="users at the most (default 100)")
    add("--seconds", type=float, default=120.0, help="length of the whole shape (default 120)")
    add("--report", type=Path, default=Path("build/loadtest"), metavar="DIR",
        help="where locust.html and locust.json are written (default build/loadtest)")  # fmt: skip
    wanted = parser.parse_args()
    with own_runtime() as runtime:
        keys = asyncio.run(prepare(runtime, wanted.tenants))
        plan = {
            "keys": keys,
            "rows": ROWS,
            "exponent": EXPONENT,
            "users": wanted.users,
            "seconds": wanted.seconds,
        }
        stats = run_users(runtime.url, plan, wanted.report.absolute())
    print(f"the report is in {wanted.report}/locust.html and locust.json", file=sys.stderr)
    print_report(figures_of(stats, wanted.seconds))


if __name__ == "__main__":
    main()
