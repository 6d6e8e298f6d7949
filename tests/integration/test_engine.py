"""The engine as a whole: opening, closing, several processes, and what they learn of each other."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    PlacementChangedError,
    ServerUnavailableError,
    SettingError,
    SetupError,
    StatementError,
    TenancyError,
)
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.core.types import IsolationLevel, Operation, TenantContext
from tenancy.data_isolation.engine.binding_keys import KeyRotation
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.engine.migration import Migration

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"


async def sessions_of(install: Install) -> int:
    async with install.connected() as admin:
        found: int = await admin.fetchval(
            "select count(*) from pg_stat_activity where application_name like 'tenancy%' "
            "and datname like $1",
            install.database + "%",
        )
        return found


async def test_opening_sets_everything_up_and_closing_leaves_no_session(bare_install):
    engine = await Engine.open(bare_install.config)
    async with engine:
        await engine.apply_migration("0001_users", TABLES)
        await make_tenant(engine)
        assert (await ask(engine, "acme", COUNT)).rows == [[3]]
        assert await engine.tables() == ["late", "plans", "users"]
        assert await sessions_of(bare_install) > 0
    await engine.close()
    assert await sessions_of(bare_install) == 0

    async with await Engine.open(bare_install.config) as again:
        assert (await ask(again, "acme", COUNT)).rows == [[3]]
    with pytest.raises(ServerUnavailableError):
        await ask(again, "acme", COUNT)


async def test_the_embedded_server_is_started_and_stopped(home: Path):
    settings = Settings(home=home)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_users", TABLES)
        await make_tenant(engine)
        assert (await ask(engine, "acme", COUNT)).rows == [[3]]
    assert (home / "master.key").stat().st_mode & 0o777 == 0o600
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        assert (await ask(engine, "acme", COUNT)).rows == [[3]]


async def test_what_cannot_be_opened_leaves_nothing_open(install):
    away = ServerConfig(name="away", dsn="postgresql://u:secret@127.0.0.1:1/postgres")
    for servers in ((away,), (install.server_config, away)):
        config = EngineConfig(servers=servers, settings=install.settings)
        with pytest.raises(TenancyError) as caught:
            await Engine.open(config)
        assert "secret" not in str(caught.value)
        assert await sessions_of(install) == 0
    with pytest.raises(SetupError, match="no server"):
        await Engine.attach(EngineConfig(settings=install.settings))


async def test_the_master_key_is_made_once_and_kept(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    keys = await asyncio.gather(*(master_key(settings) for _ in range(5)))
    assert len(set(keys)) == 1
    assert await master_key(settings) == keys[0]
    given = dataclasses.replace(settings, master_key="ab" * 32)
    assert await master_key(given) == bytes.fromhex("ab" * 32)

    (tmp_path / "home" / "master.key").write_text("spoiled")
    with pytest.raises(SettingError, match=r"master\.key"):
        await master_key(settings)


async def test_a_process_hears_of_migrations_that_another_one_applied(install):
    async with opened(install) as one, opened(install, tables=False) as two:
        await make_tenant(one)
        assert (await ask(two, "acme", COUNT)).rows == [[3]]

        await one.apply_migration("0002_more", "create table more (id integer primary key)")
        await ask(two, "acme", "insert into more values (1)")
        assert (await ask(two, "acme", "select * from more")).rows == [[1]]
        with pytest.raises(StatementError, match="nothing"):
            await ask(two, "acme", "select * from nothing")


async def test_a_tenant_whose_tables_are_behind_is_read_with_the_version_that_it_has(install):
    """The new version is known, but has not reached the tenant's own schema yet."""
    async with opened(install) as engine:
        await make_tenant(engine, "own", IsolationLevel.SCHEMA)
        await engine.fleet.register([_migration(2, "alter table plans add column extra text")])
        await engine.shapes.refresh()
        await ask(engine, "own", "insert into plans values (1, 'a')")

        for _ in range(2):
            assert (await ask(engine, "own", "select * from plans")).rows == [[1, "a"]]
        await engine.fleet.apply()
        engine.shapes._behind.clear()
        assert (await ask(engine, "own", "select * from plans")).rows == [[1, "a", None]]


def _migration(number: int, sql: str) -> Migration:
    return Migration(number=number, name="m", sql=sql)


async def test_an_operation_waits_while_its_tenant_is_on_its_way(install):
    """A move closes the fence, changes the catalog and opens the fence under a higher epoch."""
    async with opened(install) as engine, install.connected() as admin:
        tenant = await make_tenant(engine)
        no = tenant.tenant_no
        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", no)
        work = [asyncio.create_task(ask(engine, "acme", COUNT)) for _ in range(5)]
        while not engine._routes._asking:
            await asyncio.sleep(0)
        await admin.execute("update catalog.placement set epoch = 2 where tenant_no = $1", no)
        await admin.execute(
            "update tenancy.fence set epoch = 2, open = true where tenant_no = $1", no
        )

        assert [result.rows for result in await asyncio.gather(*work)] == [[[3]]] * 5

        await admin.execute("update tenancy.fence set open = false where tenant_no = $1", no)
        with pytest.raises(PlacementChangedError):
            await ask(engine, "acme", COUNT)


async def test_a_process_learns_of_rotated_keys_by_itself(install):
    async with opened(install) as one, opened(install, tables=False) as two:
        await make_tenant(one)
        assert (await ask(two, "acme", COUNT)).rows == [[3]]
        rotation = KeyRotation(
            catalog=one.catalog, admin=one.admin, keys=one.keys, settings=one.settings
        )
        fresh = await rotation.introduce()
        await rotation.start_signing(fresh)
        await rotation.retire(fresh - 1)

        for place in (one, two):
            assert (await ask(place, "acme", COUNT)).rows == [[3]]


async def test_named_operations_and_migrations_have_names(install):
    async with opened(install) as engine:
        await make_tenant(engine)
        data: Mapping[str, Any] = {"id": 9, "email": "x"}
        operation = await engine.resolve_operation("create_user", data)
        assert (await engine.execute("acme", operation)).row_count == 1
        with pytest.raises(InvalidInputError, match="0001_users"):
            await engine.apply_migration("users", "create table x (id int primary key)")
        with pytest.raises(InvalidInputError):
            await engine.execute("Not A Tenant", Operation(query="select 1"))
        odd: Any = ["acme"]
        with pytest.raises(InvalidInputError):
            await engine.execute(odd, Operation(query="select 1"))
        with pytest.raises(StatementError):
            await engine.execute("acme", Operation(query=odd))
        with pytest.raises(InvalidInputError):
            await engine.create_tenant(TenantContext(tenant_id="x" * 64), level=IsolationLevel.ROW)
