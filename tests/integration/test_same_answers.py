"""The same statement gives the same answer at every level, and as in a plain database.

A state machine draws tables, rows, queries, upserts, deletes and later migrations, and runs each on
five places: a plain database without any of our machinery, one tenant per level, and a hybrid one,
for which tables are marked sensitive at random, when they are made or later. Answers are columns,
types, rows and counts; refusals are SQLSTATEs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from support.random_schema import Table, migration, new_table, statement

from tenancy.data_isolation.core import IsolationLevel, Operation, TenancyError, TenantContext
from tenancy.data_isolation.core.errors import ParameterError
from tenancy.data_isolation.engine.engine import Engine

#: Decided by the driver in the plain database and by the server in ours; both mean the same.
_PARAMETERS = "parameters"
_PARAMETER_STATES = {"22P02", "22003", "22007", "22008", "42804", "08P01"}

Answer = tuple[str, Any]

#: Level, and whether the tenant is hybrid, by the end of the tenant's name.
PLACES = {str(level): (level, False) for level in IsolationLevel}
PLACES["hybrid"] = (IsolationLevel.ROW, True)


@dataclass
class World:
    """The five places. `run` works from the machine's thread."""

    engine: Engine
    plain: asyncpg.Connection
    loop: asyncio.AbstractEventLoop
    migrations: int = 0
    tables: int = 0
    compared: dict[str, int] = field(default_factory=dict)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    async def ask(self, query: str, params: list[Any]) -> dict[str, Answer]:
        answers = {"plain": await _ask_plain(self.plain, query, params)}
        for place in PLACES:
            answers[place] = await self._ask_tenant(place, query, params)
        for kind, found in answers.values():
            # Without ORDER BY the order is the plan's, and levels have plans of their own.
            if kind == "answered" and " order by " not in query:
                found[1].sort(key=repr)
        return answers

    async def _ask_tenant(self, place: str, query: str, params: list[Any]) -> Answer:
        try:
            result = await self.engine.execute(f"at-{place}", Operation(query=query, params=params))
        except ParameterError:
            return ("refused", _PARAMETERS)
        except TenancyError as error:
            return ("refused", error.sqlstate)
        columns = [(column.name, column.type) for column in result.columns]
        return ("answered", (columns, result.rows, result.row_count))

    async def migrate(self, sql: str) -> dict[str, Answer]:
        self.migrations += 1
        answers: dict[str, Answer] = {}
        try:
            async with self.plain.transaction():
                await self.plain.execute(sql)
            answers["plain"] = ("answered", None)
        except asyncpg.PostgresError as error:
            answers["plain"] = ("refused", error.sqlstate)
        try:
            report = await self.engine.apply_migration(f"{self.migrations:04}_drawn", sql)
            answers["levels"] = ("answered", None) if report.complete else ("refused", "report")
        except TenancyError as error:
            answers["levels"] = ("refused", error.sqlstate)
        return answers


async def _ask_plain(connection: asyncpg.Connection, query: str, params: list[Any]) -> Answer:
    try:
        async with connection.transaction():
            prepared = await connection.prepare(query)
            rows = await prepared.fetch(*params)
    except (asyncpg.DataError, asyncpg.InterfaceError) as error:
        state = getattr(error, "sqlstate", None)
        # The driver's own refusals have no severity.
        if getattr(error, "severity", None) is None or state in _PARAMETER_STATES:
            return ("refused", _PARAMETERS)
        return ("refused", state)
    except asyncpg.PostgresError as error:
        return ("refused", error.sqlstate)
    columns = [(item.name, _standard(item.type.name)) for item in prepared.get_attributes()]
    count = int(prepared.get_statusmsg().split()[-1])
    return ("answered", (columns, [list(row.values()) for row in rows], count))


def _standard(name: str) -> str:
    return {"int4": "integer", "int8": "bigint", "bool": "boolean"}.get(name, name)


class Machine(RuleBasedStateMachine):
    """What one example does."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []

    def _same(self, what: str, answers: dict[str, Answer]) -> Answer:
        first = answers["plain"]
        kind = first[0]
        self.world.compared[kind] = self.world.compared.get(kind, 0) + 1
        for place, answer in answers.items():
            assert answer == first, f"{what}\nplain: {first}\n{place}: {answer}"
        return first

    @precondition(lambda self: len(self.tables) < 3)
    @rule(data=st.data())
    def create(self, data: Any) -> None:
        self.world.tables += 1
        table, sql = data.draw(new_table(f"t{self.world.tables}", self.tables))
        answers = self.world.run(self.world.migrate(sql))
        if self._same(sql, answers)[0] == "answered":
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def migrate(self, data: Any) -> None:
        table = data.draw(st.sampled_from(self.tables))
        before = dict(table.columns)
        sql = data.draw(migration(table, self.world.migrations + 1))
        if self._same(sql, self.world.run(self.world.migrate(sql)))[0] == "refused":
            table.columns = before

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def ask(self, data: Any) -> None:
        self._ask(data)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def ask_often(self, data: Any) -> None:
        """Statements are cheap next to migrations, so there are more of them."""
        for _ in range(4):
            self._ask(data)

    def _ask(self, data: Any) -> None:
        table = data.draw(st.sampled_from(self.tables))
        query, params = data.draw(statement(table, self.tables))
        self._same(f"{query} {params}", self.world.run(self.world.ask(query, params)))


@pytest.fixture
async def world(install):
    admin = await asyncpg.connect(install.admin_dsn())
    name = f"plain_{install.database}"
    await admin.execute(f'create database "{name}"')
    plain = await asyncpg.connect(install.admin_dsn(name))
    for type_ in ("numeric", "date"):
        await plain.set_type_codec(
            type_, schema="pg_catalog", encoder=str, decoder=str, format="text"
        )
    await plain.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads, format="text"
    )
    try:
        async with await Engine.open(install.config) as engine:
            for place, (level, hybrid) in PLACES.items():
                # With neighbours, so that a wrong scope has rows to find.
                for tenant in (f"at-{place}", f"by-{place}"):
                    context = TenantContext(tenant_id=tenant)
                    await engine.create_tenant(context, level=level, hybrid=hybrid)
            yield World(engine, plain, asyncio.get_running_loop())
    finally:
        await plain.close()
        await admin.execute(f'drop database "{name}" with (force)')
        await admin.close()


@pytest.mark.timeout(300)
async def test_levels_agree_with_each_other_and_with_a_plain_database(world):
    class Drawn(Machine):
        pass

    Drawn.world = world
    await asyncio.to_thread(
        run_state_machine_as_test,
        Drawn,
        settings=settings(
            max_examples=6,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            # A failing example is short enough to read; making it shorter takes minutes.
            phases=(Phase.generate,),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    # Both kinds of outcome were compared, so neither side of the comparison is empty.
    assert world.compared["answered"] > 50
    assert world.compared["refused"] > 5
