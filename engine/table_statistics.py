"""Statistics of tables that are out of date, and bringing them up to date when somebody asks.

A table counts as out of date by PostgreSQL's own rule (manual, 24.1.3, and the table's own storage
parameters): more of it has changed than autovacuum waits for. That autovacuum has not come since is
what happens where it is off, or late because there are many databases and tables.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import (
    ConflictError,
    NotFoundError,
    ServerUnavailableError,
    SettingError,
    StatementTimeoutError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, SchemaName, ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.layout import OWNER_ROLE
from tenancy.data_isolation.engine.plan_advice import (
    ADVICE_MAX,
    PlanAdvice,
    ReadStatement,
    TablePlace,
    advised_analyze,
)
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.statement_statistics import limit_on_server

_log = logging.getLogger(__name__)

_SQL: Final = SqlFile("statistics.sql")
#: Databases whose tables are looked at: those whose statements took the longest.
_DATABASES_MAX: Final = 20
_NO_DATABASE: Final = "3D000"
_TROUBLE: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analyzed:
    """A table that PostgreSQL has looked at again: its rows, roughly, and how long that took."""

    place: TablePlace
    rows: float
    took_s: float


class TableStatistics:
    """Looks for statistics that are out of date. Safe for concurrent use from one event loop."""

    def __init__(self, *, settings: Settings, admin: AdminConnections) -> None:
        self._settings = settings
        self._admin = admin

    async def advice(
        self, read: Sequence[ReadStatement]
    ) -> tuple[list[PlanAdvice], list[ServerName]]:
        """For tables of statements that touch many blocks; and the servers of the databases that
        could not be looked at, one for each. Does not raise.
        """
        by_database: dict[tuple[ServerName, DatabaseName], list[ReadStatement]] = {}
        for item in read:
            noted = item.noted
            if item.tables and noted.blocks >= self._settings.advice_call_blocks_min * noted.calls:
                by_database.setdefault((noted.server, noted.database), []).append(item)
        longest = sorted(by_database.items(), key=lambda pair: -_total_s(pair[1]))
        found: list[PlanAdvice] = []
        unseen: list[ServerName] = []
        for (server, database), items in longest[:_DATABASES_MAX]:
            try:
                found += await self._of_database(server, database, items)
            except (TenancyError, *_TROUBLE) as error:
                unseen.append(server)
                _log.warning("database %s was not looked at: %r", database, error)
        found.sort(key=lambda item: -item.statements.total_s)
        return found[:ADVICE_MAX], unseen

    async def analyze(self, place: TablePlace) -> Analyzed:
        """Have PostgreSQL look at a table again; tenants go on reading and writing it meanwhile.

        Raises `NotFoundError` when there is no such table of tenants, `StatementTimeoutError` when
        it takes longer than `Settings.advice_timeout_s`, `ConflictError` when somebody is at work
        on the table, and `SettingError` when the admin role may not do that.
        """
        began = monotonic()
        connection = await self._connected(place)
        try:
            rows = await self._analyzed(connection, place)
        except (TimeoutError, asyncpg.QueryCanceledError):
            raise StatementTimeoutError(
                f"{place.analyze} took longer than TENANCY_ADVICE_TIMEOUT_S "
                f"({self._settings.advice_timeout_s:g}) and was cancelled"
            ) from None
        except asyncpg.UndefinedTableError:
            raise _no_table(place) from None
        except asyncpg.InsufficientPrivilegeError:
            raise _not_allowed(place) from None
        except _TROUBLE as error:
            raise ServerUnavailableError(
                f"server {place.server} broke {place.analyze} off; try again",
                getattr(error, "sqlstate", None),
            ) from None
        finally:
            await close(connection, self._settings.connect_timeout_s)
        _log.info("%s in database %s of server %s", place.analyze, place.database, place.server)
        return Analyzed(place=place, rows=rows, took_s=monotonic() - began)

    async def _of_database(
        self, server: ServerName, database: DatabaseName, items: Sequence[ReadStatement]
    ) -> list[PlanAdvice]:
        pairs = sorted({(item.noted.role, table) for item in items for table in item.tables})
        connection = await self._admin.connect(
            server,
            database,
            name="tenancy advice",
            command_timeout_s=self._settings.advice_timeout_s,
        )
        try:
            await limit_on_server(connection, self._settings.advice_timeout_s)
            rows = await connection.fetch(
                _SQL.statement("stale_tables"),
                [role for role, _ in pairs],
                [table for _, table in pairs],
                self._settings.advice_call_blocks_min,
            )
        finally:
            await close(connection, self._settings.connect_timeout_s)
        return [
            advised_analyze(
                TablePlace(
                    server=server,
                    database=database,
                    schema=SchemaName(row["schema"]),
                    table=row["name"],
                ),
                _figures(row),
                [item for item in items if _concerns(row, item)],
            )
            for row in rows
        ]

    async def _connected(self, place: TablePlace) -> asyncpg.Connection:
        try:
            return await self._admin.connect(
                place.server,
                place.database,
                name="tenancy advice",
                command_timeout_s=self._settings.advice_timeout_s,
            )
        except ServerUnavailableError as error:
            if error.sqlstate == _NO_DATABASE:
                raise _no_table(place) from None
            raise

    async def _analyzed(self, connection: asyncpg.Connection, place: TablePlace) -> float:
        """Rows of the table after it."""
        at = _SQL.statement("table_place")
        before = await connection.fetchrow(at, place.schema, place.table, OWNER_ROLE)
        if before is None:
            raise _no_table(place)
        # Who has the table for itself is not waited for: whoever asks can do so again.
        await connection.execute("set lock_timeout = '1s'")
        await limit_on_server(connection, self._settings.advice_timeout_s)
        try:
            await connection.execute(place.analyze)
        except asyncpg.LockNotAvailableError:
            raise ConflictError(
                f"somebody is at work on table {place.schema}.{place.table}; try again"
            ) from None
        after = await connection.fetchrow(_SQL.statement("analyzed"), before["oid"])
        if after is None:
            raise _no_table(place)
        if after["analyzed"] <= before["analyzed"]:
            # PostgreSQL only warns, and leaves the table out.
            raise _not_allowed(place)
        return float(after["rows"])


def _concerns(row: asyncpg.Record, item: ReadStatement) -> bool:
    """Whether a statement may read that table: logins with an own one of that name do not read the
    shared one.
    """
    return row["name"] in item.tables and item.noted.role in row["roles"]


def _figures(row: asyncpg.Record) -> dict[str, float]:
    return {
        "rows_then": row["rows"],
        "rows_changed": row["changed"],
        "autovacuum_waits_for": row["waits_for"],
    }


def _total_s(items: Sequence[ReadStatement]) -> float:
    return sum(item.noted.total_s for item in items)


def _no_table(place: TablePlace) -> NotFoundError:
    return NotFoundError(
        f"server {place.server} has no table {place.schema}.{place.table} of tenants in database "
        f"{place.database}; ask for advice again"
    )


def _not_allowed(place: TablePlace) -> SettingError:
    return SettingError(
        f"the admin role of server {place.server} may not analyze {place.schema}.{place.table}: "
        f"make it a superuser, or a member of {OWNER_ROLE}"
    )
