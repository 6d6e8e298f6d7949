"""Indexes that would help, from what the servers have noted of tenants' statements.

The source is PostgreSQL's own pg_stat_statements (manual, F.32), which holds no values of tenants'
statements. Advice is in terms of the tenant-neutral schema: a table, its columns, and the migration
that makes the index, which is brought to every level as any other. Nothing is applied from here.

Rules this module keeps:

* The extension is never left in a database: its view shows texts to everybody who can connect.
  Where it is not installed, it is made in a transaction that is rolled back; nobody else sees it.
* No text of a statement leaves this module.
* An index is advised only where statements touch many blocks each time they run, and no index of
  the table begins with one of the columns that they look for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import ServerName, quote_identifier
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.index_need import index_needs
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

_SQL: Final = SqlFile("statistics.sql")
#: Where the extension is made for as long as it is read.
_OWN_SCHEMA: Final = "tenancy_statistics"
#: Statements that are looked at on a server, and indexes that are advised.
_STATEMENTS_MAX: Final = 1_000
_ADVICE_MAX: Final = 20
_NAME_CHARACTERS_MAX: Final = 80
_PARTIAL: Final = re.compile(r"\bWHERE\b")


class StatisticsState(StrEnum):
    """Whether a server's statistics can be read."""

    READ = "read"
    #: The library is not loaded.
    NOT_LOADED = "not_loaded"
    #: It is loaded, and the admin role may neither make the extension nor see what others ask.
    NOT_PERMITTED = "not_permitted"
    #: The server does not answer.
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """Whether a server's statistics were read, and what to do where they were not."""

    server: ServerName
    state: StatisticsState
    hint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexAdvice:
    """An index that would help, and why: what the statements that would use it have come to."""

    table: str
    columns: tuple[str, ...]
    #: Kinds of statement, their calls, seconds of all, and blocks of 8 KiB that one call touches.
    statements: int
    calls: int
    total_s: float
    blocks_per_call: float

    @property
    def migration(self) -> str:
        """A name for the migration; it gets the next number."""
        words = "_".join(("index", self.table, *self.columns))
        plain = re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")
        return plain[:_NAME_CHARACTERS_MAX]

    @property
    def sql(self) -> str:
        """The migration that makes the index, at every level."""
        columns = ", ".join(map(quote_identifier, self.columns))
        return f"create index on {quote_identifier(self.table)} ({columns});"


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaAdvice:
    """What was found: the servers, and the advice, that first which would save the most."""

    servers: tuple[ServerStatistics, ...]
    indexes: tuple[IndexAdvice, ...]


@dataclass(frozen=True, slots=True)
class _Noted:
    text: str
    calls: int
    total_s: float
    blocks: int


