"""One side of a move: a placement, and the session of the admin that works there.

Rules this module keeps:

* What touches the tenant's rows works as the owner under a binding of the tenant, so that row
  security keeps it from everybody else's rows, whatever its SQL says.
* Every transaction begins by looking whether it is still ours to carry the move out, and keeps that
  from changing while it lasts.
* Nothing of ours holds anybody up: lock, statement and idle times are limited by the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError, OverloadedError
from tenancy.data_isolation.core.identifiers import Epoch, TenantNo
from tenancy.data_isolation.core.move import MoveId, Term
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.move_store import SupersededError
from tenancy.data_isolation.engine.move_table import MoveColumn, MoveTable
from tenancy.data_isolation.engine.pinning import pinned
from tenancy.data_isolation.engine.runner import answered, ask, ask_query, leave_owner
from tenancy.data_isolation.engine.scoping import enter_schema
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("move.sql")
_NAMESPACE_SQL = SqlFile("namespace.sql")
#: Belongs to no tenant.
NOBODY: Final = TenantNo(-1)
#: Attempts to get at a table that others keep locked, and the pauses between two, which double: in
#: them everybody else gets on.
_LOCK_ATTEMPTS: Final = 30
_LOCK_PAUSE_S: Final = 0.05
_LOCK_PAUSE_MAX_S: Final = 2.0


class SideName(StrEnum):
    """Which side of a move it is; what belongs to it is named by it."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fence:
    """A tenant's fence in one database."""

    epoch: Epoch
    is_open: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Notes:
    """Notes of changed keys of one table.

    `numbers` are their own, as ranges (an int8multirange): one statement of a tenant can change
    millions of rows, which take numbers that follow each other.
    """

    count: int
    numbers: str


