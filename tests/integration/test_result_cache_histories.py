"""Concurrent work through processes that keep results, and through one that asks each time.

Two ways of looking. Rounds: after operations that ran at the same time, every process gives the
same answers as PostgreSQL does. Registers: a row that only grows is written and read at the same
time; a read gives no less than what was confirmed, or given to anybody, before it began. Each way
is tried on caches that are broken on purpose, which it has to find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.caching import OwnRedis, caching, kept, settled
from support.engines import TABLES, ask, known_as_quick, make_tenant
from support.install import Install

from tenancy.data_isolation.core.errors import ConstraintError
from tenancy.data_isolation.core.types import IsolationLevel, Operation, QueryResult
from tenancy.data_isolation.engine.announced_writes import AnnouncedWrites
from tenancy.data_isolation.engine.cache_store import CacheStore
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.flight import Flights

pytestmark = pytest.mark.migrated("0001_users", TABLES)

TENANTS = {"acme": IsolationLevel.ROW, "globex": IsolationLevel.SCHEMA}
#: Keeps no results, and asks the same, so that its reads share transactions with those of acme.
PLAIN = "initech"
READS = (
    "select count(*), sum(plan) from users",
    "select id, email, plan from users where id < 3 order by id",
    "select id, name from plans order by id",
    "select u.id, p.name from users u join plans p on p.id = u.plan order by u.id",
    "with x as (select plan, count(*) n from users group by plan) select * from x order by plan",
    "select l.id from late l where exists (select from users u where u.id = l.user_id) order by 1",
)
WRITES = (
    "insert into users (id, email, plan) select $1::integer, $1::integer::text, min(id) from plans",
    "insert into plans (id, name) values ($1::integer, $1::integer::text)"
    " on conflict (id) do update set name = plans.name || 'x'",
    "update users set email = email || '.', plan = (select max(id) from plans) where id = $1",
    "delete from plans where id = $1",
    "delete from users where id = $1 and not exists (select from late where user_id = $1)",
    "insert into late (id, user_id) select $1::integer, id from users where id = $1",
    "merge into plans p using (select $1::integer as id) n on p.id = n.id"
    " when matched then delete when not matched then insert (id, name) values (n.id, 'm')",
    "with gone as (delete from late where id = $1 returning user_id)"
    " update users set email = email || '-' where id in (select user_id from gone)",
)
REGISTER = "select plan from users where id = 1"
_PLANS = (
    "insert into plans select n, n::text from generate_series(1, $1::integer) n"
    " on conflict do nothing"
)

#: What is done: by which process, for which tenant, alone or in a batch, and with which number.
actions = st.tuples(
    st.integers(0, 1),
    st.sampled_from(sorted(TENANTS)),
    st.sampled_from(["alone", "apart", "together", "once"]),
    st.sampled_from(READS + WRITES + WRITES),
    st.integers(1, 4),
)
rounds = st.lists(st.lists(actions, min_size=1, max_size=8), min_size=1, max_size=5)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Two processes that keep results."""

    engines: tuple[Engine, Engine]
    differences: list[str] = field(default_factory=list)

    async def act(self, action: Any, number: int) -> None:
        process, tenant, way, query, value = action
        engine = self.engines[process]
        operation = Operation(query=query, params=[value] if "$1" in query else [])
        try:
            if way == "alone" or (way == "once" and query in READS):
                await engine.execute(tenant, operation)
            elif way == "once":
                await ask(engine, tenant, query, value, idempotency_key=f"n{number}")
            else:
                both = [operation, Operation(query=READS[0])]
                await engine.execute_batch(tenant, both, atomic=way == "together")
        except ConstraintError:
            pass

    async def compare(self) -> None:
        for tenant in TENANTS:
            # Batches ask PostgreSQL.
            operations = [Operation(query=query) for query in READS]
            truth = await self.engines[0].execute_batch(tenant, operations)
            for engine in self.engines * 2:
                for query, right in zip(READS, truth, strict=True):
                    assert isinstance(right, QueryResult), right
                    found = await ask(engine, tenant, query)
                    if found != right:
                        self.differences.append(f"{query}: {found.rows}, not {right.rows}")

    async def play(self, played: list[list[Any]], number: int) -> None:
        for actions in played:
            async with asyncio.TaskGroup() as group:
                for action in actions:
                    number += 1
                    group.create_task(self.act(action, number))
            await self.compare()

    async def register(self, writes: int) -> list[str]:
        """Reads that gave less than what was known before they began, or more than was written."""
        for text, *params in (
            (_PLANS, writes),
            ("insert into users values (1, 'r', 1) on conflict (id) do update set plan = 1",),
        ):
            await ask(self.engines[0], "acme", text, *params)
        register = _Register(self.engines)
        async with asyncio.TaskGroup() as group:
            group.create_task(register.write(writes))
            for engine in self.engines:
                group.create_task(register.look_ahead(engine))
                for _ in range(2):
                    group.create_task(register.read(engine))
                for _ in range(8):
                    group.create_task(register.read_beside(engine))
        return register.wrong


