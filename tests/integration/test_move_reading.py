"""How rows are found while they are copied: by their keys, whatever is known of the table."""

from __future__ import annotations

from typing import Any

import pytest
from support.engines import ask, opened
from support.install import Install

from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.move_copy import Carried, MoveCopier
from tenancy.data_isolation.engine.move_side import MoveSide
from tenancy.data_isolation.engine.move_table import MoveTable

QUICK: dict[str, Any] = {"move_poll_s": 0.05, "move_warm_ms": 10, "move_chunk_rows": 100}
_ROWS = 2_000


@pytest.mark.parametrize(
    ("table", "fill"),
    [
        ("items (id bigint primary key, t text)", "select n, 'x' from generate_series(1, {}) n"),
        (
            "items (day date, id int, t text, primary key (day, id))",
            "select date '2000-01-01' + n % 7, n, 'x' from generate_series(1, {}) n",
        ),
    ],
)
async def test_rows_are_found_by_their_keys_though_nothing_is_known_of_the_table(
    install: Install, monkeypatch: pytest.MonkeyPatch, table: str, fill: str
):
    plans: list[str] = []
    removals: list[str] = []
    fill_stage, run = MoveCopier._fill, MoveSide.run

    async def explained(self: MoveCopier, query: str, to: MoveTable, carried: Carried) -> int:
        if "2::smallint" in query and to.name == "items":
            rows = await self.source.connection.fetch(f"explain (analyze, costs off) {query}")
            plans.append("\n".join(row[0] for row in rows))
            # What changes now comes with a later chunk.
            await ask(engine, "acme", "update items set t = 'y' where id = 1")
        return await fill_stage(self, query, to, carried)

    async def removing(self: MoveSide, *texts: str) -> None:
        for text in texts:
            if text.startswith("DELETE") and ".items r" in text:
                rows = await self.connection.fetch(f"explain (costs off) {text}")
                removals.append("\n".join(row[0] for row in rows))
        await run(self, *texts)

    monkeypatch.setattr(MoveCopier, "_fill", explained)
    monkeypatch.setattr(MoveSide, "run", removing)
    async with opened(install, tables=False, **QUICK) as engine:
        await engine.apply_migration("0001_items", f"create table {table}")
        await engine.create_tenant(TenantContext(tenant_id="acme"), level=IsolationLevel.ROW)
        await ask(engine, "acme", f"insert into items {fill.format(_ROWS)}")
        move = await engine.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
        engine.moves.work()
        move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=30)
        assert move.state is MoveState.OPEN, move.error

    assert len(plans) >= _ROWS / QUICK["move_chunk_rows"]
    for plan in plans:
        assert "Index Scan using items_pkey on items" in plan
        assert "Sort Key: r." not in plan
        assert f"rows={_ROWS}" not in plan
    assert removals
    for plan in removals:
        assert "Nested Loop" in plan
        assert "Seq Scan on items r" not in plan
