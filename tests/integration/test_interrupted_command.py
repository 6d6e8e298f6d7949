"""Ctrl-C at any time of the command `tenancy`: while it is imported, at work, and at its end."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

_SCRIPT = Path(sysconfig.get_path("scripts")) / "tenancy"
#: Has a process send itself the signal: when a module begins to be imported, or by itself.
_RUN = """
import os, runpy, signal, sys

way, script, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
# Whoever runs the tests may have it ignored, as jobs in the background have.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == way:
            os.kill(os.getpid(), signal.SIGINT)

if way == "the end":
    import atexit
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
elif way == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    way = "typer"
sys.meta_path.insert(0, Interrupting)
runpy.run_path(script, run_name="__main__")
"""


def _run(way: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _RUN, way, str(_SCRIPT), *arguments],
        env={"TENANCY_HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize(
    "way", ["tenancy.data_isolation.serve.cli", "typer", "pydantic_core", "httpx", "the end"]
)
def test_an_interrupted_command_says_so_in_one_line(way, tmp_path):
    done = _run(way, tmp_path, "settings")

    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    match way:
        case "the end":
            # What it had to say was said.
            assert "TENANCY_HTTP_PORT" in done.stdout
            assert lines[-1] == "error: interrupted"
        case "pydantic_core":
            # The command is at work: something may have been asked of the runtime.
            assert lines[0] == "error: interrupted"
            assert lines[1].startswith("hint: ")
        case _:
            assert lines == ["error: interrupted"]
            assert done.stdout == ""


def test_a_command_in_the_background_is_not_interrupted(tmp_path):
    done = _run("ignored", tmp_path, "settings", "--json")

    assert done.returncode == 0
    assert done.stdout.startswith("{")
