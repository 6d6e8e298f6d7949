"""A runtime whose processes that answer HTTP become more and fewer with the load.

Run by `make scaling`: about two minutes, of which most is waiting for Ray Serve's decisions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from support.runtime import Runtime, ended

pytestmark = pytest.mark.timeout(400)

_FILE = """
[autoscaling_config]
min_replicas = 1
max_replicas = 2
target_ongoing_requests = 1
upscale_delay_s = 0
downscale_delay_s = 2
look_back_period_s = 3
"""
#: Long beside the delays of the file, since the machine may be busy.
_PATIENCE_S = 90.0


def test_replicas_follow_the_load_between_the_bounds_of_the_file(tmp_path: Path):
    file = tmp_path / "replicas.toml"
    file.write_text(_FILE)
    runtime = Runtime(tmp_path / "home", TENANCY_HTTP_REPLICAS_FILE=str(file))
    with ended(runtime):
        runtime.run("up")
        status = runtime.json("status")
        key = Path(status["admin_key_file"]).read_text().strip()
        assert _replicas(runtime) == 1

        with _load(status["url"], key) as answers:
            _wait_for(runtime, 2)
        # The load would have asked for more of them than the file allows.
        assert _replicas(runtime) == 2
        _wait_for(runtime, 1)

        # Nobody noticed.
        assert answers
        assert set(answers) == {200}

        file.write_text("num_replicas = 2")
        told = runtime.run("up", status=None)
        assert "TENANCY_HTTP_REPLICAS_FILE" in told.stdout + told.stderr
        assert _replicas(runtime) == 1
        runtime.run("down")
        runtime.run("up")
        _wait_for(runtime, 2)
        runtime.run("down")

        file.write_text("num_replicas = 0")
        refused = runtime.run("up", status=None)
        assert refused.returncode != 0
        assert "num_replicas is 0; it must be from 1 to 100" in refused.stdout + refused.stderr


def _replicas(runtime: Runtime) -> int:
    found = 0
    for process in runtime.tree():
        try:
            found += "ServeReplica" in " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def _wait_for(runtime: Runtime, count: int) -> None:
    until = time.monotonic() + _PATIENCE_S
    while (found := _replicas(runtime)) != count:
        assert time.monotonic() < until, f"{found} replicas, and not {count}{runtime.log()}"
        time.sleep(0.05)


@contextmanager
def _load(url: str, key: str) -> Iterator[list[int]]:
    """Six clients that ask one question after the other; the statuses of their answers."""
    stop = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            while not stop.is_set():
                answers.append(client.get("/v1/tenants", timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
