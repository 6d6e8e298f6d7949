"""Moves of which a server is lost for good: the tenant is served, and an operator can finish."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.engines import TABLES, ask
from support.install import Install
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.postgres import KillableServer, killable
from support.two_servers import SECOND
from support.writers import contents, filled, written_to

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.serve.check import Check, Result
from tenancy.data_isolation.serve.server_checks import DoctorOptions, _Examination

WAIT_S = 40.0
ROW, SCHEMA = IsolationLevel.ROW, IsolationLevel.SCHEMA
MAIN = ServerName("main")
HELD = "execute select set_config('lock_timeout', $2"
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_chunk_rows": 20,
    **FLAT_OUT,
    "move_owner_timeout_s": 0.5,
    "move_retry_s": 0.1,
    "move_failures_max": 4,
    "control_timeout_s": 0.001,
}


@pytest.fixture
def second(postgres_bin: Path) -> Iterator[KillableServer]:
    """A server that is lost."""
    with killable(postgres_bin) as server:
        yield server


@asynccontextmanager
async def opened_with(install: Install, second: KillableServer) -> AsyncIterator[Engine]:
    config = EngineConfig(
        servers=(
            install.server_config,
            ServerConfig(name=SECOND, dsn=second.server.admin_dsn),
        ),
        settings=dataclasses.replace(install.settings, **QUICK),
    )
    async with await Engine.open(config) as engine:
        await engine.apply_migration("0001_users", TABLES)
        yield engine


async def findings(install: Install, engine: Engine) -> list[Finding]:
    """What the doctor says of moves and of servers."""
    # Not patient with those who may be at work just now.
    settings = dataclasses.replace(engine.settings, move_owner_timeout_s=0.001)
    looks = await inspection_of(settings, engine.admin).look(install.master_key)
    told = [finding for look in looks for finding in look.findings]
    return [finding for finding in told if finding.check in ("moves", "reachable")]


async def checked(engine: Engine) -> dict[str, Check]:
    """What `tenancy doctor` says, by the names of its checks."""
    config = EngineConfig(servers=engine.servers, settings=engine.settings)
    async with AsyncExitStack() as stack:
        examination = await _Examination.begin(config, DoctorOptions(), stack)
        return {check.name: check async for check in examination.checks()}


async def stuck(engine: Engine, move: Move) -> Move:
    """The move, once it has said what it waits for."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await engine.moves.move(move.move_id)).error:
            await asyncio.sleep(0.02)
    return found


@pytest.mark.timeout(120)
async def test_a_tenant_is_served_when_the_server_that_it_has_left_is_lost(
    install: Install, second: KillableServer
):
    async with opened_with(install, second) as engine:
        before = await filled(engine, "acme", level=SCHEMA, server=ServerName(SECOND))
        fate = Fate("after execute COMMIT", beyond=HELD, nth=2, act=lambda _: second.kill())
        async with written_to(engine, "acme") as writer:
            move = await engine.moves.start("acme", MoveTarget(level=ROW, server=MAIN))
            async with mover(engine, fate):
                async with asyncio.timeout(WAIT_S):
                    await fate.happened.wait()
                await writer.more(20)
                await engine.moves.confirm(move.move_id)
                move = await stuck(engine, move)
                assert (move.state, "after" in move.report) == (MoveState.OPEN, False)
                assert move.error is not None
                assert "'second'" in move.error
                assert "does not answer" in move.error

                unreachable, waits = sorted(
                    await findings(install, engine), key=lambda found: found.check, reverse=True
                )
                assert unreachable.subject == "server second"
                assert f"tenancy move abandon {move.move_id}" in waits.advice

                checks = await checked(engine)
                assert checks["servers second"].result is Result.FAIL
                assert "does not answer" in checks["servers second"].detail
                # The other one was looked at all the same.
                assert {"tables main", "clock of main"} <= checks.keys()
                assert "clock of second" not in checks

                await engine.moves.abandon(move.move_id)
                done = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
                assert (done.state, done.is_settled) == (MoveState.CONFIRMED, True)
                assert done.report["abandoned"]["server"] == SECOND
            await writer.more(20)
        writer.check(await contents(engine, "acme"), before)
        # Nothing of it is left where the tenant works, and it can be moved again.
        assert [found.check for found in await findings(install, engine)] == ["reachable"]
        engine.moves.work()
        again = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        again = await engine.moves.wait(again.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        assert again.state is MoveState.OPEN
        with pytest.raises(ConflictError, match="server main answers"):
            await engine.moves.abandon(again.move_id)
        # When that server comes back nobody can work there, and what is left is told.
        second.start()
        left = await findings(install, engine)
        assert {found.check for found in left} == {"moves"}
        assert all(found.server == SECOND for found in left)


@pytest.mark.timeout(120)
async def test_a_move_whose_target_is_lost_fails_and_can_be_settled(
    install: Install, second: KillableServer
):
    async with opened_with(install, second) as engine:
        before = await filled(engine, "acme", level=SCHEMA, server=MAIN)
        fate = Fate("after execute COMMIT", beyond=HELD, act=lambda _: second.kill())
        async with written_to(engine, "acme") as writer:
            move = await engine.moves.start(
                "acme", MoveTarget(level=SCHEMA, server=ServerName(SECOND))
            )
            with pytest.raises(ConflictError, match="cancel it first"):
                await engine.moves.abandon(move.move_id)
            async with mover(engine, fate):
                async with asyncio.timeout(WAIT_S):
                    await fate.happened.wait()
                await writer.more(20)
                move = await engine.moves.wait(
                    move.move_id, [MoveState.FAILED, MoveState.OPEN], timeout_s=WAIT_S
                )
                assert move.state is MoveState.FAILED
                await stuck(engine, move)
                await engine.moves.abandon(move.move_id)
                done = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
                assert (done.state, done.is_settled) == (MoveState.FAILED, True)
        writer.check(await contents(engine, "acme"), before)
        with pytest.raises(ConflictError, match="is settled"):
            await engine.moves.abandon(move.move_id)
        assert (await ask(engine, "acme", "select count(*) from users")).row_count == 1
