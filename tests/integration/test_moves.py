"""Tenants move between placements while they are in use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.engines import ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install) as made:
        made.moves.work()
        yield made


async def moved(engine: Engine, tenant: str, level: IsolationLevel) -> None:
    move = await engine.moves.start(tenant, MoveTarget(level=level))
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=20)
    assert move.state is MoveState.OPEN, move
    await engine.moves.confirm(move.move_id)
    move = await engine.moves.wait(move.move_id, [], timeout_s=20)
    assert move.state is MoveState.CONFIRMED, move
    assert move.is_settled


@pytest.mark.parametrize("first", [ROW, SCHEMA, DATABASE])
async def test_every_direction(engine, first):
    await make_tenant(engine, "acme", first, users=50)
    await make_tenant(engine, "other", ROW, users=5)
    before = (await ask(engine, "acme", "select * from users order by id")).rows
    for level in [ROW, SCHEMA, DATABASE, ROW, DATABASE, SCHEMA, ROW]:
        if (await engine.tenant("acme")).placement.level is level:
            continue
        await moved(engine, "acme", level)
        assert (await engine.tenant("acme")).placement.level is level
        assert (await ask(engine, "acme", "select * from users order by id")).rows == before
