"""Tenants move in a running runtime while they are read and written over HTTP."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
from support.installation import Installation

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)

_ROWS = 25_000
#: One lives in a shared actor, the other in one of its own.
_TENANTS = {"wanderer": "standard", "nomad": "enterprise"}


@dataclass
class Traffic:
    """Reads and writes of one tenant, one after the other in each of several tasks."""

    client: httpx.AsyncClient
    path: str
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1_000_000))
    written: set[int] = field(default_factory=set)
    reads: int = 0
    stopping: bool = False

    async def ask(self, query: str, *params: Any) -> list[list[Any]]:
        answer = await self.client.post(self.path, json={"query": query, "params": params})
        assert answer.status_code == 200, answer.text
        rows: list[list[Any]] = answer.json()["rows"]
        return rows

    async def write(self) -> None:
        while not self.stopping:
            number = next(self.numbers)
            await self.ask("insert into users (id, email) values ($1, $2)", number, str(number))
            self.written.add(number)

    async def read(self) -> None:
        while not self.stopping:
            # What was acknowledged before a read is in it, and so nothing goes back in time.
            known = len(self.written)
            ((found,),) = await self.ask("select count(*) from users where id >= 1000000")
            assert found >= known
            self.reads += 1

    async def write_whatever_happens(self) -> None:
        """Write each number with a key of its own, again and again until it is acknowledged."""
        while not self.stopping:
            number = next(self.numbers)
            body = {
                "query": "insert into users (id, email) values ($1, $2)",
                "params": [number, str(number)],
            }
            key = {"Idempotency-Key": f"write-{number}"}
            while (answer := await self.client.post(self.path, json=body, headers=key)).is_error:
                problem = answer.json()
                # Whoever sends it again with its key does it once.
                unknown = problem["type"].endswith("outcome-unknown")
                assert problem["retryable"] or unknown, problem
            self.written.add(number)

    async def read_whatever_happens(self) -> None:
        while not self.stopping:
            known = len(self.written)
            query = "select count(*) from users where id >= 1000000"
            answer = await self.client.post(self.path, json={"query": query, "params": []})
            if answer.is_error:
                assert answer.json()["retryable"], answer.text
                continue
            ((found,),) = answer.json()["rows"]
            assert found >= known
            self.reads += 1


def _processes(installation: Installation, name: str) -> list[psutil.Process]:
    """The processes of actors of a class, of which there is at least one."""
    while True:
        found = []
        for process in installation.runtime.tree():
            try:
                if f"ray::{name}" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        if found:
            return found


def _mover(installation: Installation) -> psutil.Process:
    """The process that carries moves out."""
    return _processes(installation, "MoveActor")[0]


@asynccontextmanager
async def _in_use(traffics: list[Traffic], *, insisting: bool = False) -> AsyncIterator[None]:
    """Traffic during the block; an error of any request is one of the test, unless it insists."""
    async with asyncio.TaskGroup() as group:
        for traffic in traffics:
            work = [traffic.write, traffic.read, traffic.read]
            if insisting:
                work = [traffic.write_whatever_happens, traffic.read_whatever_happens]
            for one in work:
                group.create_task(one())
        yield
        for traffic in traffics:
            traffic.stopping = True


async def _until(admin: httpx.AsyncClient, move_id: str, *wanted: str) -> dict[str, Any]:
    """The move, once its state or phase is one of those."""
    while True:
        answer = await admin.get(f"/v1/moves/{move_id}")
        if answer.is_error and answer.json()["retryable"]:
            continue  # Whoever would have answered was killed.
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if {found["state"], found["phase"]} & set(wanted):
            return found
        assert not found["settled"], found
        await asyncio.sleep(0.02)


async def _move(admin: httpx.AsyncClient, level: str) -> list[str]:
    """Start a move of every tenant; the ids."""
    found = []
    for name in _TENANTS:
        path = f"/v1/tenants/{name}/moves"
        started = await admin.post(path, json={"isolation_level": level})
        assert started.status_code == 202, started.text
        found.append(started.json()["move_id"])
    return found


async def _kill_the_mover(
    installation: Installation, admin: httpx.AsyncClient, move_id: str
) -> None:
    """Kill the mover in the middle of a copy, which goes on when there is another one.

    Where it was quicker than we are, the tenant is at its new place already.
    """
    await _until(admin, move_id, "copying", "catching_up", "verified", "open")
    paused = await admin.post(f"/v1/moves/{move_id}/pause")
    assert paused.status_code in (200, 409), paused.text
    # In threads: this one has requests under way, whose bodies may not be late.
    process = await asyncio.to_thread(_mover, installation)
    process.kill()
    await asyncio.to_thread(process.wait, 20)
    if paused.status_code == 200:
        resumed = await admin.post(f"/v1/moves/{move_id}/resume")
        # It may have opened before its mover saw that it shall stand still.
        assert resumed.status_code in (200, 409), resumed.text
    assert (await asyncio.to_thread(_mover, installation)).pid != process.pid


async def _prepared(admin: httpx.AsyncClient, url: httpx.URL, name: str) -> Traffic:
    body = {"tenant_id": name, "tenant_type": _TENANTS[name], "isolation_level": "row"}
    assert (await admin.post("/v1/tenants", json=body)).status_code == 201
    key = await admin.post("/v1/keys", json={"scope": "tenant", "tenant_id": name})
    client = httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key.json()['key']}"},
        trust_env=False,
        timeout=60,
    )
    traffic = Traffic(client=client, path=f"/v1/tenants/{name}/query")
    rows = f"select n, 'row ' || n from generate_series(1, {_ROWS}) n"
    await traffic.ask(f"insert into users (id, email) {rows}")
    return traffic


async def test_tenants_move_while_they_are_used_and_the_mover_is_killed(
    installation: Installation,
):
    headers = {"Authorization": f"Bearer {installation.keys['admin']}"}
    async with httpx.AsyncClient(
        base_url=installation.url, headers=headers, trust_env=False, timeout=60
    ) as admin:
        traffics = [await _prepared(admin, installation.url, name) for name in _TENANTS]
        async with _in_use(traffics):
            for level in ("schema", "database", "row"):
                moves = await _move(admin, level)
                if level == "database":
                    await _kill_the_mover(installation, admin, moves[0])
                for move_id in moves:
                    assert (await _until(admin, move_id, "open"))["state"] == "open"
                    asked = await admin.post(f"/v1/moves/{move_id}/confirm")
                    assert asked.status_code == 202
                for move_id in moves:
                    done = await _until(admin, move_id, "settled")
                    assert done["state"] == "confirmed"
                    assert all(table["equal"] for table in done["report"]["after"])
        for traffic, name in zip(traffics, _TENANTS, strict=True):
            found = await traffic.ask("select id from users where id >= 1000000 order by id")
            assert [number for (number,) in found] == sorted(traffic.written)
            assert traffic.reads > 0
            shown = await admin.get(f"/v1/tenants/{name}")
            assert shown.json()["isolation_level"] == "row"
            await traffic.client.aclose()
        await _nothing_is_left(installation)
        for name in _TENANTS:
            assert (await admin.delete(f"/v1/tenants/{name}")).status_code == 204
    assert installation.runtime.json("status")["state"] == "running"


async def _kill_actors(installation: Installation, *names: str) -> set[int]:
    """Kill the processes of all actors of these classes; their ids."""

    def kill() -> set[int]:
        victims = [process for name in names for process in _processes(installation, name)]
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=20)
        return {victim.pid for victim in victims}

    return await asyncio.to_thread(kill)


async def test_tenants_move_while_their_actors_and_the_mover_are_killed(
    installation: Installation,
):
    headers = {"Authorization": f"Bearer {installation.keys['admin']}"}
    async with httpx.AsyncClient(
        base_url=installation.url, headers=headers, trust_env=False, timeout=60
    ) as admin:
        traffics = [await _prepared(admin, installation.url, name) for name in _TENANTS]
        async with _in_use(traffics, insisting=True):
            moves = await _move(admin, "schema")
            for move_id in moves:
                await _until(admin, move_id, "copying", "catching_up")
                assert (await admin.post(f"/v1/moves/{move_id}/pause")).status_code == 200
            # Both tenants' actors and the mover, in the middle of the copy.
            first = await _kill_actors(installation, "TenantActorProcess", "MoveActor")
            assert len(first) >= 3
            for move_id in moves:
                resumed = await admin.post(f"/v1/moves/{move_id}/resume")
                # Refused (409) when it has opened before its mover saw that it shall stand still.
                while resumed.status_code not in (200, 409):
                    assert resumed.json()["retryable"], resumed.text
                    resumed = await admin.post(f"/v1/moves/{move_id}/resume")
            # And their successors, wherever the moves are by then.
            for traffic in traffics:
                await traffic.ask("select 1")
            second = await _kill_actors(installation, "TenantActorProcess")
            assert second
            assert not first & second
            for move_id in moves:
                assert (await _until(admin, move_id, "open"))["state"] == "open"
                asked = await admin.post(f"/v1/moves/{move_id}/confirm")
                assert asked.status_code == 202
            for move_id in moves:
                done = await _until(admin, move_id, "settled")
                assert done["state"] == "confirmed"
        for traffic in traffics:
            found = await traffic.ask("select id from users where id >= 1000000 order by id")
            assert [number for (number,) in found] == sorted(traffic.written)
            assert traffic.written
            assert traffic.reads
            await traffic.client.aclose()
        await _nothing_is_left(installation)
        for name in _TENANTS:
            assert (await admin.delete(f"/v1/tenants/{name}")).status_code == 204
    assert installation.runtime.json("status")["state"] == "running"


async def _nothing_is_left(installation: Installation) -> None:
    """Of the places that the tenants have left, and of the moves themselves."""
    dsn = httpx.URL(installation.status["postgres_dsn"]).copy_with(path="/tenancy")
    connection = await asyncpg.connect(str(dsn))
    try:
        placed = "select {} from catalog.placement where level <> 'row'"
        for what in (
            f"rolname from pg_roles where rolname ~ '^t_' except {placed.format('role')}",
            f"nspname from pg_namespace where nspname ~ '^[tm]_' except {placed.format('schema')}",
            f"datname from pg_database where datname ~ '^t_' except {placed.format('database')}",
            "tgname from pg_trigger where tgname ~ '^tenancy_m_'",
            "application_name from pg_stat_activity where application_name ~ '^tenancy m'",
        ):
            left = await connection.fetch(f"select {what}")
            while left and "activity" in what:
                left = await connection.fetch(f"select {what}")
            assert left == [], what
    finally:
        await connection.close()
