"""A server whose disk is full refuses what needs room, says so, and goes on when there is some."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from support.engines import ask
from support.small_disk import SmallDisk

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Settings,
    TenantContext,
    TenantStatus,
)
from tenancy.data_isolation.core.errors import DiskFullError, TenantSuspendedError
from tenancy.data_isolation.engine.engine import Engine

#: Less than a segment of the write-ahead log, whose end would stop the server, and too much for the
#: room that is left.
_ROWS, _ROW_BYTES = 40, 100_000
_SPARE_BYTES = 1 << 20
_INSERT = "insert into files (id, content) values ($1, $2) returning id"


@pytest.mark.timeout(180)
async def test_nothing_is_done_while_the_disk_is_full(small_disk: SmallDisk):
    await asyncio.to_thread(small_disk.mount, 320)
    settings = Settings(home=small_disk.path / "home", server_free_disk_min_bytes=1)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration(
            "0001_files", "create table files (id integer primary key, content text not null)"
        )
        for level in IsolationLevel:
            await engine.create_tenant(TenantContext(tenant_id=f"at-{level}"), level=level)
            await ask(engine, f"at-{level}", _INSERT, 0, "small")
        await asyncio.to_thread(small_disk.fill, _SPARE_BYTES)

        for level in IsolationLevel:
            kept = await _fill(engine, f"at-{level}")
            counted = await ask(engine, f"at-{level}", "select count(*) from files")
            assert counted.rows == [[kept + 1]]
        with pytest.raises(DiskFullError, match=r"tenant late .* free some space, then ask again"):
            await engine.create_tenant(
                TenantContext(tenant_id="late"), level=IsolationLevel.DATABASE
            )
        with pytest.raises(TenantSuspendedError):
            await ask(engine, "late", "select 1")

        small_disk.make_room()
        made = await engine.create_tenant(
            TenantContext(tenant_id="late"), level=IsolationLevel.DATABASE
        )
        assert made.status is TenantStatus.ACTIVE
        for level in IsolationLevel:
            assert (await ask(engine, f"at-{level}", _INSERT, -1, "x")).rows == [[-1]]


async def _fill(engine: Engine, tenant: str) -> int:
    """Write until the disk is full; how many rows were acknowledged."""
    for number in range(1, _ROWS + 1):
        # Random, so that PostgreSQL cannot make it smaller.
        content = secrets.token_hex(_ROW_BYTES // 2)
        try:
            await ask(engine, tenant, _INSERT, number, content)
        except DiskFullError as error:
            refused = error
        else:
            continue
        assert (refused.status, refused.sqlstate) == (507, "53100")
        return number - 1
    raise AssertionError("the disk was not full")
