"""A runtime that a benchmark starts and stops for itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnRuntime:
    """Where it keeps its state, where it listens, and the key of its operator."""

    home: Path
    url: str
    key: str


@contextmanager
def own_runtime(**variables: str) -> Iterator[OwnRuntime]:
    """A runtime that is up for the block, with these variables beside our own environment."""
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        own = {"TENANCY_HOME": home, "TENANCY_HTTP_PORT": str(free_port())}
        environment = os.environ | own | variables
        state = tenancy("up", environment)
        try:
            key = Path(state["admin_key_file"]).read_text().strip()
            yield OwnRuntime(home=Path(home), url=state["url"], key=key)
        finally:
            tenancy("down", environment)


def tenancy(command: str, environment: dict[str, str]) -> dict[str, Any]:
    """What a command of the command line answers."""
    done = subprocess.run(
        [sys.executable, "-m", "tenancy.data_isolation.serve.cli", command, "--json"],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def free_port() -> int:
    """A port of this machine that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
