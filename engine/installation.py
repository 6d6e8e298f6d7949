"""What is installed in one database: the schemas `tenancy` and `catalog`, and their versions.

Rules this module keeps:

* What leads to a version is one transaction, with the number that says so: a database is at one
  version or at the next, and who was killed is followed by whoever comes next.
* A step that was released is never changed; what follows is a further version.
* One installer per database at a time. A step waits for a table that tenants' statements hold no
  longer than a migration does, because whoever comes after it waits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.core.identifiers import RoleName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.layout import BINDING_SCHEMA, CATALOG_SCHEMA, OWNER_ROLE
from tenancy.data_isolation.engine.sql_files import SqlFile

#: The check that finds databases that are behind.
CHECK: Final = "installation"

_BINDING_SQL = SqlFile("binding.sql")
_CATALOG_SQL = SqlFile("catalog.sql")
_OVERLAY_SQL = SqlFile("overlay.sql")
_KEEPER_SQL = SqlFile("keeper.sql")

#: How `set role` names the admin that has logged in.
_ADMIN: Final = RoleName("none")


@dataclass(frozen=True, slots=True)
class Step:
    """A statement that leads to a version, and the role that runs it."""

    version: int
    file: SqlFile
    statement: str
    role: RoleName = OWNER_ROLE


#: By component, in the order in which they are taken; versions have no gaps.
STEPS: Final[Mapping[str, Sequence[Step]]] = {
    BINDING_SCHEMA: (
        Step(1, _BINDING_SQL, "binding_1"),
        Step(1, _BINDING_SQL, "data_schemas_1"),
        Step(2, _OVERLAY_SQL, "overlay_2"),
        Step(3, _KEEPER_SQL, "keeper_3", _ADMIN),
        Step(4, _KEEPER_SQL, "keeper_4", _ADMIN),
    ),
    CATALOG_SCHEMA: (
        Step(1, _CATALOG_SQL, "catalog_1"),
        Step(2, _CATALOG_SQL, "catalog_2"),
        Step(3, _CATALOG_SQL, "catalog_3"),
        Step(4, _CATALOG_SQL, "catalog_4"),
        Step(5, _CATALOG_SQL, "catalog_5", _ADMIN),
        Step(6, _CATALOG_SQL, "catalog_6", _ADMIN),
        Step(7, _CATALOG_SQL, "catalog_7", _ADMIN),
        Step(8, _CATALOG_SQL, "catalog_8", _ADMIN),
    ),
}
#: Takes rights from PUBLIC. Needs the owner of PostgreSQL's own functions: a superuser.
_HARDENING: Final = ("owner_rights", "close_languages", "close_functions")


def newest_version(component: str) -> int:
    """The version that this release brings."""
    return STEPS[component][-1].version


async def installed_version(connection: asyncpg.Connection, component: str = BINDING_SCHEMA) -> int:
    """The version that is installed where the admin's `connection` is; 0 for none."""
    if not await connection.fetchval(_BINDING_SQL.statement("has_installation")):
        return 0
    found = await connection.fetchval(_BINDING_SQL.statement("installed_version"), component)
    return int(found or 0)


async def install_binding(
    connection: asyncpg.Connection, *, settings: Settings, rows: bool
) -> list[str]:
    """The schemas `tenancy`, `app` and `tenancy_reference`, hardened; what was done. Idempotent.

    `rows`: tenants of level ROW work in this database. Raises `SetupError` when what is installed
    is newer than this release, or when statements hold its tables for too long.
    """
    async with _installing(connection, settings):
        if not await connection.fetchval(_BINDING_SQL.statement("has_installation")):
            await _work_as(connection, OWNER_ROLE)
            await connection.execute(_BINDING_SQL.statement("installation"))
            await _work_as(connection, _ADMIN)
        for name in _HARDENING:
            await _try(connection, name)
        if not await connection.fetchval(_BINDING_SQL.statement("keeper_may_lock")):
            raise SetupError(
                "a superuser has closed PostgreSQL's own functions here, so one has to open them "
                "for the role tenancy_keeper: start once with the DSN of a superuser"
            )
    changes = await _bring(connection, BINDING_SCHEMA, settings)
    async with _installing(connection, settings):
        await _work_as(connection, OWNER_ROLE)
        if rows:
            await connection.execute(_BINDING_SQL.statement("use_app"))
        # The schema `public` belongs to whoever owns the database.
        await connection.execute(_BINDING_SQL.statement("close_public_schema"))
    return changes


