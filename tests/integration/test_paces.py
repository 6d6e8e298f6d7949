"""How long statements take is known, and who travels together follows from it."""

from __future__ import annotations

import asyncio

import pytest
from support.engines import TABLES, ask, known_as_quick, make_tenant, opened
from support.install import SERVER
from support.watching import until

from tenancy.data_isolation.core.errors import StatementError
from tenancy.data_isolation.core.types import Operation
from tenancy.data_isolation.engine import wire

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"


@pytest.mark.parametrize(("pace_s", "flushes"), [(0.0001, 1), (0.003, 1), (0.009, 4)])
async def test_the_server_shows_how_far_it_is_before_it_seems_to_hang(
    install, monkeypatch, pace_s, flushes
):
    async with opened(install) as engine:
        await make_tenant(engine)
        await known_as_quick(engine, "acme", COUNT)
        flights = engine._executor.flights
        apart, plans = flights._planner.apart, []

        def recorded(*arguments, **options):
            plans.append(apart(*arguments, **options))
            return plans[-1]

        monkeypatch.setattr(flights._planner, "apart", recorded)
        for text in flights._quick:
            flights._quick[text] = pace_s
        await asyncio.gather(*(ask(engine, "acme", COUNT) for _ in range(20)))

        plan = max(plans, key=lambda plan: len(plan.seats))
        messages = [message for section in plan.sections for message in section.messages]
        assert len(plan.seats) == 20
        assert messages.count(wire.FLUSH) == flushes


async def test_a_batch_tells_what_is_quick_only_when_it_was_done(install):
    slow = [f"select count(*) from generate_series(1, 10000000{number})" for number in range(3)]
    quick = [f"select {number} from users limit 1" for number in range(3)]
    async with opened(install) as engine:
        await make_tenant(engine)
        known = engine._executor.flights._quick

        async def batch(texts):
            return await engine.execute_batch("acme", [Operation(query=text) for text in texts])

        while not all(any(text in item for item in known) for text in quick):
            await batch(quick)
        work = asyncio.create_task(batch(slow))
        pool = engine._executor._pools[SERVER]
        while not any(line.busy for line in pool._lines.values()):
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await until(lambda: not any(line.busy for line in pool._lines.values()))

        assert not [item for item in known if "generate_series(1, 10000000" in item]
        batches = await batch(["select 1/0", *quick[:1]])
        assert isinstance(batches[0], StatementError)
        assert not [item for item in known if "1/0" in item]
