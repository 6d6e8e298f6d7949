"""An actor that is killed loses nothing that it confirmed, and does nothing twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from dataclasses import dataclass, field

import psutil
import pytest
from support.orders import make_tenants

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.directory import dedicated_name
from tenancy.data_isolation.actors.remote import Actors
from tenancy.data_isolation.core.errors import OutcomeUnknownError, TenancyError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, TenantType

ACME = TenantId("acme")
SHARED = "tenancy-shared-default-0"
INSERT = "insert into orders (id, note) values ($1, $2)"
#: Everything goes by way of Ray, as it does between machines.
BY_RAY = {"actor_local_connections_max": 0}
ENDLESS = "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b"


async def _pid(client, name=SHARED):
    """The process of an actor that works."""
    while True:
        try:
            found = await Actors(client.settings, client.directory).call(name, "statistics")
        except Exception:  # It is starting again.
            continue
        return found["pid"]


async def _kill(pid):
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(process.wait, 20)


@dataclass
class Ledger:
    """What the writers were told of the numbers that they wrote, each once."""

    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def check(self, found):
        """Acknowledged is a subset of what is there, and what is there was never refused."""
        assert len(found) == len(set(found))
        assert self.acknowledged <= set(found)
        assert set(found) <= self.acknowledged | self.unknown
        assert not self.refused & set(found)


async def _write(client, numbers, ledger, *, keyed, until):
    for number in numbers:
        operation = Operation(
            query=INSERT,
            params=[number, "x"],
            idempotency_key=f"key-{number}" if keyed else None,
        )
        try:
            await client.gateway.execute(ACME, operation)
            ledger.acknowledged.add(number)
        except OutcomeUnknownError:
            ledger.unknown.add(number)
        except TenancyError:
            ledger.refused.add(number)
        if until.is_set():
            return


async def test_a_write_after_the_actor_was_killed_while_idle_is_done(start):
    """Nothing was under way, so that there is nothing whose outcome is not known."""
    running = await start()
    await make_tenants(running.engine, "acme")
    async with running.client() as client:
        await client.execute(ACME, INSERT, [1, "x"])
        way = client.gateway._actors._ways[SHARED]
        assert way.link is not None
        pid = await _pid(client)
        await _kill(pid)
        while not way.link.lost:
            await asyncio.sleep(0.01)
        assert await _pid(client) != pid
        await client.execute(ACME, INSERT, [2, "x"])
        found = await client.execute(ACME, "select count(*) from orders")
        assert found.rows == [[2]]
        assert client.gateway.statistics()[SHARED]["lost"] == 0


@pytest.mark.parametrize(
    ("keyed", "settings"),
    [(False, {}), (True, {}), (False, BY_RAY)],
    ids=["without keys", "with keys", "in calls of Ray"],
)
async def test_a_killed_actor_loses_no_acknowledged_write_and_doubles_none(start, keyed, settings):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with running.client(**settings) as client:
        ledger, until, numbers = Ledger(), asyncio.Event(), itertools.count(1)
        await client.execute(ACME, "select 1")
        writers = [
            asyncio.create_task(_write(client, numbers, ledger, keyed=keyed, until=until))
            for _ in range(64)
        ]
        for wanted in (500, 1_000):
            pid = await _pid(client)
            while len(ledger.acknowledged) < wanted:
                await asyncio.sleep(0)
            await _kill(pid)
            assert await _pid(client) != pid
        while len(ledger.acknowledged) < 1_500:
            await asyncio.sleep(0)
        until.set()
        await asyncio.gather(*writers)

        # One row, since there may be more than a result may have.
        found = await client.execute(ACME, "select array_agg(id) from orders")
        ledger.check(found.rows[0][0])
        channel = client.gateway.statistics()[SHARED]
        assert channel["lost"] == 2
        # The controls: writes were under way when the actor died.
        if keyed:
            assert channel["retried"] > 0
            assert not ledger.unknown
        else:
            assert ledger.unknown


def test_the_check_of_the_ledger_finds_lost_and_doubled_writes():
    ledger = Ledger(acknowledged={1, 2}, unknown={3}, refused={4})
    ledger.check([1, 2])
    ledger.check([1, 2, 3])
    for wrong in ([1], [1, 2, 2], [1, 2, 4], [1, 2, 5]):
        with pytest.raises(AssertionError):
            ledger.check(wrong)


async def test_reads_go_on_through_the_death_of_their_actor(start):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with connect() as client:
        pid = await _pid(client)
        reading = [
            asyncio.create_task(client.execute(ACME, "select count(*) from orders"))
            for _ in range(200)
        ]
        await asyncio.sleep(0)
        await _kill(pid)

        results = await asyncio.gather(*reading)

        assert all(result.rows == [[0]] for result in results)


async def test_a_dedicated_actor_that_is_killed_comes_back(start):
    running = await start()
    await make_tenants(running.engine, "acme", kind=TenantType.ENTERPRISE)
    async with connect() as client:
        await client.execute(ACME, INSERT, [1, "x"])
        own = dedicated_name((await client.gateway.tenant(ACME)).tenant_no)
        pid = await _pid(client, own)

        await _kill(pid)

        assert (await client.execute(ACME, "select id from orders")).rows == [[1]]
        assert await _pid(client, own) not in (pid, await _pid(client))


async def test_statements_of_a_killed_actor_end_in_postgresql(start, install):
    running = await start()
    await make_tenants(running.engine, "acme")
    async with install.connected() as connection, connect() as client:
        slow = asyncio.create_task(client.execute(ACME, ENDLESS))

        async def backends():
            found = await connection.fetch(
                "select pid from pg_stat_activity where state = 'active' and pid <> $1 "
                "and query like '%generate_series%'",
                connection.get_server_pid(),
            )
            return {row["pid"] for row in found}

        while not (orphans := await backends()):
            pass
        await _kill(await _pid(client))

        # The read runs again, in another backend; the first one has to stop.
        while orphans & await backends():
            pass
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