async def install_catalog(connection: asyncpg.Connection, *, settings: Settings) -> list[str]:
    """The catalog; what was done. As `install_binding`, which comes first."""
    return await _bring(connection, CATALOG_SCHEMA, settings)


async def version_findings(
    connection: asyncpg.Connection,
    *,
    server: str,
    database: str,
    components: Sequence[str],
    severity: Severity,
) -> list[Finding]:
    """What is older here than this release, which the next start mends."""
    found = []
    for component in components:
        version, newest = await installed_version(connection, component), newest_version(component)
        if version < newest:
            found.append(
                Finding(
                    check=CHECK,
                    severity=severity,
                    server=server,
                    database=database,
                    subject=f"schema {component}",
                    problem=f"is at version {version}, this release needs {newest}",
                    advice="start the runtime once (`tenancy up`), which brings it there, and look "
                    "again",
                    by_hand=True,
                )
            )
    return found


async def _bring(connection: asyncpg.Connection, component: str, settings: Settings) -> list[str]:
    """Take every version that is missing; what was done."""
    newest = newest_version(component)
    changed = False
    while await _patiently_advanced(connection, component, settings):
        changed = True
    return [f"schema {component}, version {newest}"] if changed else []


async def _patiently_advanced(
    connection: asyncpg.Connection, component: str, settings: Settings
) -> bool:
    """Take the next version, again while statements of others are in the way."""
    pause_s = settings.migration_retry_ms / 1_000
    for attempt in range(1, settings.migration_attempts_max + 1):
        try:
            return await _advanced(connection, component, settings)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if attempt == settings.migration_attempts_max:
                raise SetupError(
                    f"statements hold the tables of schema {component} for longer than "
                    f"{settings.migration_lock_timeout_ms} ms, so its next version could not be "
                    "installed; end them, or try again",
                    error.sqlstate,
                ) from error
        await asyncio.sleep(pause_s)
        pause_s *= 2
    return False


async def _advanced(connection: asyncpg.Connection, component: str, settings: Settings) -> bool:
    """Take the steps of the next version; False when there is none."""
    newest = newest_version(component)
    async with _installing(connection, settings):
        installed = await installed_version(connection, component)
        if installed > newest:
            raise SetupError(
                f"schema {component} is at version {installed}, this release knows {newest}; "
                "use the release that set it up, or a later one"
            )
        if installed == newest:
            return False
        for step in STEPS[component]:
            if step.version == installed + 1:
                await _work_as(connection, step.role)
                await connection.execute(step.file.statement(step.statement))
        await _work_as(connection, _ADMIN)
        await connection.execute(_BINDING_SQL.statement("record_version"), component, installed + 1)
    return True


@asynccontextmanager
async def _installing(connection: asyncpg.Connection, settings: Settings) -> AsyncIterator[None]:
    """A transaction of the one installer of this database."""
    limit = _BINDING_SQL.statement("limit_waits")
    others_ms = int(settings.server_start_timeout_s * 1_000)
    async with connection.transaction():
        await connection.execute(limit, str(others_ms))
        try:
            await connection.execute(_BINDING_SQL.statement("install_lock"))
        except asyncpg.LockNotAvailableError:
            raise SetupError(
                f"another process has been installing in this database for {others_ms} ms"
            ) from None
        await connection.execute(limit, str(settings.migration_lock_timeout_ms))
        yield


async def _work_as(connection: asyncpg.Connection, role: RoleName) -> None:
    await connection.execute(_BINDING_SQL.statement("work_as"), role)


async def _try(connection: asyncpg.Connection, name: str) -> None:
    """A step of hardening; one that the admin may not take is left, and found out afterwards."""
    try:
        async with connection.transaction():
            await connection.execute(_BINDING_SQL.statement(name))
    except asyncpg.InsufficientPrivilegeError:
        return
