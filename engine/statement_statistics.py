"""What the servers have noted of tenants' statements.

The source is PostgreSQL's own pg_stat_statements (manual, F.32), which holds no values of tenants'
statements as a rule; where it had no room it may hold one.

Rules this module keeps:

* The extension is never left in a database: its view shows texts to everybody who can connect.
  Where it is not installed, it is made in a transaction that is rolled back; nobody else sees it.
* Texts go to the rules that give advice and no further: none is shown.
* A server that cannot be read is told with the reason, and the others are read all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.errors import OverloadedError, TenancyError
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    ServerName,
    quote_identifier,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL: Final = SqlFile("statistics.sql")
#: Where the extension is made for as long as it is read.
_OWN_SCHEMA: Final = "tenancy_statistics"
#: Statements that are looked at on a server.
_STATEMENTS_MAX: Final = 1_000
#: The session is over, or the server ends (manual, appendix A).
_LOST: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
#: A limit of time, ours or the server's, or somebody else's lock.
#: Of the time that is waited for a statement, so much it may take on the server.
_SERVER_SHARE: Final = 0.9
_TIMED_OUT: Final = (
    TimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class StatisticsState(StrEnum):
    """Whether a server's statistics can be read."""

    READ = "read"
    #: The library is not loaded.
    NOT_LOADED = "not_loaded"
    #: The library is loaded, and the server has not the files of the extension, or those of
    #: another version.
    NOT_AVAILABLE = "not_available"
    #: It is loaded, and the admin role may neither make the extension nor see what others ask.
    NOT_PERMITTED = "not_permitted"
    #: The server answers, and not in time; or there was no connection left for it.
    TIMED_OUT = "timed_out"
    #: The server does not answer.
    UNREACHABLE = "unreachable"
    #: The server refuses, for a reason of its own.
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerStatistics:
    """Whether a server's statistics were read, and what to do where they were not.

    `planning_counted`: it also counts what planning takes (pg_stat_statements.track_planning).
    """

    server: ServerName
    state: StatisticsState
    hint: str | None = None
    planning_counted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NotedStatement:
    """A kind of statement of one login in one database, and what its calls have come to.

    Times in seconds and blocks of 8 KiB are those of all calls. `blocks` were touched in shared
    memory, `temp_blocks` written to temporary files; `plans` and `plan_s` are 0 where planning is
    not counted.
    """

    server: ServerName
    database: DatabaseName
    role: RoleName
    query_id: int
    text: str
    calls: int
    total_s: float
    blocks: int
    temp_blocks: int = 0
    plans: int = 0
    plan_s: float = 0.0


class StatementStatistics:
    """Reads what the servers have noted. Safe for concurrent use from one event loop."""

    def __init__(self, *, settings: Settings, admin: AdminConnections) -> None:
        self._settings = settings
        self._admin = admin

    async def read(self) -> tuple[list[ServerStatistics], list[NotedStatement]]:
        """How each server fared, and the statements of all that could be read. Does not raise."""
        servers: list[ServerStatistics] = []
        noted: list[NotedStatement] = []
        for config in self._admin.servers:
            state, found = await self._read(ServerName(config.name))
            servers.append(state)
            noted += found
        return servers, noted

    async def _read(self, server: ServerName) -> tuple[ServerStatistics, list[NotedStatement]]:
        try:
            connection = await self._admin.connect(
                server, name="tenancy advice", command_timeout_s=self._settings.advice_timeout_s
            )
        except OverloadedError as error:
            return _not_read(server, StatisticsState.TIMED_OUT, str(error))
        except TenancyError as error:
            return _not_read(server, StatisticsState.UNREACHABLE, str(error))
        try:
            return await self._noted(server, connection)
        except (*_LOST, TimeoutError, asyncpg.PostgresError) as error:
            return _not_read(server, *trouble(server, error))
        finally:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                await close(connection, self._settings.connect_timeout_s)

    async def _noted(
        self, server: ServerName, connection: asyncpg.Connection
    ) -> tuple[ServerStatistics, list[NotedStatement]]:
        await limit_on_server(connection, self._settings.advice_timeout_s)
        if not await connection.fetchval(_SQL.statement("loaded")):
            return _not_read(server, StatisticsState.NOT_LOADED, _how_to_load(server))
        installed = await connection.fetchrow(_SQL.statement("installed"))
        assert installed is not None  # noqa: S101 - one row always.
        if not installed["sees_all"]:
            return _not_read(server, *_not_permitted(server, installed))
        try:
            if installed["schema"] is not None:
                rows = await self._busiest(connection, installed["schema"])
            else:
                rows = await self._busiest_unseen(connection)
        except asyncpg.InsufficientPrivilegeError:
            return _not_read(server, *_not_permitted(server, installed))
        state = ServerStatistics(
            server=server,
            state=StatisticsState.READ,
            planning_counted=installed["planning_counted"],
        )
        return state, [_statement(server, row) for row in rows]

    async def _busiest(self, connection: asyncpg.Connection, schema: str) -> Sequence[Any]:
        settings = self._settings
        return await connection.fetch(
            _SQL.statement("busiest", schema=schema),
            settings.advice_calls_min,
            settings.advice_call_blocks_min,
            settings.advice_plans_min,
            _STATEMENTS_MAX,
        )

    async def _busiest_unseen(self, connection: asyncpg.Connection) -> Sequence[Any]:
        """By way of an extension that is gone when this returns."""
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(_SQL.statement("make_schema", schema=_OWN_SCHEMA))
            await connection.execute(_SQL.statement("make_extension", schema=_OWN_SCHEMA))
            return await self._busiest(connection, _OWN_SCHEMA)
        finally:
            # A session that is lost has nothing left to roll back, and the reason is under way.
            if not connection.is_closed():
                await transaction.rollback()


