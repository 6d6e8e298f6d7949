"""Moves through the Python client, and the mover as a real actor that is killed."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest
import ray
from support.orders import make_tenants

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.configuration import configuration_path
from tenancy.data_isolation.actors.directory import MOVER_NAME
from tenancy.data_isolation.actors.remote import (
    Actors,
    actor_names,
    start_mover,
    stop_actors,
    wait_for_mover,
)
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    MoveNotFoundError,
    MoveRefusedError,
    ServerNotFoundError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel

TO_SCHEMA = MoveTarget(level=IsolationLevel.SCHEMA)
TO_ROW = MoveTarget(level=IsolationLevel.ROW)


async def _pid(client):
    while True:
        try:
            found = await Actors(client.settings, client.directory).call(MOVER_NAME, "health")
        except Exception:  # It is starting again.
            continue
        return found["pid"]


async def test_a_tenant_moves_by_the_client_although_the_mover_is_killed(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    mover = start_mover(configuration_path(running.configuration.settings))
    await asyncio.to_thread(wait_for_mover, mover, 60)
    async with connect() as client:
        await client.execute("acme", "insert into orders (id, note) values (1, 'x')")
        plan = await client.moves.plan("acme", TO_SCHEMA)
        assert plan.is_possible
        assert plan.estimate.basis.startswith("no moves yet")

        move = await client.moves.start("acme", TO_SCHEMA, priority=3)
        told = []
        move = await client.moves.wait(
            move.move_id, [MoveState.OPEN], timeout_s=60, progress=told.append
        )
        assert (move.state, move.priority) == (MoveState.OPEN, 3)
        assert told

        pid = await _pid(client)
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 20)
        await client.moves.confirm(move.move_id)
        done = await client.moves.wait(move.move_id, [], timeout_s=60)

        assert done.state is MoveState.CONFIRMED
        assert await _pid(client) != pid
        assert (await client.execute("acme", "select id from orders")).rows == [[1]]
        assert [item.move_id for item in await client.moves.moves()] == [move.move_id]
        assert MOVER_NAME not in actor_names()
    stop_actors()
    with pytest.raises(ValueError, match=MOVER_NAME):
        ray.get_actor(MOVER_NAME, namespace="tenancy")


async def test_a_handle_starts_a_move_and_all_can_be_asked_of_it(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    client = connect()
    move = ray.get(client.tenant("acme").move.remote(TO_SCHEMA, priority=1))
    assert (move.state, move.tenant_id) == (MoveState.PLANNED, "acme")

    assert (await client.moves.pause(move.move_id)).paused
    assert not (await client.moves.resume(move.move_id)).paused
    assert (await client.moves.move(move.move_id)).priority == 1
    with pytest.raises(MoveRefusedError, match=move.move_id):
        await client.moves.start("acme", TO_SCHEMA)
    await client.moves.cancel(move.move_id)
    running.engine.moves.work()
    done = await client.moves.wait(move.move_id, [], timeout_s=60)
    assert done.state is MoveState.CANCELLED
    await client.aclose()


async def test_what_cannot_be_is_told_in_words_of_ours(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        with pytest.raises(TenantNotFoundError):
            await client.moves.plan("ghost", TO_SCHEMA)
        with pytest.raises(InvalidInputError):
            await client.moves.plan("Not A Tenant", TO_SCHEMA)
        with pytest.raises(ServerNotFoundError):
            await client.moves.start("acme", MoveTarget(server=ServerName("elsewhere")))
        with pytest.raises(MoveRefusedError):
            await client.moves.start("acme", TO_ROW)
        with pytest.raises(InvalidInputError):
            await client.moves.start("acme", TO_SCHEMA, priority=101)
        with pytest.raises(MoveNotFoundError):
            await client.moves.move("m_" + "0" * 20)
        with pytest.raises(InvalidInputError, match="moves have no"):
            await client.gateway._control(None, "moves", "close")
