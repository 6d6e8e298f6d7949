"""The guide to moving a big tenant: its commands do what it says, and print what it prints.

With an airline that is small, in this process; `make guide` runs them as they are printed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from typing import Any

import pytest
from support.guide import MoveIds, commands, labels, prints, program
from support.running_api import MakeRunning
from support.two_servers import TwoServers

#: What needs a runtime with processes of its own.
_OF_A_RUNTIME = ("up", "down", "status", "doctor")
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
}


def _words(text: str) -> list[str]:
    """The arguments of a command, about a small airline, without the settings before it."""
    words = shlex.split(text)
    words = words[words.index("tenancy") + 1 :]
    return ["as" if word == "ev" else word for word in words]


def test_the_guide_has_commands_and_what_they_print():
    found = commands()
    assert len(found) > 20
    for command in found:
        assert labels(command.printed), f"{command.text} prints nothing in the guide"


@pytest.mark.timeout(120)
async def test_the_commands_of_the_guide_work(make_running: MakeRunning):
    running = await make_running(**QUICK)
    moves = running.api.engine.moves
    ids = MoveIds()
    for command in commands():
        words = _words(ids.in_command(command.text))
        if words[0] in _OF_A_RUNTIME:
            continue
        # What is started only to be paused does not run ahead of the pause.
        held = "--no-wait" in words or words[:2] == ["move", "pause"]
        if held:
            moves.work(only="m_" + "0" * 20)
        else:
            moves.work()
        said = await running.run(*words)
        ids.note(said.out)
        while words[:2] == ["move", "show"] and not prints(said.out, command):
            # The second comparison comes when it is open already.
            said = await running.run(*words)
        missing = labels(command.printed) - labels(said.out)
        assert not missing, f"{command.text} does not print {missing}:\n{said.out}"
    ends = [move.state for move in await moves.moves()]
    assert ends == ["confirmed", "cancelled", "confirmed", "confirmed", "rolled_back"]


@pytest.mark.timeout(120)
async def test_the_program_of_the_guide_prints_what_it_says(two_servers: TwoServers, tmp_path):
    code, printed = program()
    settings = two_servers.install.settings
    first, second = two_servers.config().servers
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if not name.startswith("TENANCY_")}
        | {
            "TENANCY_HOME": str(tmp_path / "state"),
            "TENANCY_DATABASE": settings.database,
            "TENANCY_MASTER_KEY": settings.master_key or "",
            "MAIN_DSN": first.dsn,
            "SECOND_DSN": second.dsn,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await running.communicate()
    assert running.returncode == 0, errors.decode()[-3000:]
    assert output.decode() == printed
