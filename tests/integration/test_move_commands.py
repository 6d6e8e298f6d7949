"""`tenancy tenant move` and `tenancy move`, in this process, over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import sys
from contextlib import AsyncExitStack

import pytest
from support.running_api import RunningApi, Said

from tenancy.data_isolation.core import IsolationLevel, TenancyError, TenantContext
from tenancy.data_isolation.core.errors import (
    LimitError,
    ServerUnavailableError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.move import MoveState, MoveTarget, MoveWish
from tenancy.data_isolation.core.types import TenantSize
from tenancy.data_isolation.serve.api import create_api
from tenancy.data_isolation.serve.composition import open_services


@pytest.fixture
async def acme(running: RunningApi) -> RunningApi:
    """The interface with a tenant that has some rows."""
    await running.api.migrate()
    context = TenantContext(tenant_id="acme")
    await running.api.engine.create_tenant(context, level=IsolationLevel.ROW)
    await running.sql(
        "acme", "insert into users (id, email) select n, n::text from generate_series(1, 3) n"
    )
    return running


def fields(said: Said) -> dict[str, str]:
    """What a command printed, by the names in front."""
    found = {}
    for line in said.out.splitlines():
        name, _, value = line.partition("  ")
        found.setdefault(name, value.strip())
    return found


async def test_a_tenant_is_moved_and_the_move_confirmed(acme: RunningApi):
    plan = await acme.run("tenant", "move", "acme", "--to", "schema", "--dry-run")
    told = fields(plan)
    assert (told["from"], told["to"], told["possible"]) == ("row on main", "schema on main", "yes")
    assert told["rows"].startswith("3 in ")
    assert told["estimate"].startswith("no moves yet: assumed 50,000 rows/s")

    acme.api.engine.moves.work()
    moved = await acme.run("tenant", "move", "acme", "--to", "schema")
    told = fields(moved)
    move_id = told["move"]
    assert told["state"] == "open"
    assert f"next: tenancy move confirm {move_id}, or tenancy move rollback {move_id}" in moved.out
    assert f"{move_id}: open" in moved.err.splitlines()

    listed = await acme.run("move", "list", "--unsettled", "--json")
    assert [item["move_id"] for item in listed.json()["moves"]] == [move_id]
    confirmed = (await acme.run("move", "confirm", move_id, "--json")).json()
    assert (confirmed["state"], confirmed["settled"]) == ("confirmed", True)
    shown = await acme.run("move", "show", move_id)
    assert "compared after the cutover:" in shown.out
    assert "planned: about " in shown.out
    assert re.search(r"^took +.* s to prepare, .* s to copy, .* s to prove$", shown.out, re.M)
    assert (await acme.run("move", "watch", move_id, "--json")).json()["state"] == "confirmed"
    assert (await acme.run("move", "show", move_id, "--json")).json()["report"]["after"]
    assert move_id in (await acme.run("move", "list")).out
    assert (await acme.run("move", "list", "--unsettled", "--json")).json()["moves"] == []
    again = await acme.run("move", "rollback", move_id, status=1)
    assert "is confirmed" in again.err
    given_up = await acme.run("move", "abandon", move_id, "--yes", status=1)
    assert "is settled; nothing of it waits for a server" in given_up.err
    assert "add --yes" in (await acme.run("move", "abandon", move_id, status=2)).err


async def test_with_confirm_it_is_one_command_and_rollback_brings_it_back(acme: RunningApi):
    acme.api.engine.moves.work()
    failures = [ServerUnavailableError(), ServerUnavailableError()]

    async def fail(path: str) -> TenancyError | None:
        return failures.pop() if path.startswith("/v1/moves/") and failures else None

    # A runtime that is away for a moment is waited for.
    acme.hook = fail
    moved = await acme.run("tenant", "move", "acme", "--to", "database", "--confirm", "--json")
    assert (moved.json()["state"], moved.json()["settled"]) == ("confirmed", True)
    assert failures == []

    opened = await acme.run("tenant", "move", "acme", "--to", "row", "--priority", "7", "--json")
    assert (opened.json()["state"], opened.json()["priority"]) == ("open", 7)
    back = await acme.run("move", "rollback", opened.json()["move_id"])
    assert fields(back)["state"] == "rolled_back"
    assert (await acme.run("tenant", "show", "acme", "--json")).json()["isolation_level"] == (
        "database"
    )


async def test_a_move_is_started_paused_resumed_and_cancelled_without_waiting(acme: RunningApi):
    started = await acme.run("tenant", "move", "acme", "--to", "schema", "--no-wait", "--json")
    move_id = started.json()["move_id"]
    assert started.json()["state"] == "planned"

    paused = await acme.run("move", "pause", move_id)
    assert fields(paused)["state"] == "planned (paused)"
    assert f"tenancy move resume {move_id}" in paused.out
    assert (await acme.run("move", "resume", move_id, "--json")).json()["paused"] is False
    asked = await acme.run("move", "cancel", move_id, "--no-wait")
    assert fields(asked)["state"] == "planned (cancelling)"
    acme.api.engine.moves.work()
    await acme.api.engine.moves.wait(move_id, [], timeout_s=20)
    assert fields(await acme.run("move", "show", move_id))["state"] == "cancelled"


async def test_a_move_that_was_given_up_while_somebody_waited_is_an_error(acme: RunningApi):
    waiting = asyncio.create_task(
        acme.run("tenant", "move", "acme", "--to", "schema", "--json", status=1)
    )
    while not (found := await acme.api.engine.moves.moves()):
        await asyncio.sleep(0.01)
    watching = asyncio.create_task(acme.run("move", "watch", found[0].move_id, status=1))
    await acme.api.engine.moves.cancel(found[0].move_id)
    acme.api.engine.moves.work()

    assert (await waiting).json()["state"] == "cancelled"
    assert (await watching).status == 1


async def test_a_move_that_is_open_before_it_can_be_cancelled_is_an_error(
    acme: RunningApi, install
):
    moves = acme.api.engine.moves
    move = await moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
    waiting = asyncio.create_task(acme.run("move", "cancel", move.move_id, status=1))
    while (await moves.move(move.move_id)).wish is not MoveWish.CANCEL:
        await asyncio.sleep(0.01)
    # As when the move changes its place before its mover has seen the wish.
    async with install.connected() as connection:
        await connection.execute("update catalog.move set wish = null")
    moves.work()

    said = await waiting
    assert fields(said)["state"] == "open"
    assert f"error: too late to cancel: move {move.move_id} is open" in said.err
    assert f"tenancy move rollback {move.move_id}" in said.err


async def test_a_plan_says_when_it_has_not_counted(acme: RunningApi):
    async def too_busy(_tenant: TenantId) -> TenantSize:
        raise LimitError("not in time")

    acme.api.engine.moves.measure_by(too_busy)
    told = fields(await acme.run("tenant", "move", "acme", "--to", "schema", "--dry-run"))
    assert told["rows"].startswith("not counted, in ")
    assert told["takes"].startswith("not known")


async def test_what_cannot_be_is_told_with_its_exit_status(acme: RunningApi):
    refused = await acme.run("tenant", "move", "acme", "--to", "row", status=1)
    plan = await acme.run("tenant", "move", "acme", "--to", "row", "--dry-run", status=1)
    planned = await acme.run(
        "tenant", "move", "acme", "--to", "row", "--dry-run", "--json", status=1
    )
    assert refused.err.startswith("error: tenant acme cannot be moved: it is at level row")
    assert fields(plan)["possible"] == "no"
    assert "- it is at level row on server main already" in plan.out
    assert planned.json()["refused"][0]["code"] == "already_there"
    for arguments, status in (
        (("tenant", "move", "acme"), 2),
        (("tenant", "move", "acme", "--to", "cell"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--priority", "101"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--confirm", "--no-wait"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--confirm", "--dry-run"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--no-wait", "--dry-run"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--priority", "0", "--dry-run"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--timeout", "9", "--dry-run"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--timeout", "9", "--no-wait"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--timeout", "nan"), 2),
        (("tenant", "move", "acme", "--to", "schema", "--timeout", "0.5"), 2),
        (("move", "watch", "m_1", "--timeout", "nan"), 2),
        (("move", "confirm", "m_1", "--timeout", "9", "--no-wait"), 2),
        (("move", "rollback", "m_1", "--timeout", "9", "--no-wait"), 2),
        (("move", "cancel", "m_1", "--timeout", "9", "--no-wait"), 2),
        (("move", "abandon", "m_1", "--timeout", "9", "--no-wait"), 2),
        (("tenant", "move", "ghost", "--to", "schema"), 1),
        (("tenant", "move", "acme", "--server", "elsewhere"), 1),
        (("tenant", "move", "acme", "--region", "nowhere"), 1),
        (("move", "show", "m_1"), 1),
        (("move", "confirm", ".."), 1),
        (("move", "list", "--tenant", "ghost"), 1),
        (("move",), 2),
    ):
        said = await acme.run(*arguments, status=status)
        assert said.out == ""
        assert len(said.err.splitlines()) <= 2 or arguments == ("move",)
    assert await acme.api.engine.moves.moves() == []


async def begun(acme: RunningApi, *arguments: str) -> asyncio.subprocess.Process:
    """The command in a process of its own, which can be interrupted."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tenancy.data_isolation.serve.cli", *arguments),
        env=os.environ | {"TENANCY_HOME": str(acme.home)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Whoever runs the tests in the background of a script has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def interrupted(waiting: asyncio.subprocess.Process) -> list[str]:
    """What it says at Ctrl-C on standard error."""
    waiting.send_signal(signal.SIGINT)
    output, errors = await waiting.communicate()
    assert (waiting.returncode, output) == (130, b""), errors
    return errors.decode().splitlines()


async def test_who_stops_waiting_leaves_the_move_going(acme: RunningApi):
    waiting = await begun(acme, "tenant", "move", "acme", "--to", "schema", "--json")
    assert waiting.stderr is not None
    told = (await waiting.stderr.readline()).decode()
    move_id = told.partition(":")[0]

    assert await interrupted(waiting) == [
        f"error: interrupted; move {move_id} goes on (waiting)",
        f"hint: tenancy move show {move_id}",
    ]
    assert (await acme.api.engine.moves.move(move_id)).wish is None


async def test_a_confirmation_that_ctrl_c_has_dropped_is_told(acme: RunningApi):
    waiting = await begun(acme, "tenant", "move", "acme", "--to", "schema", "--confirm")
    assert waiting.stderr is not None
    move_id = (await waiting.stderr.readline()).decode().partition(":")[0]

    assert await interrupted(waiting) == [
        f"error: interrupted; move {move_id} goes on (waiting), and is NOT confirmed",
        f"hint: tenancy move show {move_id}; once it is open: tenancy move confirm {move_id}",
    ]
    acme.api.engine.moves.work()
    await acme.api.engine.moves.wait(move_id, [MoveState.OPEN], timeout_s=20)
    assert (await acme.api.engine.moves.move(move_id)).wish is None


@pytest.mark.parametrize(
    ("held", "error", "hint"),
    [
        (
            "/v1/tenants/acme/moves",
            "whether a move of tenant acme was started is not known, and it is NOT confirmed",
            "tenancy move list --tenant acme --unsettled; once it is open: tenancy move confirm",
        ),
        ("/confirm", "is open, and whether it was confirmed is not known", "tenancy move confirm"),
    ],
)
async def test_ctrl_c_before_an_answer_leaves_that_open(
    acme: RunningApi, held: str, error: str, hint: str
):
    acme.api.engine.moves.work()
    reached, done = asyncio.Event(), asyncio.Event()

    async def hold(path: str) -> TenancyError | None:
        if path.endswith(held):
            reached.set()
            await done.wait()
        return None

    acme.hook = hold
    waiting = await begun(acme, "tenant", "move", "acme", "--to", "schema", "--confirm")
    await reached.wait()
    said = await interrupted(waiting)
    done.set()

    assert said[-2].startswith("error: interrupted; ")
    assert said[-2].endswith(error)
    assert said[-1].startswith(f"hint: {hint}")


async def test_a_wait_ends_when_its_time_is_over_and_the_move_goes_on(acme: RunningApi):
    waited = ("tenant", "move", "acme", "--to", "schema", "--timeout", "1")
    said = await acme.run(*waited, "--confirm", "--json", status=4)
    found = said.json()
    move_id = found["move_id"]
    assert (found["phase"], found["wish"]) == ("waiting", None)
    assert said.err.splitlines()[-2:] == [
        f"error: 1 s are over; move {move_id} goes on (waiting), and is NOT confirmed",
        f"hint: tenancy move show {move_id}; once it is open: tenancy move confirm {move_id}",
    ]
    watched = await acme.run("move", "watch", move_id, "--timeout", "1", status=4)
    assert watched.out == ""
    assert f"error: 1 s are over; move {move_id} goes on (waiting)" in watched.err.splitlines()
    cancelled = await acme.run("move", "cancel", move_id, "--timeout", "1", status=4)
    assert f"1 s are over; move {move_id} goes on (cancelling)" in cancelled.err
    assert (await acme.api.engine.moves.move(move_id)).wish is MoveWish.CANCEL


@pytest.mark.parametrize("what", ["confirm", "rollback"])
async def test_time_is_over_also_while_the_runtime_is_away(acme: RunningApi, what: str):
    acme.api.engine.moves.work()
    move = await acme.api.engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
    await acme.api.engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=20)

    async def away(path: str) -> TenancyError | None:
        return ServerUnavailableError() if path == f"/v1/moves/{move.move_id}" else None

    acme.hook = away
    said = await acme.run("move", what, move.move_id, "--timeout", "1", "--json", status=4)
    assert said.json()["move_id"] == move.move_id
    assert f"; 1 s are over; move {move.move_id} goes on (" in said.err
    assert str(ServerUnavailableError()) in said.err


async def test_a_mover_that_is_away_is_told_and_makes_no_process_unready(running: RunningApi):
    assert (await running.run("status", "--json")).json()["state"] == "running"

    async def away() -> None:
        raise UnavailableError("moves stand still")

    async with AsyncExitStack() as stack:
        engine = running.api.engine
        services = await open_services(engine, engine, stack, advisory_probes={"moves": away})
        running.api = dataclasses.replace(running.api, app=create_api(services))

        ready = await (await running.api.client(None)).get("/readyz")
        told = await running.run("status", status=4)

    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert ready.json()["checks"]["moves"] == "moves stand still"
    assert fields(told)["state"] == "degraded"
    assert fields(told)["detail"] == "moves: moves stand still"
