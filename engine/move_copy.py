"""Carrying rows from one side of a move to the other.

Rules this module keeps (keys are noted, and rows are not):

* What is carried is always the row of a noted key as it is now. So neither the order of changes nor
  how often one is carried matters, and a key without a row is one that was deleted.
* The source is read in one snapshot, and what was read is put in by one transaction. After it the
  target holds, of every key that it has had, what the source had at that snapshot; so no unique
  constraint can be in the way. A chunk of the first copy comes with all notes of its table.
* Users' code that such statements reach (casts, policies, checks, functions that are evaluated
  while planning) runs where no role can be changed (`MoveSide.ask`, `put` and `run`). Only the
  stages, which are the admin's, are read and written without that.
* Notes are removed at the source after the target has committed what they stand for, by number,
  because a lower number can appear later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.move_side import MoveSide, Notes, SideName
from tenancy.data_isolation.engine.move_table import MoveTable
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.together import together

_SQL = SqlFile("move.sql")
#: Commits the transaction of a side.
Commit: TypeAlias = "Callable[[MoveSide], Awaitable[None]]"
#: Parts of a copy that were read and not written yet; the driver makes them of some 64 KiB.
_PARTS_MAX: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """How far the first copy of a table has come. `last_key` None = nothing is copied.

    `end_key` is the highest key that there was when it began.
    """

    last_key: tuple[str, ...] | None = None
    end_key: tuple[str, ...] | None = None
    complete: bool = False


@dataclass(kw_only=True, slots=True)
class Carried:
    """What one transaction has carried."""

    rows: int = 0
    bytes: int = 0
    #: Notes that are settled by it, by table, to be removed at the source.
    notes: dict[str, Notes] = field(default_factory=dict)


class MoveCopier:
    """Carries rows from `source` to `target`. One piece of work at a time.

    Where both are in one database they share a connection, and so a transaction.
    """

    def __init__(
        self, source: MoveSide, target: MoveSide, *, move_id: MoveId, tenant_no: TenantNo
    ) -> None:
        self.source = source
        self.target = target
        self._move_id = move_id
        self._tenant_no = tenant_no

    @property
    def is_one_database(self) -> bool:
        """Whether both sides are in the same database."""
        return self.source.connection is self.target.connection

    def pairs(self) -> list[tuple[MoveTable, MoveTable]]:
        """Each table as it is at the source and at the target; `SchemaError` when they differ."""
        there = {table.name: table for table in self.target.tables}
        here = {table.name: table for table in self.source.tables}
        if here.keys() != there.keys():
            odd = ", ".join(sorted(here.keys() ^ there.keys()))
            raise SchemaError(f"source and target differ in the tables {odd}")
        for name, table in here.items():
            if [c.name for c in table.columns] != [c.name for c in there[name].columns]:
                raise SchemaError(f"source and target differ in the columns of table {name}")
        return [(table, there[name]) for name, table in here.items()]

    @asynccontextmanager
    async def carrying(self) -> AsyncIterator[dict[str, Notes]]:
        """A snapshot of the source and a transaction of the target; the notes that are there.

        The target commits first.
        """
        one = self.is_one_database
        async with AsyncExitStack() as stack:
            if not one:
                await stack.enter_async_context(self.source.working(repeatable=True))
            await stack.enter_async_context(self.target.working(repeatable=one))
            yield await self.source.changed()

    @asynccontextmanager
    async def standing_by(self) -> AsyncIterator[Commit]:
        """Transactions of both sides, with empty stages: all that can be made ready before the
        tenant is held. Each statement sees what there is when it begins; nobody else changes that
        while the tenant is held. What is given commits that of a side; all ends with the block.
        """
        async with AsyncExitStack() as here, AsyncExitStack() as there:
            stacks = {SideName.SOURCE: here, SideName.TARGET: there}
            if self.is_one_database:
                stacks[self.source.name] = stacks[self.target.name]
            else:
                await stacks[self.source.name].enter_async_context(self.source.working())
            await stacks[self.target.name].enter_async_context(self.target.working())
            await self.empty_stages()

            async def commit(side: MoveSide) -> None:
                await stacks[side.name].aclose()

            yield commit

    async def copy_chunk(self, pair: tuple[MoveTable, MoveTable], rows: int) -> Carried:
        """Carry the next rows of a table's first copy, and the changed rows of it.

        The cursor is recorded with them at the target, so that a copy that was cut off goes on.
        """
        here, there = pair
        cursor = (await self.cursors()).get(here.name, Cursor())
        carried = Carried()
        async with self.carrying() as changed:
            await self._empty_stages([pair])
            await self.source.connection.execute(_SQL.statement("read_in_order"))
            done = await self._next_rows(pair, cursor, rows, carried)
            if here.name in changed:
                await self._fill(self._changed_rows(here), pair, carried)
                carried.notes[here.name] = changed[here.name]
            await self._ship(pair, carried)
            await self._put_in([there], replaces=here.name in changed)
            await self._set_cursor(here.name, done)
        await self.forget(carried)
        return carried

    async def _next_rows(
        self, pair: tuple[MoveTable, MoveTable], cursor: Cursor, rows: int, carried: Carried
    ) -> Cursor:
        """Bring the next rows of a table into its stage; how far the copy is with them."""
        here, _ = pair
        schema, after = self.source.placement.schema, cursor.last_key
        end = cursor.end_key or await self._highest_key(here)
        if end is None:
            return Cursor(complete=True)
        found = await self.source.ask(
            here.chunk_end(schema, self._tenant_no, after=after, until=end, rows=rows)
        )
        last = tuple(found[0]["key"]) if found else end
        chunk = here.chunk(self._move_id, schema, self._tenant_no, after=after, until=last)
        await self._fill(chunk, pair, carried)
        return Cursor(last_key=last, end_key=end, complete=not found)

    async def catch_up(self) -> Carried:
        """Carry the changed rows of all tables as they are in one snapshot."""
        carried = Carried()
        if not await self.source.backlog():
            return carried
        async with self.carrying() as changed:
            await self._empty_stages([pair for pair in self.pairs() if pair[0].name in changed])
            await self.carry_changed(changed, carried)
        await self.forget(carried)
        return carried

    async def carry_changed(self, changed: Mapping[str, Notes], carried: Carried) -> None:
        """Carry the rows of `changed` keys, through stages that are empty."""
        pairs = [pair for pair in self.pairs() if pair[0].name in changed]
        for pair in pairs:
            here, _ = pair
            await self._fill(self._changed_rows(here), pair, carried)
            await self._ship(pair, carried)
            carried.notes[here.name] = changed[here.name]
        await self._put_in([there for _, there in pairs])

    async def empty_stages(self) -> None:
        """Have an empty stage for each table."""
        await self._empty_stages(self.pairs())

    async def stage_keys(self, changed: Mapping[str, Notes]) -> None:
        """Let the stages of all tables hold the changed keys, within `carrying`."""
        await self.empty_stages()
        for pair in self.pairs():
            if pair[0].name in changed:
                await self._fill(self._changed_rows(pair[0]), pair, Carried())
                await self._ship(pair, Carried())

    async def forget(self, carried: Carried) -> None:
        """Remove the notes of what was carried, after the target has committed it."""
        tables = {table.name: table for table in self.source.tables}
        for name, notes in carried.notes.items():
            await self.source.forget_notes(tables[name], notes)

    async def cursors(self) -> dict[str, Cursor]:
        """How far the first copies have come."""
        rows = await self.target.connection.fetch(_SQL.statement("cursors", move=self._move_id))
        return {
            row["name"]: Cursor(
                last_key=_key(row["last_key"]),
                end_key=_key(row["end_key"]),
                complete=row["complete"],
            )
            for row in rows
        }

    async def backlog(self) -> int:
        """How many notes wait to be carried."""
        return await self.source.backlog()

    # Parts

    def _changed_rows(self, table: MoveTable) -> str:
        return table.changed_rows(self._move_id, self.source.placement.schema, self._tenant_no)

    async def _highest_key(self, table: MoveTable) -> tuple[str, ...] | None:
        text = table.highest_key(self.source.placement.schema, self._tenant_no)
        found = await self.source.ask(text)
        return tuple(found[0]["key"]) if found else None

    async def _put_in(self, tables: Sequence[MoveTable], *, replaces: bool = True) -> None:
        """Let the target have what is in the stages; it `replaces` nothing in a first copy."""
        schema = self.target.placement.schema
        # All that is gone or was changed goes first, so that no row is in the way of another one.
        await self.target.run(
            *(
                table.remove_changed(schema, self._tenant_no)
                for table in tables
                if replaces or table.deferrable_key
            ),
            *(table.take(schema) for table in tables),
        )

    async def _empty_stages(self, pairs: Sequence[tuple[MoveTable, MoveTable]]) -> None:
        if pairs:
            names = ", ".join(there.stage for _, there in pairs)
            await self.target.connection.execute(f"truncate {names}")
            if not self.is_one_database:
                names = ", ".join(here.stage for here, _ in pairs)
                await self.source.connection.execute(f"truncate {names}")

    async def _set_cursor(self, name: str, cursor: Cursor) -> None:
        text = _SQL.statement("set_cursor", move=self._move_id)
        await self.target.connection.execute(
            text, name, cursor.last_key, cursor.end_key, cursor.complete
        )

    async def _fill(self, query: str, pair: tuple[MoveTable, MoveTable], carried: Carried) -> None:
        """Bring what a query finds into a stage: the target's, or the source's to be shipped."""
        here, there = pair
        stage = there if self.is_one_database else here
        carried.rows += await self.source.put(stage, query)

    async def _ship(self, pair: tuple[MoveTable, MoveTable], carried: Carried) -> None:
        """COPY the stage of one database into that of the other, some parts at a time."""
        here, there = pair
        if self.is_one_database:
            return
        parts: asyncio.Queue[bytes | None] = asyncio.Queue(_PARTS_MAX)

        async def take(part: bytes) -> None:
            carried.bytes += len(part)
            await parts.put(part)

        async def give() -> AsyncIterator[bytes]:
            while (part := await parts.get()) is not None:
                yield part

        async def read() -> str:
            status: str = await self.source.connection.copy_from_table(
                here.stage.rpartition(".")[2],
                schema_name="pg_temp",
                output=take,
                columns=here.stage_columns,
                format="binary",
            )
            await parts.put(None)
            return status

        async def write() -> str:
            status: str = await self.target.connection.copy_to_table(
                there.stage.rpartition(".")[2],
                schema_name="pg_temp",
                source=give(),
                columns=there.stage_columns,
                format="binary",
            )
            return status

        await together(read(), write())


def _key(texts: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if texts is None else tuple(texts)
