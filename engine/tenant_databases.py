"""The databases of single tenants: are they at the version of this release, and getting them there.

Rules this module keeps:

* A start asks the catalog which ones are behind and enters those alone. Nothing depends on it: one
  that could not be brought there stops nobody but its own tenant.
* A database that is behind serves nothing. The release was tested with what it installs, and with
  another version a statement could be refused for no reason, or worse, not be. So whoever comes to
  use it first brings it there (`ensure`), and until that has worked the tenant's operations fail,
  before anything was done.
* One that is ahead, because a later release has started meanwhile, is used: what it installed
  judges bindings by itself, and refuses those that it does not know.
* A database is noted as current after it is: who was killed in between looks at it once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ServerUnavailableError,
    SetupError,
    TenancyError,
    UnavailableError,
    UnsafeRoleError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Tenant
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.installation import (
    install_binding,
    installed_version,
    newest_version,
)
from tenancy.data_isolation.engine.layout import BINDING_SCHEMA
from tenancy.data_isolation.engine.own_tables import own_table_findings
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("databases.sql")
_NEWEST: Final = newest_version(BINDING_SCHEMA)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantDatabase:
    """The database of one tenant of level DATABASE."""

    tenant_no: TenantNo
    server: ServerName
    database: DatabaseName

    def __str__(self) -> str:
        return f"{self.server}/{self.database}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabasesReport:
    """What a start did: databases that are current now, and why others are not."""

    brought: tuple[TenantDatabase, ...]
    failed: tuple[tuple[TenantDatabase, str], ...]


class TenantDatabases:
    """Brings the databases of single tenants to the version of this release.

    Safe for concurrent use by any number of tasks and processes: of several that bring one database
    there, one does it and the others find it done.
    """

    def __init__(self, *, settings: Settings, catalog: Catalog, admin: AdminConnections) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin

    async def ensure_all(self) -> DatabasesReport:
        """Bring all there, `Settings.migration_concurrency` at a time; one query when all are.

        One that fails is logged and left to whoever uses it, and after
        `Settings.migration_failures_max` of them so are all that follow. Raises `UnavailableError`s
        of the catalog.
        """
        run = _Run(pending=iter(await self._behind()))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.migration_concurrency):
                    group.create_task(self._work(run))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return DatabasesReport(brought=tuple(run.brought), failed=tuple(run.failed))

    async def ensure(self, tenant: Tenant) -> None:
        """Raise `UnavailableError` unless the tenant's database is, or comes, up to date."""
        placement = tenant.placement
        if placement is None or placement.level is not IsolationLevel.DATABASE:
            return
        place = TenantDatabase(
            tenant_no=tenant.tenant_no, server=placement.server, database=placement.database
        )
        version = await self._catalog.pool.value(
            _SQL.statement("version"), place.tenant_no, place.server, place.database
        )
        if version is not None and version >= _NEWEST:
            return
        try:
            await self._bring(place)
        except (UnavailableError, OverloadedError):
            raise
        except TenancyError as error:
            _log.error("database %s stays behind this release: %s", place, error.detail)
            raise UnavailableError(
                f"the database of tenant {tenant.tenant_id} is not at the version that this "
                "release needs, and could not be brought there; nothing was done; "
                "`tenancy doctor` and the log say why"
            ) from None

    async def ensure_connected(self, connection: asyncpg.Connection, place: TenantDatabase) -> None:
        """As `ensure`, over the admin's `connection` to that database; looks at it in any case.

        Raises `SetupError` and errors of PostgreSQL.
        """
        version = await installed_version(connection)
        if version < _NEWEST:
            replaced = await own_table_findings(connection, server=place.server)
            if replaced:
                told = "; ".join(map(str, replaced))
                raise UnsafeRoleError(f"nothing is changed in database {place}: {told}")
            await install_binding(connection, settings=self._settings, rows=False)
            version = await installed_version(connection)
        await self._catalog.pool.write(
            _SQL.statement("record"), place.tenant_no, place.server, place.database, version
        )

    async def _work(self, run: _Run) -> None:
        for place in run.pending:
            if len(run.failed) >= self._settings.migration_failures_max:
                return
            try:
                await self._bring(place)
            except TenancyError as error:
                _log.error("database %s stays behind this release: %s", place, error.detail)
                run.failed.append((place, error.detail))
            else:
                _log.info("database %s is up to date", place)
                run.brought.append(place)

    async def _bring(self, place: TenantDatabase) -> None:
        try:
            async with self._admin.session(place.server, place.database) as connection:
                await self.ensure_connected(connection, place)
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
            raise ServerUnavailableError(
                f"server {place.server!r} went away while database {place.database} was brought "
                "up to date"
            ) from error
        except asyncpg.PostgresError as error:
            raise SetupError(f"database {place} refused a step: {error}", error.sqlstate) from error

    async def _behind(self) -> list[TenantDatabase]:
        found: list[TenantDatabase] = []
        page = self._settings.catalog_page_rows_max
        while True:
            last = found[-1].tenant_no if found else 0
            rows = await self._catalog.pool.rows(_SQL.statement("behind"), _NEWEST, last, page)
            found += [
                TenantDatabase(
                    tenant_no=TenantNo(row["tenant_no"]),
                    server=ServerName(row["server"]),
                    database=DatabaseName(row["database"]),
                )
                for row in rows
            ]
            if len(rows) < page:
                return found


@dataclass(kw_only=True, slots=True)
class _Run:
    pending: Iterator[TenantDatabase]
    brought: list[TenantDatabase] = field(default_factory=list)
    failed: list[tuple[TenantDatabase, str]] = field(default_factory=list)
