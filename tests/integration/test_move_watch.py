"""What a move does to others is seen, and whoever cannot see it is careful."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from support.install import SERVER, Install

from tenancy.data_isolation.core.errors import ServerUnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move_pace import REST_MIN_S, SHARE_MIN, SHARE_UNKNOWN
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.move_watch import MoveWatch, watching

NAME = "tenancy m_watched"
LOOKS = 6
SLOW_S = 60.0
LONG = "select count(*) from (select generate_series(1, 1000000000000)) s"


@asynccontextmanager
async def watch_of(install: Install, **settings: float) -> AsyncIterator[MoveWatch]:
    """A watch that spares whoever is there."""
    own = dataclasses.replace(install.settings, **{"move_dip_percent": 0.1} | settings)
    admin = AdminConnections(settings=own, servers=[install.server_config])
    try:
        async with watching([SERVER, SERVER], name=NAME, settings=own, admin=admin) as watch:
            yield watch
    finally:
        await admin.close()


async def measured(watch: MoveWatch) -> float:
    """The share that is left after some looks at rest and at work, of which those were slow."""
    for _ in range(LOOKS):
        await watch.look()
        with watch.working():
            await watch.look()
        watch.paces[0].note_working(SLOW_S)
    return watch.paces[0].share


async def until_at_work(install: Install, session: asyncpg.Connection) -> None:
    """Wait until the server shows a statement of that session."""
    async with install.connected() as admin:
        text = "select state from pg_stat_activity where pid = $1"
        while await admin.fetchval(text, session.get_server_pid()) != "active":
            await asyncio.sleep(0)


async def test_nobody_is_spared_where_nobody_is_at_work(install: Install):
    async with watch_of(install) as watch:
        await watch.begin()
        (pace,) = watch.paces
        assert pace.share == 1.0
        assert await measured(watch) == 1.0
        assert watch.rest_s(0.1) == REST_MIN_S
        assert watch.alone


async def test_a_session_at_work_is_spared(install: Install):
    async with watch_of(install) as watch, install.connected("tenancy_rows") as busy:
        working = asyncio.create_task(busy.execute(LONG))
        try:
            await until_at_work(install, busy)
            assert await measured(watch) == SHARE_MIN
            assert not watch.alone
        finally:
            working.cancel()
            await asyncio.wait([working])


async def test_looks_while_rows_are_copied_are_not_taken_for_looks_at_rest(install: Install):
    async with watch_of(install) as watch:
        with watch.working():
            for _ in range(LOOKS):
                await watch.look()
        (pace,) = watch.paces
        assert pace.share == SHARE_UNKNOWN
        await watch.begin()
        assert pace.share == 1.0


async def test_a_watch_that_loses_its_session_is_careful_again(install: Install):
    async with watch_of(install) as watch:
        await watch.begin()
        assert watch.paces[0].share == 1.0
        async with install.connected() as admin:
            ended = await admin.fetchval(
                "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity "
                "where application_name = $1",
                NAME,
            )
        assert ended == 1
        assert await measured(watch) == SHARE_UNKNOWN


async def test_a_watch_without_a_session_to_spare_is_careful(install: Install):
    own = dataclasses.replace(install.settings, admin_connections_max=1, connection_wait_ms=10)
    admin = AdminConnections(settings=own, servers=[install.server_config])
    taken = await admin.connect(SERVER)
    try:
        async with watching([SERVER], name=NAME, settings=own, admin=admin) as watch:
            assert await measured(watch) == SHARE_UNKNOWN
    finally:
        await taken.close()


def _elsewhere(install: Install, dsn: str) -> AdminConnections:
    server = dataclasses.replace(install.server_config, dsn=dsn)
    return AdminConnections(settings=install.settings, servers=[server])


async def test_a_server_answers_when_it_refuses_and_not_when_nobody_is_there(install: Install):
    refusing = _elsewhere(install, install.server.dsn("no_such_database"))
    with pytest.raises(ServerUnavailableError, match="has no database"):
        await refusing.connect(SERVER)
    nobody = _elsewhere(install, "postgresql://nobody:x@127.0.0.1:1/postgres")
    there = _elsewhere(install, install.server_config.dsn)
    assert await there.answers(SERVER)
    assert await refusing.answers(SERVER)
    assert not await nobody.answers(SERVER)
    assert not await there.answers(ServerName("unknown"))
