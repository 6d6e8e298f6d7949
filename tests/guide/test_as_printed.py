"""The guide to moving a big tenant, as a reader types it, on a runtime of its own: `make guide`."""

from __future__ import annotations

import subprocess

import pytest
from support.guide import MoveIds, commands, labels, prints
from support.runtime import TENANCY, Runtime, ended


@pytest.mark.timeout(900)
def test_the_guide_from_its_first_command_to_its_last(tmp_path_factory):
    runtime = Runtime(tmp_path_factory.mktemp("guide") / "home")
    environment = runtime.env | {"PATH": f"{TENANCY.parent}:{runtime.env['PATH']}"}
    ids = MoveIds()

    def typed(text: str) -> str:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-ec", text],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}{runtime.log()}"
        return done.stdout

    with ended(runtime):
        for command in commands():
            text = ids.in_command(command.text)
            printed = typed(text)
            while text.startswith("tenancy move show") and not prints(printed, command):
                # The second comparison comes when it is open already.
                printed = typed(text)
            print(f"$ {text}\n{printed}", flush=True)
            ids.note(printed)
            missing = labels(command.printed) - labels(printed)
            assert not missing, f"{text} does not print {missing}"
