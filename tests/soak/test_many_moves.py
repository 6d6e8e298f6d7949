"""Hundreds of moves of a tenant in use, while movers and sessions die. Minutes: `make soak`."""

from __future__ import annotations

import pytest
from support.history.nemesis import SessionKiller, alongside
from support.history.statements import TABLES
from support.history.trial import run_trial
from support.history.workload import Plan
from support.moving import dying_movers, moves_of
from support.pace import FLAT_OUT

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext

MOVES = 200
#: Moves of one trial: histories that are too long take long to be checked.
PER_TRIAL = 25
SECONDS = 3_600


@pytest.mark.timeout(SECONDS)
async def test_nothing_is_lost_doubled_or_stale_in_hundreds_of_moves(two_servers, install):
    limits = {
        "move_poll_s": 0.05,
        "move_follow_s": 0.05,
        "move_warm_ms": 10,
        "placement_refresh_ms": 50,
        "move_chunk_rows": 500,
        **FLAT_OUT,
        "move_owner_timeout_s": 2.0,
    }
    done: list[Move] = []
    async with two_servers.opened(**limits) as engine, install.connected() as admin:
        await engine.apply_migration("0001_history", TABLES)
        context, main = TenantContext(tenant_id="acme"), ServerName("main")
        await engine.create_tenant(context, level=IsolationLevel.ROW, server=main)

        async def login() -> str:
            return (await engine.tenant("acme")).placement.role

        for trial_no in range(MOVES // PER_TRIAL):
            count = (trial_no + 1) * PER_TRIAL
            nemesis = alongside(
                moves_of(engine, "acme", count, trial_no, done),
                SessionKiller(admin, login, every_s=0.5, seed=trial_no),
                dying_movers(engine, trial_no),
            )
            trial = await run_trial(
                engine,
                ["acme"],
                seconds=1,
                nemesis=nemesis,
                nemesis_s=SECONDS,
                plan=Plan(opening_amount=1_000_000, rate_per_s=150, seed=trial_no),
            )
            assert trial.anomalies == [], str(trial)
            print(f"{len(done)} moves\n{trial}", flush=True)
    assert len(done) == MOVES
