"""Concurrent clients of a tenant see nothing that a correct store would not show them, also when
sessions end under them; and the clients and checkers find an executor that is wrong once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from support.engines import opened
from support.history.call import Outcome
from support.history.faulty_executor import Fault, FaultyExecutor
from support.history.nemesis import SessionKiller
from support.history.report import Kind
from support.history.statements import TABLES
from support.history.trial import Trial, run_trial
from support.history.workload import Plan
from support.install import Install

from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, tables=False) as made:
        await made.apply_migration("0001_history", TABLES)
        for name in ("acme", "other"):
            await made.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.ROW)
        yield made


async def test_clients_whose_sessions_end_under_them_see_nothing_wrong(engine, install):
    placement = (await engine.tenant("acme")).placement

    async def login() -> str:
        return placement.role

    async with opened(install, tables=False) as second, install.connected() as admin:
        killer = SessionKiller(admin, login, every_s=0.05, at_least=20)
        trial = await run_trial(
            engine,
            ["acme", "other"],
            others=[second],
            seconds=3,
            nemesis=killer,
            plan=Plan(rate_per_s=400, keyed_share=0.5, hasty_share=0.05),
        )

    assert trial.anomalies == [], str(trial)
    assert killer.killed >= 20
    outcomes = Counter(call.outcome for calls in trial.histories.values() for call in calls)
    assert outcomes[Outcome.OK] > 100, str(trial)
    # Those of clients that gave up, and of sessions that ended, were among them.
    assert outcomes[Outcome.REFUSED], str(trial)
    assert outcomes[Outcome.UNKNOWN], str(trial)


FOUND_AS = {
    Fault.DROP: Kind.LOST,
    Fault.TWICE: Kind.DOUBLED,
    Fault.STALE: Kind.CYCLE,
    Fault.HALF: Kind.UNBALANCED,
    Fault.DENY: Kind.REFUSED_VISIBLE,
    Fault.FORGET: Kind.NOT_LINEARIZABLE,
}


async def test_an_executor_that_is_wrong_once_is_found_out(engine):
    async def found(fault: Fault) -> Trial:
        await engine.create_tenant(TenantContext(tenant_id=fault), level=IsolationLevel.ROW)
        faulty = FaultyExecutor(engine, fault)

        async def until_it_happened(stop: asyncio.Event) -> None:
            await faulty.happened.wait()

        plan = Plan(writers=3, readers=2)
        return await run_trial(faulty, [fault], seconds=0, nemesis=until_it_happened, plan=plan)

    for fault, trial in zip(FOUND_AS, await asyncio.gather(*map(found, FOUND_AS)), strict=True):
        assert FOUND_AS[fault] in trial.reports[fault].kinds, str(trial)
