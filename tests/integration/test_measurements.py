"""What operations take, measured where they run: kept in files, told to Prometheus, forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.actor_file import actor_file
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install
from support.small_disk import SmallDisk

from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.core.errors import RateLimitedError, StatementError, TenancyError
from tenancy.data_isolation.core.types import IsolationLevel, Operation
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.measured_windows import UNREAD, Cell
from tenancy.data_isolation.engine.measurements import Measurements
from tenancy.data_isolation.engine.window_files import measurements_directory
from tenancy.data_isolation.engine.window_reader import busiest, read_windows
from tenancy.data_isolation.serve.cli import run

pytestmark = pytest.mark.migrated("0001_users", TABLES)

READ = "select email from users where id = $1"


@asynccontextmanager
async def measuring(install: Install, **settings: Any) -> AsyncIterator[tuple[Engine, Any]]:
    """An engine whose operations are measured, and what measures them."""
    async with opened(install, **({"server_free_disk_min_bytes": 1} | settings)) as engine:
        found = Measurements(engine.settings, engine.catalog, "test")
        for level in IsolationLevel:
            await make_tenant(engine, f"at-{level}", level)
        engine.observe(found.windows, None)
        yield engine, found


def cells(measurements: Measurements) -> dict[tuple[str | None, str], Cell]:
    """The cells of the present window by tenant, and by kind with their tables."""
    return {
        (tenant.tenant_id, f"{cell.kind} {','.join(cell.tables)}" if cell.kind else UNREAD): cell
        for tenant, cell in measurements.windows.present().cells()
    }


async def test_every_operation_counts_once_at_every_level(install):
    async with measuring(install) as (engine, measurements):
        for level in IsolationLevel:
            name = f"at-{level}"
            await asyncio.gather(*(ask(engine, name, READ, n % 3 + 1) for n in range(40)))
            for query in ("selec", "select nothing from users", "select * from nothing"):
                with pytest.raises(StatementError):
                    await ask(engine, name, query)
            with pytest.raises(StatementError):
                await ask(engine, name, "insert into plans values (1 / (select 0), 'x')")
            await ask(engine, name, "update users set plan = null", idempotency_key="once")
            insert = Operation(query="insert into plans values ($1, 'x')", params=[7])
            outcomes = await engine.execute_batch(name, [insert, insert])
            assert isinstance(outcomes[1], TenancyError)
            with pytest.raises(TenancyError):
                await engine.execute_batch(name, [insert, insert], atomic=True)

            found = cells(measurements)
            reads = found[name, "read users"]
            assert (reads.operations, reads.rows, reads.refused) == (40, 40, 0)
            assert reads.result_bytes >= 40 * len("1@at-row")
            assert sum(reads.latencies.values()) == 40
            assert reads.latency_s >= reads.queue_s > 0
            assert 0 < reads.busy_s <= reads.latency_s
            assert (found[name, UNREAD].operations, found[name, UNREAD].refused) == (3, 3)
            assert (found[name, "write users"].operations, found[name, "write users"].rows) == (
                1,
                3,
            )
            # Failed; done and failed; and two of which the first was undone with the second.
            plans = [
                cell
                for tenant, cell in measurements.windows.present().cells()
                if tenant.tenant_id == name and cell.tables == ("plans",)
            ]
            assert sorted((cell.operations, cell.refused) for cell in plans) == [(1, 1), (4, 3)]
            assert sum(cell.rows for cell in plans) == 1
        levels = measurements.figures().levels
        assert {level: item.outcomes["done"] for level, item in levels.items()} == dict.fromkeys(
            ("row", "schema", "database"), 42
        )


async def test_what_is_given_up_or_turned_away_counts_as_that(install):
    async with measuring(install) as (engine, measurements):
        slow = "select count(*) from generate_series(1, 3000000000) n"
        waiting = asyncio.create_task(ask(engine, "at-row", slow))
        while not engine._executor.statistics().get("main", (0, 0))[0]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        route = await engine._routes.route("at-row")
        route.allowance.enter(route.limits.operations_in_flight_max)
        with pytest.raises(RateLimitedError):
            await ask(engine, "at-row", READ, 1)

        found = cells(measurements)
        assert found["at-row", "read "].cancelled == 1
        assert found["at-row", UNREAD].refused == 1


async def test_the_server_s_processes_are_looked_at_on_this_machine(install):
    async with measuring(install) as (engine, measurements):
        for _ in range(65):
            await ask(engine, "at-row", "select sum(n * n) from generate_series(1, 20000) n")
        found = cells(measurements)["at-row", "read "]

        assert found.sampled >= 2
        # Each works for milliseconds.
        assert found.cpu_s / found.sampled > 0.0005


async def test_no_value_of_a_tenant_is_in_the_files(install):
    async with measuring(install) as (engine, measurements):
        await ask(engine, "at-row", "select * from users where email = 'secret-literal'")
        await ask(engine, "at-row", "select $1::text as hidden_name", "secret-parameter")
        await measurements.cut()

        files = list(measurements_directory(engine.settings.home).rglob("*.parquet"))
        rows = read_windows(engine.settings.home, since=_ago(1), until=_ago(0)).to_pylist()
    assert len(files) == 1
    assert {row["tenant_id"] for row in rows} == {"at-row"}
    everything = files[0].read_bytes() + json.dumps(rows, default=str).encode()
    for value in (b"secret-literal", b"secret-parameter", b"hidden_name"):
        assert value not in everything
    assert b"at-row" in everything


async def test_a_full_disk_costs_a_window_and_no_operation(install, small_disk: SmallDisk):
    await asyncio.to_thread(small_disk.mount, 8)
    async with measuring(install) as (engine, _):
        settings = dataclasses.replace(engine.settings, home=small_disk.path / "home")
        measurements = Measurements(settings, engine.catalog, "test")
        engine.observe(measurements.windows, None)
        await ask(engine, "at-row", READ, 1)
        await measurements.cut()
        await asyncio.to_thread(small_disk.fill, 0)

        await ask(engine, "at-row", READ, 1)
        await measurements.cut()
        figures = measurements.figures()
        assert (figures.windows_written, figures.windows_lost) == (1, 1)
        assert list(settings.home.rglob("*.new")) == []

        small_disk.make_room()
        await ask(engine, "at-row", READ, 1)
        await measurements.cut()
        found = read_windows(settings.home, since=_ago(1), until=_ago(0))
        assert found["operations"].to_pylist() == [1, 1]


async def test_windows_of_tenants_that_the_catalog_does_not_have_are_removed(install):
    async with measuring(install) as (engine, measurements):
        for level in IsolationLevel:
            await ask(engine, f"at-{level}", READ, 1)
        await measurements.cut()
        # As on another machine: nobody there is told.
        await engine.delete_tenant("at-row")

        await measurements.tidy()

        found = busiest(engine.settings.home, since=_ago(1), until=_ago(0))
        assert {item.tenant_id for item in found} == {"at-schema", "at-database"}


async def test_an_actor_measures_and_forgets_who_is_erased(install, monkeypatch, capsys):
    _, path = actor_file(
        install,
        server_free_disk_min_bytes=1,
        metrics_top_tenants_max=1,
        measurement_window_s=3_600.0,
    )
    async with opened(install) as engine:
        await make_tenant(engine, "acme")
        await make_tenant(engine, "globex")
    actor = TenantActor("tenancy-shared-default-0", str(path))
    monkeypatch.setenv("TENANCY_HOME", str(install.settings.home))
    try:
        for tenant in ("acme", "acme", "globex"):
            await actor.query(tenant, READ, [1])
        host = await actor._opened()
        await host.measurements.cut()
        figures = await actor.figures()
        assert [item.tenant_id for item in figures.top] in (["acme"], ["globex"])
        assert figures.levels["row"].outcomes["done"] == 3

        await actor.query("acme", READ, [1])
        done = (await actor.figures()).levels["row"].outcomes["done"]
        await actor.delete_tenant("acme")
        figures = await actor.figures()
        assert figures.top == ()
        # Nothing of it is kept but a sum, which must not fall.
        assert figures.levels["row"].outcomes["done"] == done == 4
    finally:
        await actor.close()

    assert await asyncio.to_thread(run, ["metrics", "top", "--json"]) == 0
    (usage,) = json.loads(capsys.readouterr().out)["usage"]
    assert (usage["tenant_id"], usage["operations"], usage["busy_share"]) == ("globex", 1, 1.0)
    assert usage["tables"] == ["users"]
    assert await asyncio.to_thread(run, ["metrics", "top"]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:4] == ["globex", usage["fingerprint"], "read", "users"]
    for statement, told in (
        ("select email from users where id = 77", True),
        ("select email from users where id = :id", True),
        ("select id from users where id = 77", False),
    ):
        assert await asyncio.to_thread(run, ["metrics", "top", "--statement", statement]) == 0
        assert ("globex" in capsys.readouterr().out) is told
    assert await asyncio.to_thread(run, ["metrics", "top", "--statement", "selec"]) == 1
    assert await asyncio.to_thread(run, ["metrics", "top", "--tenant", "acme"]) == 0
    assert "acme" not in capsys.readouterr().out


async def test_an_actor_that_is_told_to_measure_nothing_does_not(install):
    _, path = actor_file(install, measurement_window_s=0)
    async with opened(install) as engine:
        await make_tenant(engine, "acme")
    actor = TenantActor("tenancy-shared-default-0", str(path))
    try:
        await actor.query("acme", READ, [1])
        assert await actor.figures() is None
    finally:
        await actor.close()
    assert not (install.settings.home / "measurements").exists()


def _ago(hours: float) -> datetime:
    return datetime.now(UTC) - timedelta(hours=hours)
