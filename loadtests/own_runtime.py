"""A runtime that a benchmark starts and stops for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
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
    environment: Mapping[str, str]

    def tenancy(self, *arguments: str) -> Any:
        """What a command of the command line answers. Raises `SystemExit` when it fails."""
        return _answer(self.environment, *arguments)


@contextmanager
def own_runtime(settings: Mapping[str, str] | None = None) -> Iterator[OwnRuntime]:
    """A runtime that is up for the block; `settings` (`TENANCY_*`) as they are given."""
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        environment = os.environ | {"TENANCY_HOME": home, "TENANCY_HTTP_PORT": "0"}
        environment |= settings or {}
        state = _answer(environment, "up")
        try:
            key = Path(state["admin_key_file"]).read_text().strip()
            yield OwnRuntime(home=Path(home), url=state["url"], key=key, environment=environment)
        finally:
            _answer(environment, "down")


def _answer(environment: Mapping[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tenancy.data_isolation.serve.cli", *arguments, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout}")
    return json.loads(done.stdout)
