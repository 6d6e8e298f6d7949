"""Setting a server up, and checking that it is as it must be.

Rules this module keeps:

* Running it again changes nothing; running it after it was killed finishes the work. What leads to
  one version of a database is one transaction (`installation`); CREATE DATABASE cannot be, so each
  of its steps is checked.
* One process at a time: an advisory lock per server, and one per database.
* The databases of single tenants are not its matter (`tenant_databases`).
* A release of PostgreSQL on which a tenant could cross its boundary is not touched
  (`UnsafeServerError`). At the end everything is audited, and what is unsafe stops the start
  (`UnsafeRoleError`); the rest is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, binding_key
from tenancy.data_isolation.core.errors import (
    ServerUnavailableError,
    SetupError,
    TenancyError,
    UnsafeRoleError,
    UnsafeServerError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import add_keys
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.inspection import Inspection, server_findings, unsafe
from tenancy.data_isolation.engine.installation import (
    CHECK as INSTALLATION,
)
from tenancy.data_isolation.engine.installation import (
    install_binding,
    install_catalog,
)
from tenancy.data_isolation.engine.layout import (
    CONTROL_ROLE,
    HYBRID_ROLE,
    KEEPER_ROLE,
    OWNER_ROLE,
    ROWS_ROLE,
    shared_database,
    template_database,
)
from tenancy.data_isolation.engine.login_roles import ensure_fixed_roles, may_act_as
from tenancy.data_isolation.engine.own_tables import own_table_findings
from tenancy.data_isolation.engine.patch_level import CHECK as PATCH_LEVEL
from tenancy.data_isolation.engine.server_facts import ServerFacts, read_facts
from tenancy.data_isolation.engine.sql_files import SqlFile

_log = logging.getLogger(__name__)

_ROLES_SQL = SqlFile("roles.sql")
_BINDING_SQL = SqlFile("binding.sql")
_CATALOG_SQL = SqlFile("catalog.sql")


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapReport:
    """What was set up.

    `changes` is empty when everything was there already; `notes` are things that an operator
    should know and that do not open a way between tenants; `warnings` what the audit found that is
    not unsafe.
    """

    servers: tuple[ServerFacts, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[Finding, ...]


class Bootstrap:
    """Sets up every server; the first one also gets the catalog."""

    def __init__(
        self, *, settings: Settings, master_key: MasterKey, servers: Sequence[ServerConfig]
    ) -> None:
        if not servers:
            raise SetupError("there is no server to set up")
        self._settings = settings
        self._master_key = master_key
        self._admin = AdminConnections(settings=settings, servers=servers)
        self._changes: list[str] = []
        self._notes: list[str] = []
        self._locale: str | None = None

    async def run(self) -> BootstrapReport:
        """Install what is missing, then audit.

        Raises `UnsafeRoleError` with every finding, `SetupError` when a server cannot be used, and
        `ServerUnavailableError`.
        """
        self._changes, self._notes, self._locale = [], [], None
        facts = []
        key_ids: list[int] = []
        for index, config in enumerate(self._admin.servers):
            try:
                server_facts, key_ids = await self._set_up(config, index == 0, key_ids)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise _translate(config, error) from error
            facts.append(server_facts)
        findings = await self.audit()
        if unsafe(findings):
            raise UnsafeRoleError(_told(unsafe(findings)))
        for finding in findings:
            _log.warning("%s", finding)
        return BootstrapReport(
            servers=tuple(facts),
            changes=tuple(self._changes),
            notes=tuple(self._notes),
            warnings=tuple(findings),
        )

    async def audit(self) -> list[Finding]:
        """What is wrong with the installation, without changing anything."""
        return await inspection_of(self._settings, self._admin).audit()

    async def _set_up(
        self, config: ServerConfig, control: bool, key_ids: list[int]
    ) -> tuple[ServerFacts, list[int]]:
        """One server; the facts about it and the ids of the keys that are valid everywhere."""
        server = ServerName(config.name)
        async with self._admin.session(server) as connection:
            facts = await read_facts(connection, server)
            holes = unsafe(server_findings(connection, config, self._settings))
            if holes:
                raise UnsafeServerError(_told(holes))
            await self._lock(connection, server)
            await ensure_fixed_roles(
                connection, master_key=self._master_key, server=server, control=control
            )
            for role in (OWNER_ROLE, KEEPER_ROLE):
                await self._become(connection, server, facts, role)
            for database in (
                shared_database(self._settings),
                template_database(self._settings),
            ):
                if await ensure_database(connection, database):
                    self._changes.append(f"{server}: database {database}")
                key_ids = await self._install(server, database, control, key_ids)
            shared = shared_database(self._settings)
            for role in (ROWS_ROLE, HYBRID_ROLE, *([CONTROL_ROLE] if control else [])):
                await grant_connect(connection, shared, role)
            await self._compare_locale(connection, server)
            if not control:
                await self._register(config)
        return facts, key_ids

    async def _compare_locale(self, connection: asyncpg.Connection, server: ServerName) -> None:
        """Note a server that sorts text in another way than the first one."""
        found = str(
            await connection.fetchval(
                _ROLES_SQL.statement("locale"), shared_database(self._settings)
            )
        )
        if found != (self._locale or found):
            self._notes.append(
                f"{server}: text is sorted by {found!r}, on the first server by {self._locale!r}; "
                "a tenant that moves between them sees another order"
            )
        self._locale = self._locale or found

    async def _install(
        self, server: ServerName, database: DatabaseName, control: bool, key_ids: list[int]
    ) -> list[int]:
        """The schemas of one database, and its keys."""
        shared = database == shared_database(self._settings)
        async with self._admin.session(server, database) as connection:
            # The steps read and write tables of the runtime's own: before, not with the audit.
            replaced = await own_table_findings(connection, server=server)
            if replaced:
                raise UnsafeRoleError(_told(replaced))
            self._changes += [
                f"{server}: {database}: {change}"
                for change in await install_binding(
                    connection, settings=self._settings, rows=shared
                )
            ]
            self._notes += [
                f"{server}: {database}: PUBLIC still has {row['what']}; "
                "only a superuser can revoke it"
                for row in await connection.fetch(_BINDING_SQL.statement("left_open"))
            ]
            if not shared:
                return key_ids
            if control:
                self._changes += [
                    f"{server}: {database}: {change}"
                    for change in await install_catalog(connection, settings=self._settings)
                ]
                config = self._admin.server(server)
                await connection.execute(
                    _CATALOG_SQL.statement("add_server"), config.name, config.region
                )
                rows = await connection.fetch(_CATALOG_SQL.statement("binding_key_numbers"))
                key_ids = [row["key_id"] for row in rows if not row["retired"]]
            keys = [binding_key(self._master_key, server, database, key_id) for key_id in key_ids]
            await add_keys(connection, keys)
        return key_ids

    async def _register(self, config: ServerConfig) -> None:
        """Tell the catalog of a further server."""
        control = ServerName(self._admin.servers[0].name)
        async with self._admin.session(control, shared_database(self._settings)) as connection:
            await connection.execute(
                _CATALOG_SQL.statement("add_server"), config.name, config.region
            )

    async def _lock(self, connection: asyncpg.Connection, server: ServerName) -> None:
        """Wait until no other process sets this server up; the lock goes with the connection."""
        limit_ms = int(self._settings.server_start_timeout_s * 1_000)
        await connection.execute("select set_config('lock_timeout', $1, false)", str(limit_ms))
        try:
            await connection.execute(_ROLES_SQL.statement("roles_lock"))
        except asyncpg.LockNotAvailableError:
            raise SetupError(
                f"another process has been setting up server {server!r} for {limit_ms} ms"
            ) from None

    async def _become(
        self,
        connection: asyncpg.Connection,
        server: ServerName,
        facts: ServerFacts,
        role: RoleName,
    ) -> None:
        """Let an admin that is no superuser do what the role may."""
        if await may_act_as(connection, role, facts.version_num):
            return
        name = "join_owner" if facts.version_num >= 160_000 else "join_owner_15"
        try:
            await connection.execute(_ROLES_SQL.statement(name, owner=role))
        except asyncpg.InsufficientPrivilegeError as error:
            raise SetupError(
                f"the admin role of server {server!r} may not work as {role}: {error}; let "
                f"whoever made that role run: grant {role} to {facts.admin}"
            ) from None
        self._changes.append(f"{server}: {facts.admin} is a member of {role}")


async def check_installation(settings: Settings, admin: AdminConnections) -> None:
    """Raise `UnsafeRoleError` or `UnsafeServerError` when a start would; change nothing.

    For a process that connects to what another one has set up.
    """
    findings = unsafe(await inspection_of(settings, admin).audit())
    for finding in findings:
        _log.error("%s", finding)
    if any(finding.check == PATCH_LEVEL for finding in findings):
        raise UnsafeServerError(_told(findings))
    behind = [finding for finding in findings if finding.check == INSTALLATION]
    if behind:
        # Nobody has done anything: an earlier release has set it up.
        raise SetupError("\n".join(map(str, behind)))
    if findings:
        raise UnsafeRoleError(_told(findings))


def inspection_of(settings: Settings, admin: AdminConnections) -> Inspection:
    """What looks at an installation that this module has made."""
    return Inspection(settings=settings, admin=admin)


def _told(findings: Sequence[Finding]) -> str:
    lines = "\n".join(f"- {finding}" for finding in findings)
    return (
        f"a tenant could cross its boundary, so nothing was started:\n{lines}\n"
        "`tenancy doctor` shows this again, and `tenancy doctor --mend` mends what SQL can"
    )


def _translate(config: ServerConfig, error: Exception) -> TenancyError:
    if isinstance(error, OSError | asyncpg.PostgresConnectionError | asyncpg.InterfaceError):
        return ServerUnavailableError(f"server {config.name!r} went away while it was set up")
    sqlstate = getattr(error, "sqlstate", None)
    return SetupError(f"server {config.name!r} refused a step of its set-up: {error}", sqlstate)
