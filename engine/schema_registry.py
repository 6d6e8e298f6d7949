"""The registered migrations, and the locks that order changes of the schema; on the control server.

A migration is registered in the transaction in which the control server's reference takes it: what
is registered has been tried, and what is not left no trace. Migrations are never changed or
removed, so what was read once stays true.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import LiteralString

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError, OverloadedError, SchemaError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.cache_periods import heard_s
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.migration import Migration
from tenancy.data_isolation.engine.schema_script import RegisteredMigration, Script
from tenancy.data_isolation.engine.scoping import as_keeper
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("fleet.sql")


class SchemaRegistry:
    """Access to the registered migrations. Safe from any task of one event loop.

    Locks are held on connections of their own, so they end with the process that took them.
    """

    def __init__(self, *, settings: Settings, admin: AdminConnections) -> None:
        self._settings = settings
        self._admin = admin
        self._known: tuple[RegisteredMigration, ...] = ()

    @property
    def control_server(self) -> ServerName:
        """The server that holds the catalog."""
        return ServerName(self._admin.servers[0].name)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[asyncpg.Connection]:
        """An admin connection to the control server's shared database."""
        database = shared_database(self._settings)
        async with self._admin.session(self.control_server, database) as connection:
            yield connection

    async def migrations(self, control: asyncpg.Connection) -> tuple[RegisteredMigration, ...]:
        """All registered migrations, in order."""
        known = self._known
        last = known[-1].migration.number if known else 0
        rows = await control.fetch(_SQL.statement("registered"), last)
        found = (*known, *map(_registered, rows))
        # Another task may have read on meanwhile.
        if len(found) > len(self._known):
            self._known = found
        return found

    def adding(
        self, control: asyncpg.Connection, migration: Migration
    ) -> Callable[[Script], Awaitable[None]]:
        """What registers `migration` with its script, in a transaction that works as the owner."""

        async def add(script: Script) -> None:
            async with as_keeper(control):
                await control.execute(
                    _SQL.statement("register"),
                    migration.number,
                    migration.name,
                    migration.sql,
                    migration.checksum,
                    script.to_json(),
                )

        return add

    @asynccontextmanager
    async def running(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Hold the lock of a run over the fleet; `ConflictError` when another run holds it."""
        if not await control.fetchval(_SQL.statement("try_lock_run")):
            raise ConflictError("another run of the migrations is under way; wait until it is over")
        try:
            await self.check_no_moves(control)
            yield
        finally:
            await _release(control, _SQL.statement("unlock_run"))

    async def check_no_moves(self, control: asyncpg.Connection) -> None:
        """Raise `ConflictError` while a tenant's tables are at two places, which would both change.

        An open move counts, since it could not be rolled back to tables of another version.
        """
        rows = await control.fetch(_SQL.statement("moves"))
        if rows:
            told = ", ".join(f"{row[0]} of tenant {row[1]} ({row[2]})" for row in rows[:5])
            over = all(MoveState(row[2]).is_final for row in rows)
            do = "wait until they are cleaned up" if over else "confirm, roll back or cancel them"
            raise ConflictError(
                f"tenants are being moved: {told}{' and more' if len(rows) > 5 else ''}; {do}, "
                "then apply the migrations"
            )

    @asynccontextmanager
    async def registering(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Keep namespaces from being made. Waits for those that are."""
        async with self._locked(control, "versions"):
            yield

    @asynccontextmanager
    async def making(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Keep migrations from being registered while a namespace is made and noted."""
        async with self._locked(control, "versions_shared"):
            yield

    @asynccontextmanager
    async def template_busy(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Keep template databases from being cloned."""
        async with self._locked(control, "template"):
            yield

    @asynccontextmanager
    async def template_idle(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Keep migrations out of template databases, so that they can be cloned."""
        async with self._locked(control, "template_shared"):
            yield

    @asynccontextmanager
    async def caches_off(self, control: asyncpg.Connection) -> AsyncIterator[None]:
        """Keep results of tenants from being kept; nobody gives any from now on."""
        async with self._locked(control, "caches"):
            async with as_keeper(control):
                wait_s = heard_s(self._settings)
                ended = await control.fetchval(_SQL.statement("end_cache_periods"), wait_s)
            if ended:
                await asyncio.sleep(wait_s)
            yield

    @asynccontextmanager
    async def _locked(self, control: asyncpg.Connection, name: str) -> AsyncIterator[None]:
        limit = _SQL.statement("set_lock_timeout")
        await control.execute(limit, str(self._settings.migration_lock_timeout_ms))
        try:
            await control.execute(_SQL.statement(f"lock_{name}"))
            await control.execute(limit, "0")
        except asyncpg.LockNotAvailableError:
            raise OverloadedError(
                "another change of the schema takes too long; nothing was done, try again",
                retry_after_s=self._settings.migration_lock_timeout_ms / 1_000,
            ) from None
        try:
            yield
        finally:
            await _release(control, _SQL.statement(f"unlock_{name}"))


def _registered(row: asyncpg.Record) -> RegisteredMigration:
    migration = Migration(number=row["number"], name=row["name"], sql=row["sql"])
    if row["script"] is None:
        raise SchemaError(
            f"{migration.title} is in the catalog but no reference has taken it; remove its row "
            "and register it"
        )
    return RegisteredMigration(migration=migration, script=Script.from_json(row["script"]))


async def _release(control: asyncpg.Connection, unlock: LiteralString) -> None:
    """Give a lock back; a connection that is gone has done so already."""
    if not control.is_closed():
        await control.execute(unlock)
