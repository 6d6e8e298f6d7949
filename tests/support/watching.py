"""A watchdog over a test's own installation, and attackers that come straight to PostgreSQL."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from support.install import SERVER, Install
from tenancy.data_isolation.core.tier_limits import TierLimits, TierTable
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.watch_rules import Offence
from tenancy.data_isolation.engine.watchdog import Watchdog

_PATIENCE_S = 15.0


def tiers(**limits: Any) -> TierTable:
    """Every type of tenant with the same limits."""
    return TierTable(**{kind.value: TierLimits(**limits) for kind in TenantType})


@asynccontextmanager
async def watched(install: Install, **settings: Any) -> AsyncIterator[Watchdog]:
    """A watchdog that acts, stopped at the end of the block."""
    changed = dataclasses.replace(install.settings, watchdog_tick_ms=20, **settings)
    admin = AdminConnections(settings=changed, servers=[install.server_config], keep_warm=True)
    watchdog = Watchdog(settings=changed, master_key=install.master_key, admin=admin, server=SERVER)
    watching = asyncio.create_task(watchdog.run())
    try:
        await until(lambda: watchdog.report.state == "acting")
        yield watchdog
    finally:
        watchdog.stop()
        await watching
        await admin.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    async with asyncio.timeout(_PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


async def until_it_is(ask: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that has to come and that somebody has to be asked for."""
    async with asyncio.timeout(_PATIENCE_S):
        while not await ask():
            await asyncio.sleep(0.01)


async def looks(watchdog: Watchdog, count: int = 3) -> None:
    """Let the watchdog look so many more times."""
    seen = watchdog.report.looks
    await until(lambda: watchdog.report.looks >= seen + count)


async def counts_one(watchdog: Watchdog, offence: Offence) -> None:
    """Wait until it says that it did something about one offence: it says so after it was done."""
    await until(lambda: watchdog.report.actions[offence] > 0)
    assert watchdog.report.actions[offence] == 1
