"""The mover, as the plain class that Ray makes an actor of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.actor_file import actor_file
from support.engines import ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.actors import move_actor
from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
)
from tenancy.data_isolation.actors.directory import MOVER_NAME, build_directory
from tenancy.data_isolation.actors.move_actor import MoveActor
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel


@pytest.fixture
async def mover(install: Install, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MoveActor]:
    """The mover of an installation whose configuration is not written yet."""
    monkeypatch.setattr(move_actor, "_RETRY_S", 0.01)
    made = MoveActor(MOVER_NAME, str(configuration_path(install.settings)))
    yield made
    await made.close()


async def test_it_begins_by_itself_as_soon_as_it_can(install, mover):
    with pytest.raises(SetupError, match="does not exist"):
        await mover.health()

    async with opened(install) as engine:
        await make_tenant(engine)
        move = await engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
        actor_file(install)

        open_move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=30)
        assert open_move.state is MoveState.OPEN
        assert (await mover.health())["pid"] > 0
        # A process that starts meanwhile takes what belongs to the move for nothing else.
        async with opened(install, tables=False) as another:
            assert (await ask(another, "acme", "select count(*) from users")).rows == [[3]]


async def test_it_lets_go_of_its_moves_when_it_ends_and_another_goes_on(install, mover):
    actor_file(install)
    async with opened(install) as engine, install.connected() as admin:
        await make_tenant(engine)
        move = await engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
        await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=30)

        await mover.close()
        mine = "select count(*) from pg_stat_activity where application_name like 'tenancy m%'"
        while await admin.fetchval(f"{mine} and datname = current_database()"):
            await asyncio.sleep(0.01)
        engine.moves.work()
        await engine.moves.confirm(move.move_id)

        done = await engine.moves.wait(move.move_id, [], timeout_s=30)
        assert done.state is MoveState.CONFIRMED


def test_it_takes_next_to_none_of_the_tenants_sessions(installed_model):
    configuration = ActorConfiguration(
        settings=installed_model.settings,
        servers=(installed_model.server_config,),
        directory=build_directory(version=1, actors_per_region=2),
    )

    found = configuration.engine_config(MOVER_NAME).resolved_settings()

    assert found.server_connections_max == 1
