"""Another process finds a running installation through its home directory."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
import ray
from support.orders import make_tenants

from tenancy.data_isolation.actors.client import _join, _running
from tenancy.data_isolation.core.errors import SetupError

PROGRAM = """
import asyncio, sys
import ray
from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.core.errors import TenancyError

client = connect(home=sys.argv[1])
handle = client.tenant("acme")
ray.get(handle.query.remote("insert into orders (id, note) values ($1, $2)", [1, "x"]))

async def main():
    async with client:
        result = await client.execute("acme", "select id, note from orders")
        print(result.rows)
        try:
            await client.execute("acme", "no sql")
        except TenancyError as error:
            print(type(error).__name__)

asyncio.run(main())
print(ray.is_initialized())
"""


def _environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}


async def _run(*arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        *arguments,
        env=_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_at_which_nobody_listens_is_told_at_once(address):
    with pytest.raises(SetupError, match=f"no Ray cluster listens at {address}"):
        _join(address, None)


def test_a_home_that_was_stopped_is_told_like_one_that_never_ran(tmp_path):
    (tmp_path / "run").mkdir()
    state = {"state": "stopped", "ray_address": None, "ray_auth_token_file": "x"}
    (tmp_path / "run" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SetupError, match=r"nothing runs under .*tenancy up"):
        _join(None, tmp_path)


def _write_state(home, token):
    run = home / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "token").write_text(token)
    state = {
        "ray_address": ray.get_runtime_context().gcs_address,
        "ray_auth_token_file": str(run / "token"),
    }
    (run / "state.json").write_text(json.dumps(state))


async def test_a_process_joins_by_the_home_directory_and_leaves_again(start, tmp_path):
    running = await start()
    await make_tenants(running.engine, "acme")
    _write_state(tmp_path, os.environ["RAY_AUTH_TOKEN"])

    code, output, errors = await _run(str(tmp_path))

    assert code == 0, errors
    assert output.splitlines() == ["[[1, 'x']]", "StatementSyntaxError", "False"]


async def test_a_wrong_token_is_turned_away_with_a_clear_error(start, tmp_path):
    await start()
    _write_state(tmp_path, "ab" * 32)

    code, _, errors = await _run(str(tmp_path))

    assert code != 0
    assert "SetupError" in errors


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_where_nothing_runs_the_error_says_how_to_start(tmp_path, text):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run" / "state.json").write_text(text)

    with pytest.raises(SetupError, match="tenancy up"):
        _running(tmp_path)
