"""Users of the HTTP endpoint, for Locust: tenants by Zipf's law, reads and writes mixed.

Run by `loadtests/http_load.py`, which makes the tenants and gives their keys in a file. Every
answer is looked at: a wrong value fails, and so does a refusal that does not say when to come
again. A proper refusal (429, 503) is counted under a name of its own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import uuid
from pathlib import Path
from typing import Any

from locust import LoadTestShape, constant_throughput, task
from locust.contrib.fasthttp import FastHttpUser

sys.path.insert(0, str(Path(__file__).parents[1]))

from zipf import ZipfDraw

_PLAN = json.loads(Path(os.environ["LOADTEST_PLAN"]).read_text())
_KEYS: list[str] = _PLAN["keys"]
_ROWS: int = _PLAN["rows"]
_READ = "select bal from users where id = $1"
_RANGE = "select id, bal from users where id between $1 and $2 order by id"
_WRITE = "update users set email = $2 where id = $1 returning bal"
_BATCH = 20
_REFUSED = frozenset({429, 503})


class TenantUser(FastHttpUser):
    """Somebody who works for one tenant after the other."""

    #: Tasks per second of one user, as far as it is answered in time.
    wait_time = constant_throughput(10)
    connection_timeout = 10.0
    network_timeout = 60.0

    def on_start(self) -> None:
        """Every user draws for itself."""
        self._draw = random.Random(uuid.uuid4().int)
        self._tenants = ZipfDraw(len(_KEYS), _PLAN["exponent"], self._draw)

    @task(60)
    def read(self) -> None:
        """One row."""
        tenant, row = self._tenants.one(), self._row()
        self._query("read", tenant, _READ, [row], [[_balance(tenant, row)]])

    @task(15)
    def read_range(self) -> None:
        """Some rows in order."""
        tenant, row = self._tenants.one(), self._draw.randrange(1, _ROWS - 10)
        rows = [[number, _balance(tenant, number)] for number in range(row, row + 10)]
        self._query("range", tenant, _RANGE, [row, row + 9], rows)

    @task(15)
    def write(self) -> None:
        """One row changed, once, whatever happens on the way."""
        tenant, row = self._tenants.one(), self._row()
        params = [row, f"{uuid.uuid4().hex}@example.com"]
        wanted = [[_balance(tenant, row)]]
        self._query("write", tenant, _WRITE, params, wanted, key=str(uuid.uuid4()))

    @task(10)
    def batch(self) -> None:
        """Many rows by one request."""
        tenant, row = self._tenants.one(), self._draw.randrange(1, _ROWS - _BATCH)
        numbers = range(row, row + _BATCH)
        body = {"operations": [{"query": _READ, "params": [number]} for number in numbers]}
        answer = self._post("batch", tenant, "batch", body)
        if answer is not None:
            found = [item.get("rows") for item in answer["results"]]
            self._check("batch", found, [[[_balance(tenant, number)]] for number in numbers])

    def _row(self) -> int:
        return self._draw.randrange(1, _ROWS + 1)

    def _query(
        self,
        name: str,
        tenant: int,
        query: str,
        params: list[Any],
        wanted: list[Any],
        key: str | None = None,
    ) -> None:
        answer = self._post(name, tenant, "query", {"query": query, "params": params}, key)
        if answer is not None:
            self._check(name, answer["rows"], wanted)

    def _post(
        self, name: str, tenant: int, what: str, body: Any, key: str | None = None
    ) -> Any | None:
        """The answer; None when there was none to look at."""
        headers = {"Authorization": f"Bearer {_KEYS[tenant]}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        path = f"/v1/tenants/t{tenant:04}/{what}"
        with self.client.post(
            path, json=body, headers=headers, name=name, catch_response=True
        ) as response:
            if response.status_code == 200:
                response.success()
                return response.json()
            if response.status_code in _REFUSED and response.headers.get("Retry-After"):
                response.success()
                self._tell("refused", name)
            else:
                response.failure(f"status {response.status_code}: {response.text[:200]}")
        return None

    def _check(self, name: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self._tell("wrong answer", name, AssertionError(f"{found!r:.200}"))

    def _tell(self, kind: str, name: str, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=f"{kind}: {name}",
            response_time=0,
            response_length=0,
            exception=error,
            context={},
        )


class Shape(LoadTestShape):
    """Users over time: a ramp, an even load, a spike, and back; lengths scale with the plan."""

    #: Share of the time at which a stage ends, share of the users, and users started per second.
    stages = ((0.2, 0.25, 20), (0.5, 0.5, 20), (0.7, 1.0, 100), (0.9, 0.5, 100), (1.0, 0.1, 100))

    def tick(self) -> tuple[int, float] | None:
        """How many users there are to be now; None = the end."""
        share = self.get_run_time() / _PLAN["seconds"]
        for until, users, rate in self.stages:
            if share < until:
                return max(1, round(_PLAN["users"] * users)), rate
        return None


def _balance(tenant: int, row: int) -> int:
    return tenant * 1_000 + row
