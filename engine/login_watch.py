"""The logins of one server as the watchdog sees to them: limits, doors, and what they change.

* The limits of a login follow from its tenant's type, which the catalog knows.
* A door: a login that the watchdog had to act against gets no session beyond those it has, for a
  while (CONNECTION LIMIT). What the runtime holds goes on working, so that on the shared login the
  tenants of level ROW notice nothing.
* `ALTER ROLE CURRENT_USER` lets a login change its own defaults and password, which for the shared
  one would hit every tenant of level ROW: it is undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, role_password, role_salt, scram_verifier
from tenancy.data_isolation.core.identifiers import RoleName, ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.layout import ROWS_ROLE
from tenancy.data_isolation.engine.login_limits import (
    UNLIMITED,
    limit_connections,
    limit_temp_files,
    login_connections_max,
    temp_file_limit,
)
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.watch_rules import Offence

_log = logging.getLogger(__name__)

_SQL = SqlFile("watchdog.sql")
_ROLES_SQL = SqlFile("roles.sql")
#: Logins whose types are remembered; the others are asked for again.
_LOGINS_MAX: Final = 10_000
#: Logins whose limits are put right at a time.
_UNUSUAL_MAX: Final = 50
#: The least that is left to the shared login, whose sessions the runtime may yet have to open.
_SHARED_MIN: Final = 1


class LoginWatch:
    """What is known of the logins of one server. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        master_key: MasterKey,
        server: ServerName,
        superuser: bool,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._tiers = settings.tier_limits
        self._master_key = master_key
        self._server = server
        self._superuser = superuser
        self._clock = clock
        self._types: dict[RoleName, TenantType | None] = {}
        #: Logins with a closed door: until when, and how many sessions they have room for else.
        self._doors: dict[RoleName, tuple[float, int]] = {}
        self._verifiers: dict[RoleName, str] = {}
        self._seen: set[RoleName] = {ROWS_ROLE}

    def limits_of(self, role: RoleName) -> TierLimits | None:
        """What the login's tenant may take; on the shared one, whatever any type may."""
        if role == ROWS_ROLE:
            return self._tiers.widest
        tenant_type = self._types.get(role)
        return None if tenant_type is None else self._tiers.of(tenant_type)

    def unknown(self, roles: Collection[RoleName]) -> list[RoleName]:
        """Those of which it is not known whose they are."""
        self._seen.update(roles)
        return [role for role in roles if role != ROWS_ROLE and role not in self._types]

    def learn(self, asked: Collection[RoleName], types: Mapping[RoleName, TenantType]) -> None:
        """What the catalog says; a login that it does not know is not the runtime's."""
        if len(self._types) + len(asked) > _LOGINS_MAX:
            self._types.clear()
        for role in asked:
            self._types[role] = types.get(role)

    def forget(self) -> None:
        """Ask the catalog again: logins come, go, and change their types."""
        self._types.clear()

    # Doors

    async def penalize(
        self, connection: asyncpg.Connection, role: RoleName, sessions_left: int
    ) -> None:
        """Let the login have no session beyond those it has, for a while."""
        new = role not in self._doors
        until = self._clock() + self._settings.watchdog_penalty_s
        self._doors[role] = until, self._usual(role)
        least = _SHARED_MIN if role == ROWS_ROLE else 0
        await limit_connections(connection, role, max(sessions_left, least))
        if new:
            _log.warning(
                "login %s gets no further session for %g s",
                role,
                self._settings.watchdog_penalty_s,
            )

    async def open_doors(self, connection: asyncpg.Connection, *, everything: bool = False) -> None:
        """Give logins back what they may have, when their time is over."""
        now = self._clock()
        for role, (until, usual) in list(self._doors.items()):
            if everything or now >= until:
                # The tenant may have been deleted meanwhile.
                with suppress(asyncpg.UndefinedObjectError):
                    await limit_connections(connection, role, usual)
                del self._doors[role]

    def _usual(self, role: RoleName) -> int:
        """The sessions that a login has room for."""
        limits = self.limits_of(role)
        if role == ROWS_ROLE or limits is None:
            return self._settings.server_connections_max
        return login_connections_max(limits)

    # What they should be

    async def prepare(self, connection: asyncpg.Connection) -> None:
        """Limit the shared login."""
        await limit_connections(connection, ROWS_ROLE, self._settings.server_connections_max)
        await limit_temp_files(connection, ROWS_ROLE, self._tiers.widest)

    async def unusual(self, connection: asyncpg.Connection) -> list[RoleName]:
        """Some of the tenants' logins whose limits have to be looked at."""
        usual = {login_connections_max(self._tiers.of(tenant_type)) for tenant_type in TenantType}
        found = await connection.fetch(
            _SQL.statement("unusual_logins"), sorted(usual), _UNUSUAL_MAX
        )
        return [RoleName(row["role"]) for row in found]

    async def restore(self, connection: asyncpg.Connection) -> None:
        """Leave nothing of this watchdog's behind."""
        await self.open_doors(connection, everything=True)
        await limit_connections(connection, ROWS_ROLE, UNLIMITED)

    async def limit(self, connection: asyncpg.Connection, roles: Collection[RoleName]) -> None:
        """Give logins the limits of their tenants' types, where they have others."""
        for row in await connection.fetch(_SQL.statement("login_limits"), list(roles)):
            role = RoleName(row["role"])
            limits = self.limits_of(role)
            if limits is None or role == ROWS_ROLE:
                continue
            most = login_connections_max(limits)
            if row["connection_limit"] != most and role not in self._doors:
                await limit_connections(connection, role, most)
            if row["temp_file_limit"] != temp_file_limit(limits):
                await limit_temp_files(connection, role, limits)

    # What they change themselves

    async def undo_changes(self, connection: asyncpg.Connection) -> list[Offence]:
        """Take back settings and passwords that logins gave themselves; what was taken back."""
        undone: list[Offence] = []
        for row in await connection.fetch(_SQL.statement("own_settings"), ROWS_ROLE):
            if row["role"] != ROWS_ROLE and self.limits_of(row["role"]) is None:
                continue
            _log.warning("login %s has set %s for itself; undone", row["role"], row["setting"])
            await connection.execute(row["mend"])
            undone.append(Offence.LOGIN_SETTINGS)
        if self._superuser:
            undone += await self._undo_passwords(connection)
        return undone

    async def _undo_passwords(self, connection: asyncpg.Connection) -> list[Offence]:
        """Look at the shared login, and at those that had a session since the last look."""
        roles = [role for role in self._seen if self.limits_of(role) is not None]
        self._seen = {ROWS_ROLE}
        undone = []
        for row in await connection.fetch(_SQL.statement("stored_passwords"), roles):
            role = RoleName(row["role"])
            verifier = self._verifiers.get(role)
            if verifier is None:
                verifier = await asyncio.to_thread(self._verifier, role)
                if len(self._verifiers) >= _LOGINS_MAX:
                    self._verifiers.clear()
                self._verifiers[role] = verifier
            if row["verifier"] == verifier:
                continue
            _log.warning("login %s has changed its password; undone", role)
            text = await connection.fetchval(
                _ROLES_SQL.statement("set_password_text"), role, verifier
            )
            await connection.execute(text)
            undone.append(Offence.LOGIN_PASSWORD)
        return undone

    def _verifier(self, role: RoleName) -> str:
        """Thousands of hashes, hence in a thread."""
        password = role_password(self._master_key, self._server, role)
        return scram_verifier(password, role_salt(self._master_key, self._server, role))
