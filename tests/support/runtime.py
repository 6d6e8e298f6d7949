"""The command `tenancy` in a home of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

TENANCY = Path(sys.executable).with_name("tenancy")
_COMMAND_TIMEOUT_S = 600


class Runtime:
    """The command in a home of its own."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        kept = {name: text for name, text in os.environ.items() if not name.startswith("TENANCY_")}
        self.env = kept | {"TENANCY_HOME": str(home), "TENANCY_HTTP_PORT": "0"} | settings

    def run(self, *arguments: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, from a directory that has nothing to do with it.

        Any exit status will do for None.
        """
        done = subprocess.run(
            [TENANCY, *arguments],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        assert status is None or done.returncode == status, (
            f"{arguments}: {done.stdout}{done.stderr}{self.log()}"
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def json(self, *arguments: str, status: int | None = 0) -> Any:
        """What the command prints with `--json`."""
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def log(self) -> str:
        """The end of the daemon's logs, for a failed assertion."""
        texts = []
        for path in sorted((self.home / "log").glob("*")):
            texts.append(f"\n== {path.name}\n{path.read_text(errors='replace')[-3_000:]}")
        return "".join(texts)

    def processes(self) -> list[psutil.Process]:
        """Every process that works in the home, or has something of it open."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = [process.cwd(), *process.cmdline()]
            except psutil.Error:
                continue
            if any(str(self.home) in word for word in words):
                found.append(process)
        return found

    def tree(self) -> list[psutil.Process]:
        """The daemon and every process below it."""
        daemon = psutil.Process(self.daemon())
        return [daemon, *daemon.children(recursive=True)]

    def daemon(self) -> int:
        """The daemon's process id."""
        pid: int = json.loads((self.home / "run" / "state.json").read_text())["daemon"]["pid"]
        return pid


@contextmanager
def ended(runtime: Runtime) -> Iterator[Runtime]:
    """Whatever a test does, nothing of it lives on."""
    try:
        yield runtime
    finally:
        subprocess.run(
            [TENANCY, "down"],
            env=runtime.env,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        for process in runtime.processes():
            process.kill()
