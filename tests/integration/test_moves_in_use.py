"""Tenants that are moved while they are in use: no client sees anything but waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.history.nemesis import SessionKiller, alongside
from support.history.statements import TABLES
from support.history.trial import run_trial
from support.history.workload import Plan
from support.moving import dying_movers, moves_of
from support.pace import FLAT_OUT
from support.two_servers import TwoServers

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_chunk_rows": 500,
    **FLAT_OUT,
}
#: So much that no transfer is refused for want of money: then every error is one too many.
RICH = Plan(opening_amount=1_000_000, rate_per_s=200)


@pytest.fixture
async def pair(two_servers: TwoServers) -> AsyncIterator[Engine]:
    async with two_servers.opened(**QUICK, move_owner_timeout_s=2.0) as made:
        await made.apply_migration("0001_history", TABLES)
        for name in ("acme", "other"):
            context = TenantContext(tenant_id=name)
            level = IsolationLevel.ROW
            await made.create_tenant(context, level=level, server=ServerName("main"))
        yield made


@pytest.mark.timeout(300)
async def test_clients_of_a_tenant_that_moves_see_no_error_and_lose_nothing(pair, two_servers):
    done: list[Move] = []
    async with two_servers.opened(**QUICK) as second:
        trial = await run_trial(
            pair,
            ["acme", "other"],
            others=[second],
            seconds=3,
            nemesis=moves_of(pair, "acme", 12, 1, done),
            nemesis_s=240,
            plan=RICH,
        )
    assert trial.anomalies == [], str(trial)
    for name, report in trial.reports.items():
        assert report.figures.errors == {}, (name, str(trial))
    assert len(done) == 12


@pytest.mark.timeout(300)
async def test_nothing_is_lost_while_movers_and_sessions_die(pair, install):
    done: list[Move] = []

    async def login() -> str:
        return (await pair.tenant("acme")).placement.role

    async with install.connected() as admin:
        killer = SessionKiller(admin, login, every_s=0.3)
        trial = await run_trial(
            pair,
            ["acme"],
            seconds=3,
            nemesis=alongside(moves_of(pair, "acme", 8, 3, done), killer, dying_movers(pair, 2)),
            nemesis_s=240,
            plan=RICH,
        )
    assert trial.anomalies == [], str(trial)
    assert len(done) == 8
