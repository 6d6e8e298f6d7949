"""Every command of the README runs, in the order in which a newcomer types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    blocks = _BLOCK.findall((ROOT / "README.md").read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def _programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def _as_typed(command: str) -> str:
    """The command for another directory: `make` finds its Makefile in the checkout."""
    return re.sub(r"^make ", f"make -C {shlex.quote(str(ROOT))} ", command)


def test_the_readme_has_commands():
    assert "make demo" in _commands()
    assert len(_commands()) > 10


@pytest.mark.timeout(300)
def test_the_programs_of_the_readme_run_and_run_again(tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TENANCY_")
    }
    tmp_path.chmod(0o755)
    said = []
    assert len(_programs()) == 2
    for program in (*_programs(), *_programs()):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout)
    assert said[0] == said[2] == "[[1]]\n"
    assert said[1].startswith("[[0]] hybrid\n")


@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_work(tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TENANCY_")
    } | {
        "TENANCY_HOME": str(tmp_path / ".tenancy"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    tmp_path.chmod(0o755)
    try:
        for command in _commands():
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-ec", _as_typed(command)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            said = f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            assert done.returncode == 0, said
            assert "Traceback" not in done.stderr, said
    finally:
        subprocess.run(
            [sys.executable, "-m", "tenancy.data_isolation.serve.cli", "down"],
            env=environment,
            capture_output=True,
            timeout=120,
            check=False,
        )