class IndexAdviser:
    """Reads the servers' statistics. Safe for concurrent use from one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        admin: AdminConnections,
        reference: Callable[[], Awaitable[tuple[VisibleSchema, SchemaSnapshot]]],
    ) -> None:
        """`reference` gives the newest version of the schema, and how its indexes are."""
        self._settings = settings
        self._admin = admin
        self._reference = reference

    async def advice(self) -> SchemaAdvice:
        """What would help. Raises `TenancyError` when the schema itself cannot be read."""
        schema, snapshot = await self._reference()
        servers: list[ServerStatistics] = []
        noted: list[_Noted] = []
        for server in self._admin.servers:
            state, found = await self._read(ServerName(server.name))
            servers.append(state)
            noted += found
        return SchemaAdvice(
            servers=tuple(servers), indexes=tuple(_advised(noted, schema, snapshot))
        )

    async def _read(self, server: ServerName) -> tuple[ServerStatistics, list[_Noted]]:
        try:
            connection = await self._admin.connect(server, name="tenancy advice")
        except TenancyError as error:
            return ServerStatistics(
                server=server, state=StatisticsState.UNREACHABLE, hint=str(error)
            ), []
        try:
            return await self._noted(server, connection)
        except asyncpg.ObjectNotInPrerequisiteStateError:
            # Its settings are in the file, and the library is not loaded all the same.
            return ServerStatistics(
                server=server, state=StatisticsState.NOT_LOADED, hint=_how_to_load(server)
            ), []
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            hint = f"server {server} does not answer; try again, or run `tenancy doctor`"
            return ServerStatistics(server=server, state=StatisticsState.UNREACHABLE, hint=hint), []
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close()

    async def _noted(
        self, server: ServerName, connection: asyncpg.Connection
    ) -> tuple[ServerStatistics, list[_Noted]]:
        if not await connection.fetchval(_SQL.statement("loaded")):
            return ServerStatistics(
                server=server, state=StatisticsState.NOT_LOADED, hint=_how_to_load(server)
            ), []
        installed = await connection.fetchrow(_SQL.statement("installed"))
        assert installed is not None  # noqa: S101 - one row always.
        rows: Sequence[Any] | None = None
        if installed["sees_all"]:
            if installed["schema"] is not None:
                rows = await self._busiest(connection, installed["schema"])
            else:
                rows = await self._busiest_unseen(connection)
        if rows is None:
            role, database = installed["role"], installed["database"]
            hint = (
                f"as a superuser of server {server}, in database {database}: create extension "
                f"pg_stat_statements; grant pg_read_all_stats to {quote_identifier(role)}"
            )
            return ServerStatistics(
                server=server, state=StatisticsState.NOT_PERMITTED, hint=hint
            ), []
        return ServerStatistics(server=server, state=StatisticsState.READ), [
            _Noted(row["query"] or "", row["calls"], row["total_s"], int(row["blocks"]))
            for row in rows
        ]

    async def _busiest(self, connection: asyncpg.Connection, schema: str) -> Sequence[Any]:
        settings = self._settings
        return await connection.fetch(
            _SQL.statement("busiest", schema=schema),
            settings.advice_calls_min,
            settings.advice_call_blocks_min,
            _STATEMENTS_MAX,
        )

    async def _busiest_unseen(self, connection: asyncpg.Connection) -> Sequence[Any] | None:
        """By way of an extension that is gone when this returns; None = it may not be made."""
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(_SQL.statement("make_schema", schema=_OWN_SCHEMA))
            await connection.execute(_SQL.statement("make_extension", schema=_OWN_SCHEMA))
            return await self._busiest(connection, _OWN_SCHEMA)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFileError):
            return None
        finally:
            await transaction.rollback()


def _advised(
    noted: Iterable[_Noted], schema: VisibleSchema, snapshot: SchemaSnapshot
) -> list[IndexAdvice]:
    leading = _leading(snapshot)
    found: dict[tuple[str, tuple[str, ...]], list[_Noted]] = {}
    for item in noted:
        # A statement may look for the same in several places.
        wanted = {
            (need.table, need.columns)
            for need in index_needs(item.text, schema.relations)
            if not need.is_met(leading.get(need.table, frozenset()))
        }
        for key in wanted:
            found.setdefault(key, []).append(item)
    advice = [
        IndexAdvice(
            table=table,
            columns=columns,
            statements=len(items),
            calls=sum(item.calls for item in items),
            total_s=sum(item.total_s for item in items),
            blocks_per_call=sum(item.blocks for item in items) / sum(item.calls for item in items),
        )
        for (table, columns), items in found.items()
        # One that another one begins with serves its statements as well.
        if not any(
            other == table and more != columns and more[: len(columns)] == columns
            for other, more in found
        )
    ]
    return sorted(advice, key=lambda item: -item.total_s)[:_ADVICE_MAX]


def _leading(snapshot: SchemaSnapshot) -> dict[str, frozenset[str | None]]:
    """The columns that the tables' indexes begin with, behind the hidden one."""
    found: dict[str, set[str | None]] = {}
    for index in snapshot.indexes:
        keys = [key for key in index.keys if key != TENANT_COLUMN]
        if keys and index.valid and not _PARTIAL.search(index.tail or ""):
            found.setdefault(index.table, set()).add(keys[0])
    return {table: frozenset(columns) for table, columns in found.items()}


def _how_to_load(server: ServerName) -> str:
    return (
        f"server {server} does not count what statements take. The embedded one does when "
        "TENANCY_STATEMENT_STATISTICS_MAX (1000 is enough for most) is set and the runtime is "
        "started again; to another one's shared_preload_libraries add pg_stat_statements, and "
        "restart it"
    )