@dataclass(slots=True)
class _Register:
    """A row that only grows: what was begun to be written, and what is known to be there."""

    engines: tuple[Engine, Engine]
    begun: int = 1
    known: int = 1
    wrong: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def look(self, engine: Engine) -> None:
        least = self.known
        (found,) = (await ask(engine, "acme", REGISTER)).rows[0]
        if not least <= found <= self.begun:
            self.wrong.append(f"{found} is not from {least} to {self.begun}")
        self.known = max(self.known, found)

    async def read(self, engine: Engine) -> None:
        while not self.over.is_set():
            await self.look(engine)

    async def read_beside(self, engine: Engine) -> None:
        while not self.over.is_set():
            await ask(engine, PLAIN, REGISTER)

    async def look_ahead(self, engine: Engine) -> None:
        """As for pinned tenants: what is read ahead is read as all else."""
        while not self.over.is_set():
            await engine.results.pins.look()
            for pinned in engine.results.pins._ours.values():
                pinned.filled = None

    async def write(self, writes: int) -> None:
        for value in range(2, writes + 1):
            self.begun = value
            engine = self.engines[value % 2]
            await ask(engine, "acme", "update users set plan = $1 where id = 1", value)
            self.known = max(self.known, value)
            # So that something is given again before the next one.
            await self.look(engine)
            await self.look(engine)
        self.over.set()


@asynccontextmanager
async def staged(install: Install, redis: OwnRedis) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        calm = {"pinned_refresh_s": 3_600.0}
        one = await stack.enter_async_context(caching(install, redis, **calm))
        two = await stack.enter_async_context(caching(install, redis, **calm))
        for tenant, level in TENANTS.items():
            await make_tenant(one, tenant, level)
            await kept(one, tenant)
            await settled(two, tenant)
        await make_tenant(one, PLAIN)
        await one.pin_tenant("acme", True)
        for engine in (one, two):
            await engine.results.pins.look()
        yield Stage(engines=(one, two))


def played_on(stage: Stage, loop: asyncio.AbstractEventLoop, examples: int) -> None:
    """Play examples of rounds on a stage, from a thread."""
    number = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(rounds)
    def play(played: list[list[Any]]) -> None:
        nonlocal number
        number += 1_000
        asyncio.run_coroutine_threadsafe(stage.play(played, number), loop).result()

    play()


def mixed_flights(stage: Stage) -> list[int]:
    """Gets the number of tenants of each flight of several from now on."""
    found: list[int] = []

    def noted(flights: Flights) -> Any:
        fly = flights.fly

        async def noted_fly(connection: Any, tickets: list[Any]) -> None:
            tenants = len({ticket.tenant_no for ticket in tickets})
            if tenants > 1:
                found.append(tenants)
            await fly(connection, tickets)

        return noted_fly

    for engine in stage.engines:
        flights = engine._executor.flights
        flights.fly = noted(flights)
    return found


async def test_answers_are_those_of_postgresql(install, a_redis):
    async with staged(install, a_redis) as stage:
        for engine in stage.engines:
            await known_as_quick(engine, PLAIN, REGISTER)
        mixed = mixed_flights(stage)
        await asyncio.to_thread(played_on, stage, asyncio.get_running_loop(), 6)
        await stage.play(CASCADE, 0)
        assert stage.differences == []
        assert await stage.register(40) == []
        for engine in stage.engines:
            found = engine.results.statistics
            assert found.hits_memory > 20, found
            assert found.stale_avoided > 20, found
            assert found.unanswered == 0, found
            assert found.filled_ahead > 0, found
        assert mixed


# Caches that are broken on purpose

#: A plan, a user that has it, and the plan goes.
CASCADE = [
    [(0, "acme", "alone", WRITES[1], 1)],
    [(1, "acme", "alone", WRITES[0], 4)],
    [(1, "acme", "alone", WRITES[3], 1)],
]


def says_nothing(patch: pytest.MonkeyPatch, stage: Stage) -> None:
    """Writes are not announced."""
    patch.setattr(AnnouncedWrites, "_tables", lambda *_: ("nothing",))


def tells_too_late(patch: pytest.MonkeyPatch, stage: Stage) -> None:
    """Each write is announced when the next one begins."""
    late: list[tuple[str, Any]] = []
    end = CacheStore.end

    async def begin(self: AnnouncedWrites, nonce: str, tables: Any) -> bool:
        for announced in late:
            await self._store.begin(*announced)
            end(self._store, *announced)
        late[:] = [(nonce, tables)]
        await ask(stage.engines[0], "acme", REGISTER)
        return True

    patch.setattr(AnnouncedWrites, "_begin", begin)
    patch.setattr(CacheStore, "end", lambda *_: None)


def forgets_foreign_keys(patch: pytest.MonkeyPatch, stage: Stage) -> None:
    """Only the tables that a statement names count as changed."""
    tables = AnnouncedWrites._tables

    def named(self: AnnouncedWrites, changes: Any, *others: Any) -> Any:
        if changes == frozenset({"plans", "users"}):
            changes = frozenset({"plans"})
        return tables(self, changes, *others)

    patch.setattr(AnnouncedWrites, "_tables", named)


@pytest.mark.parametrize("broken", [says_nothing, forgets_foreign_keys])
async def test_the_comparison_finds_a_cache_that_is_broken(install, a_redis, monkeypatch, broken):
    async with staged(install, a_redis) as stage:
        broken(monkeypatch, stage)
        await stage.play(CASCADE, 0)
        assert stage.differences


@pytest.mark.parametrize("broken", [says_nothing, tells_too_late])
async def test_the_register_finds_a_cache_that_is_broken(install, a_redis, monkeypatch, broken):
    async with staged(install, a_redis) as stage:
        broken(monkeypatch, stage)
        assert await stage.register(5)
