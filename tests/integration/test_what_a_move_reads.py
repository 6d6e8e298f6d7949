"""What a move reads: each row once when it is copied, and what has changed while a tenant is held.

The tables are never analyzed before, so PostgreSQL believes that there is next to nothing in them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.engines import ask, opened
from support.install import Install

from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.move_copy import Cursor, MoveCopier
from tenancy.data_isolation.engine.move_cutover import Cutover

ROWS, CHUNK, CHANGED = 5_000, 500, 5
TABLES = """
create table plain (id bigint primary key, t text);
create table worded (name text, at timestamptz(3), t text, primary key (name, at));
create table priced (n numeric primary key, t text);
"""
TABLE_NAMES = ("plain", "worded", "priced")
WAIT_S = 60.0


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    quick: dict[str, Any] = {"move_poll_s": 0.05, "move_warm_ms": 10, "placement_refresh_ms": 50}
    async with opened(install, tables=False, move_chunk_rows=CHUNK, **quick) as made:
        await made.apply_migration("0001_tables", TABLES)
        await made.create_tenant(TenantContext(tenant_id="acme"), level=IsolationLevel.ROW)
        numbers = f"from generate_series(1, {ROWS}) n"
        await ask(made, "acme", f"insert into plain select n, n::text {numbers}")
        day = "date '2026-01-01' + n * interval '1 minute'"
        await ask(made, "acme", f"insert into worded select n::text, {day}, n::text {numbers}")
        await ask(made, "acme", f"insert into priced select n, n::text {numbers}")
        yield made


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def rows_read(plan: dict[str, Any]) -> int:
    """Rows of the tenants' tables that were looked at, those that were thrown away included."""
    return sum(
        int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for node in nodes(plan)
        if node.get("Relation Name") in TABLE_NAMES
    )


def compared(plan: dict[str, Any]) -> int:
    """Pairs of rows that a join has compared one by one."""
    return sum(
        int(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"])
        for node in nodes(plan)
    )


async def explained(copier: MoveCopier, text: str) -> dict[str, Any]:
    found = await copier.source.connection.fetchval(f"explain (analyze, format json) {text}")
    plan: dict[str, Any] = json.loads(found)[0]["Plan"]
    return plan


async def moved(engine: Engine) -> None:
    move = await engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
    engine.moves.work()
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    assert move.state is MoveState.OPEN, move


async def test_while_a_tenant_is_held_only_what_has_changed_is_read(engine, monkeypatch):
    read: dict[str, int] = {}
    carry_rest = Cutover._carry_rest

    async def looked(self: Cutover, carried: Any) -> None:
        copier = self._copier
        changed = await copier.source.changed()
        schema, number = copier.source.placement.schema, copier._tenant_no
        await copier.stage_keys(changed)
        for here, there in copier.pairs():
            if here.name not in TABLE_NAMES:
                continue
            # Row security lets no index find a numeric key: such a table is read, but once.
            once = here.name == "priced"
            assert changed[here.name].count == CHANGED
            for what, text in {
                "rows": here.changed_rows(copier._move_id, schema, number),
                "digest": here.digest(schema, number, notes=copier._move_id, only=True),
                "removal": there.remove_changed(copier.target.placement.schema, number),
                "all": here.digest(schema, number, notes=copier._move_id, only=False),
            }.items():
                plan = await explained(copier, text)
                assert compared(plan) <= ROWS, plan
                name = f"{what} of a table" if once else what
                read[name] = max(read.get(name, 0), rows_read(plan))
        await copier.empty_stages()
        await carry_rest(self, carried)

    async def changing(cutover: Cutover, turn: Any) -> None:
        """Just before it is held, in place of the rehearsal."""
        first = "in (select {0} from {1} order by {0} limit " + f"{CHANGED})"
        await ask(
            engine, "acme", f"update plain set t = 'x' where id {first.format('id', 'plain')}"
        )
        await ask(
            engine, "acme", f"update worded set t = 'x' where name {first.format('name', 'worded')}"
        )
        await ask(engine, "acme", f"update priced set t = 'x' where n <= {CHANGED}")
        await cutover._copier.source.admin()

    monkeypatch.setattr(Cutover, "_carry_rest", looked)
    monkeypatch.setattr(Cutover, "_rehearse", changing)
    await moved(engine)

    # The removal reads them by their keys and then by their places.
    assert read.pop("all") >= ROWS - CHANGED
    assert all(read.pop(name) <= 2 * ROWS for name in list(read) if name.endswith("table"))
    assert read == {"rows": CHANGED, "digest": CHANGED, "removal": 2 * CHANGED}


async def test_what_is_noted_of_many_changes_takes_little_of_the_mover(engine, monkeypatch):
    """One statement that changes all rows of a table, after they were copied."""
    seen = []
    catch_up = MoveCopier.catch_up

    async def changing(self: MoveCopier) -> Any:
        if not seen:
            await ask(engine, "acme", "update plain set t = 'changed'")
            seen.append((await self.source.changed())["plain"])
        return await catch_up(self)

    async def behind(self: MoveCopier) -> int:
        return await backlog(self) if seen else ROWS

    backlog = MoveCopier.backlog
    monkeypatch.setattr(MoveCopier, "catch_up", changing)
    monkeypatch.setattr(MoveCopier, "backlog", behind)
    await moved(engine)

    (notes,) = seen
    assert notes.count == ROWS
    assert len(notes.numbers) < 100
    assert (await ask(engine, "acme", "select count(*) from plain where t = 'changed'")).rows == [
        [ROWS]
    ]


async def test_a_copy_reads_each_row_once(engine, monkeypatch):
    read: list[int] = []
    next_rows = MoveCopier._next_rows

    async def looked(
        self: MoveCopier, pair: Any, cursor: Cursor, rows: int, carried: Any
    ) -> Cursor:
        here, schema = pair[0], self.source.placement.schema
        done = await next_rows(self, pair, cursor, rows, carried)
        assert done.last_key is not None
        chunk = here.chunk(
            self._move_id, schema, self._tenant_no, after=cursor.last_key, until=done.last_key
        )
        assert done.end_key is not None
        end = here.chunk_end(
            schema, self._tenant_no, after=cursor.last_key, until=done.end_key, rows=rows
        )
        if here.name != "priced":
            found = [rows_read(await explained(self, text)) for text in (chunk, end)]
            assert max(found) <= rows
            read.extend(found)
        return done

    monkeypatch.setattr(MoveCopier, "_next_rows", looked)
    await moved(engine)

    assert sum(read) <= 2 * 2 * ROWS
