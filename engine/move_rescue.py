"""Carries on a move that has left its tenant closed, for as long as it takes to open it again.

What an inspection tells as stranded is nothing that SQL could mend: which side has the newer rows,
and under which epoch, is known to whoever carries the move out. So that is what is done.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import MoveNotFoundError, TenancyError
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.engine.driver_errors import driver_error
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("move.sql")
_LOOK_S: Final = 0.1


async def carry_on(config: EngineConfig, move_id: MoveId) -> str | None:
    """Carry a move on until its tenant is open; why that failed, or None.

    Other moves are left alone.
    """
    try:
        engine = await Engine.attach(config)
    except TenancyError as error:
        return error.detail
    try:
        return await _carried_on(engine, move_id)
    except MoveNotFoundError:
        return None
    except TenancyError as error:
        return error.detail
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return driver_error(error, wrote=False).detail
    finally:
        await engine.close()


async def _carried_on(engine: Engine, move_id: MoveId) -> str | None:
    clock, limit_s = SystemClock(), engine.settings.server_start_timeout_s
    deadline_s = clock.monotonic_s() + limit_s
    engine.moves.work(move_id)
    while not await _is_open(engine, move_id):
        if clock.monotonic_s() > deadline_s:
            error = (await engine.moves.move(move_id)).error
            return f"the tenant is still closed after {limit_s:.0f} s" + (
                f": {error}" if error else ""
            )
        await asyncio.sleep(_LOOK_S)
    return None


async def _is_open(engine: Engine, move_id: MoveId) -> bool:
    """Whether the tenant works where the catalog has it."""
    move = await engine.moves.move(move_id)
    tenant = await engine.catalog.tenant(move.tenant_id)
    place = tenant.placement
    if place is None:
        return False
    async with engine.admin.session(place.server, place.database) as connection:
        fence = await connection.fetchrow(_SQL.statement("fence"), move.tenant_no)
    return fence is not None and fence["open"] and fence["epoch"] == place.epoch
