"""Plans learn from the moves of this installation, and moves from themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import ask
from support.http_api import HttpApi
from support.install import Install
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.move_estimate import MoveEstimate
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.mover import announced_s

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_estimate_rows_min": 100,
    "move_estimate_moves": 2,
    "move_chunk_rows": 50,
}
WAIT_S = 30.0
ROWS = 200


@pytest.fixture
async def engine(two_servers: TwoServers) -> AsyncIterator[Engine]:
    async with two_servers.opened(**QUICK) as made:
        await made.apply_migration("0001_items", "create table items (id int primary key, t text)")
        for name, rows in (("large", ROWS), ("small", 3)):
            await made.create_tenant(
                TenantContext(tenant_id=name), level=ROW, server=ServerName("main")
            )
            fill = f"insert into items select n, 'item' from generate_series(1, {rows}) n"
            await ask(made, name, fill)
        yield made


async def moved(engine: Engine, name: str, **target: Any) -> Move:
    move = await engine.moves.start(name, MoveTarget(**target))
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    assert move.state is MoveState.OPEN, move
    await engine.moves.confirm(move.move_id)
    return await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)


async def expected(engine: Engine, **target: Any) -> MoveEstimate:
    return (await engine.moves.plan("large", MoveTarget(**target))).estimate


async def took(install: Install, move: Move, carry_s: float, held_ms: float) -> None:
    """As if the move had taken so long, and had not copied what the runtime keeps with a tenant."""
    progress = {"prepare_s": 0.5, "copy_s": carry_s / 2, "prove_s": carry_s / 2}
    progress["rows_copied"] = move.report["plan"]["rows"]
    async with install.connected() as connection:
        await connection.execute(
            "update catalog.move set progress = progress || $2::text::jsonb, "
            "report = jsonb_set(report, '{cutover,held_ms}', $3::text::jsonb) where move_id = $1",
            move.move_id,
            json.dumps(progress),
            str(held_ms - move.report["cutover"]["drain_ms"]),
        )


async def test_a_plan_learns_from_finished_moves_of_the_same_kind(engine: Engine, install: Install):
    assert (await expected(engine, level=SCHEMA)).basis.startswith("no moves yet: assumed")

    # A move of few rows says how long a tenant is held, and what it takes to begin.
    small = await moved(engine, "small", level=SCHEMA)
    await took(install, small, 1.0, 6.0)
    there = await expected(engine, level=SCHEMA)
    assert (there.moves, there.pauses, there.pause_ms, there.setup_s) == (0, 1, 6.0, 0.5)
    assert (await expected(engine, level=DATABASE)).setup_s != 0.5

    first = await moved(engine, "large", level=SCHEMA)
    assert first.progress.copy_s > 0
    assert first.report["plan"]["rows"] == ROWS
    assert first.report["plan"]["bytes"] > ROWS
    await took(install, first, 10.0, 8.0)
    back = await expected(engine, level=ROW)
    assert (back.rows_per_s, back.moves, back.pauses, back.pause_ms) == (20.0, 1, 2, 7.0)
    assert back.bytes_per_s == pytest.approx(first.report["plan"]["bytes"] / 10)
    assert back.duration_s == pytest.approx(
        back.setup_s + 10 + announced_s(engine.settings), abs=0.06
    )
    assert back.basis.startswith("from 1 move here: 20 rows/s, ")
    assert back.basis.endswith(" MB/s; pause from 2")

    # Between servers it is another matter.
    away = {"level": SCHEMA, "server": ServerName(SECOND)}
    assert (await expected(engine, **away)).basis.startswith("no moves yet")
    far = await moved(engine, "large", **away)
    await took(install, far, 100.0, 50.0)
    home = await expected(engine, level=SCHEMA, server=ServerName("main"))
    assert (home.rows_per_s, home.moves, home.pause_ms) == (2.0, 1, 50.0)
    assert (await expected(engine, level=DATABASE)).rows_per_s == 20.0

    # Of three it remembers two.
    for carry_s in (40.0, 20.0):
        level = DATABASE if carry_s == 40 else SCHEMA
        await took(install, await moved(engine, "large", level=level), carry_s, 4.0)
    newest = await expected(engine, level=ROW)
    assert (newest.rows_per_s, newest.moves) == (7.5, 2)


async def test_what_came_to_nothing_and_what_did_not_measure_itself_teaches_nothing(
    engine: Engine, install: Install
):
    stopped = await engine.moves.start("large", MoveTarget(level=SCHEMA))
    await engine.moves.pause(stopped.move_id)
    await engine.moves.cancel(stopped.move_id)
    await engine.moves.wait(stopped.move_id, [], timeout_s=WAIT_S)
    old = await moved(engine, "large", level=SCHEMA)
    async with install.connected() as connection:
        await connection.execute(
            "update catalog.move set progress = progress - 'copy_s' where move_id = $1",
            old.move_id,
        )
    assert (await expected(engine, level=ROW)).basis.startswith("no moves yet")


async def test_progress_is_told_at_the_moves_own_rate(engine: Engine):
    told: list[Move] = []
    move = await engine.moves.start("large", MoveTarget(level=SCHEMA))
    await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S, progress=told.append)
    done = told[-1].progress
    assert done.rows_copied == done.rows_total >= ROWS
    assert done.remaining_s == 0.0
    assert min(done.prepare_s, done.copy_s, done.prove_s) > 0
    for progress in (item.progress for item in told if item.progress.rows_copied):
        left = (done.rows_total - progress.rows_copied) * progress.copy_s / progress.rows_copied
        assert progress.remaining_s == pytest.approx(left, abs=0.06)
    seconds = [item.progress.copy_s for item in told]
    assert seconds == sorted(seconds)


async def test_the_interface_says_on_what_a_plan_rests(api: HttpApi):
    await api.migrate()
    await api.tenant("acme", "row")
    path, body = "/v1/tenants/acme/moves", {"isolation_level": "schema", "dry_run": True}
    plan = (await api.admin.post(path, json=body)).json()
    assert plan["estimate"] == {
        "rows_per_s": 50_000,
        "bytes_per_s": None,
        "setup_s": 0.5,
        "moves": 0,
        "pauses": 0,
        "basis": "no moves yet: assumed 50,000 rows/s and a pause of 12 ms",
    }
    document = (await api.admin.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["MoveEstimateAnswer"]["properties"]
    assert set(fields) == set(plan["estimate"])
    assert all(field["description"] for field in fields.values())