async def limit_on_server(connection: asyncpg.Connection, limit_s: float) -> None:
    """Have PostgreSQL end a statement by itself, before who waits for it gives up.

    A connection that is dropped ends nothing there: what runs keeps its locks until it is done.
    """
    limit_ms = max(1, round(limit_s * 1_000 * _SERVER_SHARE))
    await connection.execute(f"set statement_timeout = {limit_ms}")


def trouble(server: ServerName, error: Exception) -> tuple[StatisticsState, str]:
    """What an error of the driver or of PostgreSQL means for the advice, and what to do."""
    match error:
        # First: the driver has a lock that was not had in time among the next ones.
        case _ if isinstance(error, _TIMED_OUT):
            return StatisticsState.TIMED_OUT, (
                f"server {server} did not answer in time: try again when it is less busy, or raise "
                "TENANCY_ADVICE_TIMEOUT_S"
            )
        case asyncpg.ObjectNotInPrerequisiteStateError():
            # Its settings are in the file, and the library is not loaded all the same.
            return StatisticsState.NOT_LOADED, _how_to_load(server)
        case (
            asyncpg.UndefinedFileError()
            | asyncpg.FeatureNotSupportedError()
            | asyncpg.UndefinedColumnError()
            | asyncpg.UndefinedFunctionError()
        ):
            return StatisticsState.NOT_AVAILABLE, (
                f"server {server} has not the extension pg_stat_statements of its own version: "
                "install PostgreSQL's contrib package there; where the extension is from before "
                "an upgrade: alter extension pg_stat_statements update"
            )
        case asyncpg.InsufficientPrivilegeError():
            return StatisticsState.NOT_PERMITTED, (
                f"the admin role of server {server} lacks a right (SQLSTATE {error.sqlstate}); "
                "see `tenancy doctor`"
            )
        case _ if isinstance(error, _LOST):
            return StatisticsState.UNREACHABLE, (
                f"server {server} does not answer; try again, or run `tenancy doctor`"
            )
        case _:
            # Not its words: they could quote a statement.
            sqlstate = getattr(error, "sqlstate", None) or "none"
            return StatisticsState.FAILED, (
                f"server {server} refused to tell (SQLSTATE {sqlstate}); its log says why"
            )


def _not_read(
    server: ServerName, state: StatisticsState, hint: str
) -> tuple[ServerStatistics, list[NotedStatement]]:
    return ServerStatistics(server=server, state=state, hint=hint), []


def _not_permitted(server: ServerName, installed: Any) -> tuple[StatisticsState, str]:
    role, database = installed["role"], installed["database"]
    return StatisticsState.NOT_PERMITTED, (
        f"as a superuser of server {server}, in database {database}: create extension "
        f"pg_stat_statements; grant pg_read_all_stats to {quote_identifier(role)}"
    )


def _statement(server: ServerName, row: Any) -> NotedStatement:
    return NotedStatement(
        server=server,
        database=DatabaseName(row["database"]),
        role=RoleName(row["role"]),
        query_id=row["queryid"] or 0,
        text=row["query"] or "",
        calls=row["calls"],
        total_s=row["total_s"],
        blocks=int(row["blocks"]),
        temp_blocks=int(row["temp_blocks"]),
        plans=row["plans"],
        plan_s=row["plan_s"],
    )


def _how_to_load(server: ServerName) -> str:
    return (
        f"server {server} does not count what statements take. The embedded one does when "
        "TENANCY_STATEMENT_STATISTICS_MAX (1000 is enough for most) is set and the runtime is "
        "started again; to another one's shared_preload_libraries add pg_stat_statements, and "
        "restart it"
    )
