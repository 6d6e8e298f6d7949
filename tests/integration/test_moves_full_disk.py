"""A target whose disk is full: the move fails and says why, and the tenant stays where it is."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.engines import ask
from support.install import Install
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.postgres import postgres_running
from support.small_disk import SmallDisk
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.service_user import service_user

WAIT_S = 60.0
MAIN = ServerName("main")
TARGET = MoveTarget(level=IsolationLevel.SCHEMA, server=ServerName(SECOND))
FILES = "create table files (id integer primary key, content text not null)"
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_warm_ms": 10,
    "move_chunk_rows": 20,
    **FLAT_OUT,
    "move_retry_s": 0.1,
    "move_failures_max": 3,
    "control_timeout_s": 0.001,
}
#: More than the disk has room for.
DISK_MIB, ROWS, ROW_BYTES = 24, 120, 200_000


async def filled(engine: Engine, rows: int, row_bytes: int) -> list[list[Any]]:
    """A tenant with files; their digests."""
    context = TenantContext(tenant_id="acme")
    await engine.create_tenant(context, level=IsolationLevel.ROW, server=MAIN)
    # What pglz cannot make smaller, 32 bytes at a time.
    parts = f"generate_series(1, {row_bytes // 32}) part"
    content = f"select string_agg(md5(n::text || part::text), '') from {parts}"
    text = f"insert into files select n, ({content}) from generate_series(1, {rows}) n"
    await ask(engine, "acme", text)
    return await digests(engine)


async def digests(engine: Engine) -> list[list[Any]]:
    text = "select id, md5(content) from files order by id"
    return (await ask(engine, "acme", text)).rows


async def failed(engine: Engine, move: Move) -> Move:
    """The move, which must fail and be cleaned up."""
    done = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    done = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    assert (done.state, done.is_settled) == (MoveState.FAILED, True)
    assert done.error is not None
    assert "53100" in done.error
    assert "second" in done.error
    assert "free some" in done.error
    return done


async def nothing_is_left(install: Install, engine: Engine, move: Move, dsn: str) -> None:
    """At the target, by the doctor and by a look of our own."""
    looks = await inspection_of(engine.settings, engine.admin).look(install.master_key)
    names = (move.move_id, move.target.schema)
    for look in looks:
        for finding in look.findings:
            if finding.database == install.settings.database:  # Or it is another test's.
                assert finding.check not in ("moves", "fences"), finding
            assert not any(name in finding.subject for name in names), finding
    connection = await asyncpg.connect(dsn)
    try:
        for text in (
            "select from pg_namespace where nspname = any ($1)",
            "select from pg_roles where rolname = any ($1)",
            "select from pg_trigger where tgname like 'tenancy_' || ($1::text[])[1] || '%'",
        ):
            assert await connection.fetch(text, list(names)) == []
    finally:
        await connection.close()


@asynccontextmanager
async def on_small_disk(
    install: Install, disk: SmallDisk, postgres_bin: Path
) -> AsyncIterator[Engine]:
    """An engine whose second server has its tables on a disk of their own."""
    place = disk.path / "tables"
    place.mkdir(mode=0o700)
    if user := service_user():
        user.make_reachable(disk.path)
        user.own(place)
    with postgres_running(postgres_bin) as server:
        second = ServerConfig(name=SECOND, dsn=server.admin_dsn)
        config = EngineConfig(
            servers=(install.server_config, second),
            settings=dataclasses.replace(install.settings, **QUICK),
        )
        async with await Engine.open(config) as engine:
            await engine.apply_migration("0001_files", FILES)
        connection = await asyncpg.connect(server.admin_dsn)
        try:
            await connection.execute(f"create tablespace small location '{place}'")
            database = install.settings.database
            await connection.execute(f'alter database "{database}" set tablespace small')
        finally:
            await connection.close()
        async with await Engine.attach(config) as engine:
            yield engine


@pytest.mark.timeout(180)
async def test_a_move_to_a_full_disk_fails_and_leaves_nothing(
    install: Install, small_disk: SmallDisk, postgres_bin: Path
):
    await asyncio.to_thread(small_disk.mount, DISK_MIB)
    async with on_small_disk(install, small_disk, postgres_bin) as engine:
        before = await filled(engine, ROWS, ROW_BYTES)
        engine.moves.work()
        move = await engine.moves.start("acme", TARGET)
        move = await failed(engine, move)
        # Some chunks had been there.
        assert move.progress.rows_copied
        assert await digests(engine) == before
        dsn = engine.admin.server(ServerName(SECOND)).dsn
        await nothing_is_left(install, engine, move, _in(dsn, install))
        # With less to carry there is room again for the same tenant.
        await ask(engine, "acme", "delete from files where id > 20")
        again = await engine.moves.start("acme", TARGET)
        again = await engine.moves.wait(again.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        assert again.state is MoveState.OPEN
        assert await digests(engine) == before[:20]


@pytest.mark.timeout(120)
async def test_what_a_server_says_of_a_full_disk_is_told(two_servers: TwoServers):
    """Where no disk can be mounted, by a trigger that gives the error which a full disk gives."""
    install = two_servers.install
    async with await Engine.open(two_servers.config(**QUICK)) as engine:
        await engine.apply_migration("0001_files", FILES)
        before = await filled(engine, 50, 1_000)
        move = await engine.moves.start("acme", TARGET)
        dsn = _in(two_servers.other.admin_dsn, install)

        def fill(_: asyncpg.Connection) -> None:
            # Done before the mover goes on, which has this loop.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, refuse(dsn, move)).result()

        fate = Fate("after execute COMMIT", beyond="copy in", act=fill)
        async with mover(engine, fate):
            done = await failed(engine, move)
        assert await digests(engine) == before
        await nothing_is_left(install, engine, done, dsn)


async def refuse(dsn: str, move: Move) -> None:
    """Let the target have no room for rows."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            f"""
            create function {move.target.schema}.full() returns trigger language plpgsql as $$
            begin
                raise exception 'could not extend file: No space left on device'
                using errcode = '53100', hint = 'Check free disk space.';
            end $$;
            create trigger disk_is_full before insert on {move.target.schema}.files
            for each row execute function {move.target.schema}.full();
            alter table {move.target.schema}.files enable always trigger disk_is_full;
            """
        )
    finally:
        await connection.close()


def _in(dsn: str, install: Install) -> str:
    return dsn.rpartition("/")[0] + f"/{install.settings.database}"