class MoveSide:
    """Works on one placement of one tenant. One transaction at a time."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        placement: Placement,
        *,
        name: SideName,
        move_id: MoveId,
        tenant_no: TenantNo,
        settings: Settings,
        keys: BindingKeys,
    ) -> None:
        self.name = name
        self.connection = connection
        self.placement = placement
        self.tables: tuple[MoveTable, ...] = ()
        self._move_id = move_id
        self._tenant_no = tenant_no
        self._settings = settings
        self._keys = keys
        self._term = Term(0)
        #: Whether the tenant may be here from the end of the transaction on.
        self._let_in = False
        #: Whether the tenant is held or about to be, so that nothing may take long.
        self.hurried = False

    @property
    def is_shared(self) -> bool:
        """Whether other tenants use the same tables."""
        return self.placement.level is IsolationLevel.ROW

    @property
    def hold_max_s(self) -> float:
        """How long the tenant may be held, in seconds."""
        return self._settings.move_hold_max_ms / 1_000

    @property
    def hold_limit_s(self) -> float:
        """How long an attempt to change the tenant's place may take in all, in seconds."""
        return (self._settings.move_drain_ms + self._settings.move_hold_max_ms) / 1_000

    # The move's own schema

    async def prepare(self, term: Term, own_pids: Sequence[int]) -> None:
        """Make the move's schema if it is not there, and take the term; waits for older ones."""
        await self._end_others(own_pids)
        async with self.connection.transaction():
            await self.connection.execute(_SQL.statement("make_schema", move=self._move_id))
            await self.connection.execute("set local role tenancy_keeper")
            await self.connection.execute(_SQL.statement("make_tables", move=self._move_id))
        await self.take_term(term, own_pids)

    async def take_term(self, term: Term, own_pids: Sequence[int]) -> None:
        """Keep everybody of an older term out from now on; `SupersededError` if there is a newer.

        Their sessions, all but `own_pids`, are ended first, since one that is frozen could keep
        the term locked.
        """
        await self._end_others(own_pids)
        text = _SQL.statement("take_term", move=self._move_id)
        if await self.connection.fetchval(text, term) is None:
            raise SupersededError
        self._term = term

    async def _end_others(self, own_pids: Sequence[int]) -> None:
        """End the sessions of all who have carried this move out."""
        name = session_name(self._move_id)
        await self.connection.execute(_SQL.statement("other_movers"), name, list(own_pids))

    async def has_schema(self) -> bool:
        """Whether the move's schema is there."""
        found: bool = await self.connection.fetchval(_SQL.statement("has_schema"), self._move_id)
        return found

    async def read_tables(self) -> None:
        """Learn which tables there are."""
        rows = await self.connection.fetch(_SQL.statement("tables"), self.placement.schema)
        self.tables = tuple(table_of(f"{self.name}_{place}", row) for place, row in enumerate(rows))

    # Transactions

    @asynccontextmanager
    async def working(self, *, repeatable: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """A transaction as the owner, bound to the tenant, in which no trigger fires.

        A fence that is closed is open within the transaction, and for nobody else.
        """
        async with self.transaction(repeatable=repeatable) as connection:
            fence = await self.fence()
            if fence is None:
                raise ConflictError(f"the tenant has no fence at {self.placement.server}")
            self._let_in = False
            await self.own(fence.epoch, open_it=not fence.is_open)
            yield connection
            # Users' functions could have been called, as the owner of what runs our statements.
            await leave_owner(connection)
            if not fence.is_open and not self._let_in:
                await self.set_fence(fence.epoch, is_open=False)

    @asynccontextmanager
    async def transaction(self, *, repeatable: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """A transaction of the admin with our limits, under our term."""
        isolation: Any = "repeatable_read" if repeatable else "read_committed"
        settings = self._settings
        limits = (settings.move_statement_timeout_ms, settings.move_idle_timeout_ms)
        if self.hurried:
            # It begins before the last statement of the tenant has ended.
            limits = (settings.move_drain_ms + settings.move_hold_max_ms,) * 2
        async with self.connection.transaction(isolation=isolation):
            await self.connection.execute(
                _SQL.statement("enter"),
                f"{settings.move_lock_timeout_ms}ms",
                *(f"{limit}ms" for limit in limits),
            )
            await self.check_term()
            yield self.connection

    async def check_term(self) -> None:
        """Raise `SupersededError` unless the move is still ours."""
        text = _SQL.statement("check_term", move=self._move_id)
        try:
            found = await self.connection.fetchval(text, self._term)
        except (asyncpg.UndefinedTableError, asyncpg.SerializationError):
            found = None
        if found is None:
            raise SupersededError

    async def own(self, epoch: Epoch, *, open_it: bool = False) -> None:
        """Go on as the owner, bound to the tenant, to the end of the transaction or `admin`."""
        if open_it:
            await self.set_fence(epoch, is_open=True)
        await enter_schema(self.connection, self.placement.schema)
        binding = self._keys.sign(
            self.placement.server,
            self.placement.database,
            self._tenant_no,
            epoch,
            self.connection.get_server_pid(),
        )
        await self.connection.execute(_NAMESPACE_SQL.statement("bind"), binding)

    async def enter(self) -> None:
        """Go on as the owner in the placement's schema, bound to nobody."""
        await enter_schema(self.connection, self.placement.schema)

    async def admin(self) -> None:
        """Go on as the admin."""
        await self.connection.execute("reset role")

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """The rows of a query that reads users' tables, in which no role can be changed.

        Raises `SchemaError` when something in the schema has spoilt the answer.
        """
        return await ask_query(self.connection, query)

    async def put(self, table: MoveTable, query: str) -> int:
        """Put what a query finds into a stage of this database; how many rows. As `ask`."""
        (found,) = await ask(self.connection, answered(table.put_in_stage(query)))
        rows: int = found["rows"]
        return rows

    async def owner(self) -> None:
        """Go on as the owner again, in the same transaction."""
        await self.connection.execute("set local role tenancy_owner")

    async def run(self, *texts: str) -> None:
        """Run statements that may call users' functions, in which no role can be changed."""
        if texts:
            await self.connection.execute(_NAMESPACE_SQL.statement("run"), "; ".join(texts))

    # The fence

    async def make_fence(self, epoch: Epoch) -> None:
        """Give the tenant a closed fence here, unless it has one."""
        await self.connection.execute(_SQL.statement("make_fence"), self._tenant_no, epoch)

    async def set_fence(self, epoch: Epoch, *, is_open: bool) -> None:
        """Open or close the fence at an epoch that is not lower than its own."""
        text = _SQL.statement("set_fence")
        if await self.connection.fetchval(text, self._tenant_no, epoch, is_open) is None:
            raise SupersededError

    async def let_in(self, epoch: Epoch) -> None:
        """Open the fence with the transaction of `working`, which would close it otherwise."""
        await self.set_fence(epoch, is_open=True)
        self._let_in = True

    async def open_soon(self, epoch: Epoch) -> None:
        """Open the fence, and do not wait until that is durable.

        A server that crashes just now has it closed again, though the catalog has the tenant here:
        `move_cutover.reopen` knows that.
        """
        text = _SQL.statement("open_fence_soon")
        if await self.connection.fetchval(text, self._tenant_no, epoch) is None:
            raise SupersededError

    async def rehearse(self) -> None:
        """Have the server and the driver know what follows while the tenant is held."""
        await self.connection.fetchval(_SQL.statement("set_fence"), NOBODY, Epoch(0), False)
        await self.connection.fetchval(_SQL.statement("open_fence_soon"), NOBODY, Epoch(0))

    async def fence(self) -> Fence | None:
        """The tenant's fence here; None where there is none."""
        row = await self.connection.fetchrow(_SQL.statement("fence"), self._tenant_no)
        return None if row is None else Fence(epoch=Epoch(row["epoch"]), is_open=row["open"])

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nobody works for the tenant in this database within the block.

        Begins in a transaction of the admin, which goes on as the owner, and may outlive it.
        Raises `OverloadedError` when statements of the tenant do not end in time; nothing is held
        then. The server ends the session, and with it the hold, when it is silent for too long.
        """
        settings = self._settings
        budget = f"{settings.move_drain_ms}ms"
        idle = f"{settings.move_hold_max_ms}ms"
        try:
            await self.connection.execute(
                _SQL.statement("hold"), self._tenant_no, budget, idle, timeout=self.hold_limit_s
            )
        except asyncpg.LockNotAvailableError:
            raise OverloadedError(
                f"a statement of the tenant still ran after {settings.move_drain_ms} ms "
                "(TENANCY_MOVE_DRAIN_MS)"
            ) from None
        try:
            yield
        finally:
            if not self.connection.is_closed():
                await self.connection.execute(
                    _SQL.statement("let_go"), self._tenant_no, timeout=self.hold_max_s
                )

    async def count(self, table: MoveTable) -> int:
        """How many rows of the tenant a table has; within `working`."""
        where = f"{table.at(self.placement.schema)} where tenant_id = {self._tenant_no:d}"
        (found,) = await self.ask(f"select count(*) as rows from {where}")  # noqa: S608 - quoted
        rows: int = found["rows"]
        return rows

    def adopt_term(self, term: Term) -> None:
        """Work under a term that was taken in this database."""
        self._term = term

    # Noting what changes

    async def note_changes(self) -> None:
        """Note the keys of the rows that the tenant changes from now on. Can be run again."""
        schema = self.placement.schema
        for table in self.tables:
            there = await self._triggers(table)
            triggers = table.make_triggers(self._move_id, schema, self._tenant_no)
            missing = [text for name, text in triggers if name not in there]
            if missing:
                async with self.connection.transaction():
                    await self.connection.execute("set local role tenancy_keeper")
                    await self.connection.execute(table.make_notes(self._move_id))
                    await self.connection.execute(table.make_noting(self._move_id))
                await self._with_lock(table, "; ".join(missing))

    async def forget_triggers(self) -> None:
        """Take the triggers away. Can be run again."""
        for table in self.tables:
            at = table.at(self.placement.schema)
            drops = [f"drop trigger {name} on {at}" for name in await self._triggers(table)]
            if drops:
                await self._with_lock(table, "; ".join(drops))

    async def forget_schema(self) -> None:
        """Take the move's schema away, when no trigger calls anything in it. Can be run again."""
        await self.connection.execute(_SQL.statement("drop_schema", move=self._move_id))

    async def changed(self) -> dict[str, Notes]:
        """The notes there are, by table; tables without any are left out."""
        if not self.tables:
            return {}
        text = " union all ".join(
            f"select {place}::int as place, count(*) as count, "  # noqa: S608 - our own names
            "range_agg(int8range(tenancy_seq, tenancy_seq, '[]'))::text as numbers "
            f"from {table.notes(self._move_id)} having count(*) > 0"
            for place, table in enumerate(self.tables)
        )
        rows = await self.connection.fetch(pinned(text))
        return {
            self.tables[row["place"]].name: Notes(count=row["count"], numbers=row["numbers"])
            for row in rows
        }

    async def backlog(self) -> int:
        """How many notes there are."""
        if not self.tables:
            return 0
        text = " union all ".join(
            f"select count(*) as notes from {table.notes(self._move_id)}"  # noqa: S608 - our names
            for table in self.tables
        )
        return sum(row["notes"] for row in await self.connection.fetch(pinned(text)))

    async def forget_notes(self, table: MoveTable, notes: Notes) -> None:
        """Remove notes of changes that the target has."""
        text = pinned(
            f"delete from {table.notes(self._move_id)} "  # noqa: S608 - our own names
            # In a subselect, or the text would be read again for each note.
            "where tenancy_seq <@ (select $1::text::int8multirange)"
        )
        await self.connection.execute(text, notes.numbers)

    async def make_stages(self) -> None:
        """Have the stages, for this session, before any code of users has run in it."""
        if self.tables:
            text = "; ".join(table.make_stage() for table in self.tables)
            await self.connection.execute(text)

    async def analyze(self) -> None:
        """Have statistics of the tables, unless they are shared: PostgreSQL looks at a table that
        is new only after a while, and the tenant would work with bad plans until then.
        """
        if not self.is_shared:
            for table in self.tables:
                at = table.at(self.placement.schema)
                await self.connection.execute(f"analyze (skip_locked) {at}")

    # Parts

    async def _triggers(self, table: MoveTable) -> list[str]:
        rows = await self.connection.fetch(
            _SQL.statement("triggers"), self.placement.schema, table.name, self._move_id
        )
        return [row["name"] for row in rows]

    async def _with_lock(self, table: MoveTable, text: str) -> None:
        """Run definitions that need the table for themselves, again and again until they get it.

        They wait a moment only each time, because everybody else's writes queue up behind them, and
        who has the table and is silent loses it as soon as one who holds a tenant would.
        """
        settings = self._settings
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                async with self.connection.transaction():
                    limits = (settings.move_lock_timeout_ms, settings.move_hold_max_ms)
                    text_of_limits = _SQL.statement("lock_limit")
                    await self.connection.execute(text_of_limits, *(f"{ms}ms" for ms in limits))
                    await self.connection.execute(f"set local role tenancy_owner; {text}")
            except asyncpg.LockNotAvailableError:
                if attempt + 1 == _LOCK_ATTEMPTS:
                    raise OverloadedError(
                        f"table {table.name} was locked by others at each of {_LOCK_ATTEMPTS} "
                        "attempts; try again"
                    ) from None
                await asyncio.sleep(min(_LOCK_PAUSE_S * 2**attempt, _LOCK_PAUSE_MAX_S))
            else:
                return


def session_name(move_id: MoveId) -> str:
    """What sessions call themselves that carry the move out."""
    return f"tenancy {move_id}"


def table_of(label: str, row: asyncpg.Record) -> MoveTable:
    """The table of a row of `tables` in `sql/move.sql`; `label` names what belongs to it."""
    columns = tuple(
        MoveColumn(name=name, type=kind, base_type=base, own_type=own)
        for name, kind, base, own in zip(
            row["columns"], row["types"], row["base_types"], row["own_types"], strict=True
        )
    )
    by_name = {column.name: column for column in columns}
    return MoveTable(
        label=label,
        name=row["name"],
        columns=columns,
        key=tuple(by_name[name] for name in row["key"] or ()),
        deferrable_key=row["deferrable_key"],
    )
