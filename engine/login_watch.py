"""The logins of one server as the watchdog sees to them: limits, doors, and what they change.

* The limits of a login follow from its tenant's type, which the catalog knows.
* A door: a login that the watchdog had to act against gets no session beyond those it has, for a
  while (CONNECTION LIMIT). What the runtime holds goes on working, so that on the shared login the
  tenants of level ROW notice nothing.
* `ALTER ROLE CURRENT_USER` lets a login change its own defaults and password, which for the shared
  one would hit every tenant of level ROW: it is undone.

What is known outlives the connection, and what cannot be changed now is changed at a later look.
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
from tenancy.data_isolation.engine.login_changes import LoginChanges
from tenancy.data_isolation.engine.login_limits import (
    UNLIMITED,
    connection_limit_text,
    login_connections_max,
    temp_file_limit,
    temp_file_limit_text,
)
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.watch_rules import HANDOVER_FACTOR, Offence

_log = logging.getLogger(__name__)

_SQL = SqlFile("watchdog.sql")
_ROLES_SQL = SqlFile("roles.sql")
#: Logins whose types are remembered; the others are asked for again.
_LOGINS_MAX: Final = 10_000
#: Logins whose limits are put right at a time.
_UNUSUAL_MAX: Final = 50
#: The least that is left to the shared login, whose sessions the runtime may yet have to open.
_SHARED_MIN: Final = 1
#: What is asked of the catalogs takes no longer.
_ASK_TIMEOUT_S: Final = 5.0
#: How long the end of the watch waits for logins that cannot be altered.
_RESTORE_S: Final = 2.0
_RESTORE_RETRY_S: Final = 0.05


class LoginWatch:
    """What is known of the logins of one server. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        master_key: MasterKey,
        server: ServerName,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._tiers = settings.tier_limits
        self._master_key = master_key
        self._server = server
        self._superuser = False
        self._clock = clock
        self._changes = LoginChanges(clock)
        #: Connection limits that logins are to get, and those whose other limits are to be seen to.
        self._wanted: dict[RoleName, int] = {}
        self._unlimited: set[RoleName] = set()
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
        if self._superuser:
            # Nobody else can look at their passwords, and so nobody would forget them again.
            self._seen.update(roles)
        return [role for role in roles if role != ROWS_ROLE and role not in self._types]

    def learn(self, asked: Collection[RoleName], types: Mapping[RoleName, TenantType]) -> None:
        """What the catalog says; a login that it does not know is not the runtime's."""
        if len(self._types) + len(asked) > _LOGINS_MAX:
            self._types.clear()
        for role in asked:
            self._types[role] = types.get(role)
        self._unlimited.update(asked)

    def forget(self) -> None:
        """Ask the catalog again: logins come, go, and change their types."""
        self._types.clear()

    # Doors

    def penalize(self, role: RoleName, sessions_left: int) -> None:
        """Let the login have no session beyond those it has, for a while; `settle` does it."""
        new = role not in self._doors
        until = self._clock() + self._settings.watchdog_penalty_s
        self._doors[role] = until, self._usual(role)
        least = _SHARED_MIN if role == ROWS_ROLE else 0
        self._wanted[role] = max(sessions_left, least)
        if new:
            _log.warning(
                "login %s gets no further session for %g s",
                role,
                self._settings.watchdog_penalty_s,
            )

    def open_doors(self, *, everything: bool = False) -> None:
        """Give logins back what they may have, when their time is over; `settle` does it."""
        now = self._clock()
        for role, (until, usual) in list(self._doors.items()):
            if everything or now >= until:
                self._wanted[role] = usual
                del self._doors[role]

    async def settle(self, connection: asyncpg.Connection) -> None:
        """Begin a look's changes with the connection limits that are wanted."""
        self._changes.begin()
        for role, most in list(self._wanted.items()):
            if self._changes.spent:
                return
            text = await connection_limit_text(connection, role, most)
            if await self._changes.make(connection, role, text):
                del self._wanted[role]

    def _usual(self, role: RoleName) -> int:
        """The sessions that a login has room for."""
        limits = self.limits_of(role)
        if role == ROWS_ROLE or limits is None:
            return self._shared_connections_max
        return login_connections_max(limits)

    @property
    def _shared_connections_max(self) -> int:
        # The setting is for one process, and several work on a server.
        return self._settings.server_connections_max * HANDOVER_FACTOR

    # What they should be

    def prepare(self, *, superuser: bool) -> None:
        """Limit the shared login, but for a door that is closed; `settle` and `limit` do it."""
        self._superuser = superuser
        if ROWS_ROLE not in self._doors:
            self._wanted[ROWS_ROLE] = self._shared_connections_max
        self._unlimited.add(ROWS_ROLE)

    async def unusual(self, connection: asyncpg.Connection) -> list[RoleName]:
        """Some of the tenants' logins whose limits have to be looked at."""
        usual = {login_connections_max(self._tiers.of(tenant_type)) for tenant_type in TenantType}
        found = await connection.fetch(
            _SQL.statement("unusual_logins"), sorted(usual), _UNUSUAL_MAX, timeout=_ASK_TIMEOUT_S
        )
        return [RoleName(row["role"]) for row in found]

    async def restore(self, connection: asyncpg.Connection) -> None:
        """Leave nothing of this watchdog's behind, as far as tenants let it."""
        self.open_doors(everything=True)
        self._wanted[ROWS_ROLE] = UNLIMITED
        until = self._clock() + _RESTORE_S
        while self._wanted and self._clock() < until:
            await self.settle(connection)
            if self._wanted:
                await asyncio.sleep(_RESTORE_RETRY_S)

    async def limit(self, connection: asyncpg.Connection) -> None:
        """Give logins that were learned the limits of their tenants' types, where they have others.

        Also those that could not be changed before.
        """
        asked, self._unlimited = self._unlimited, set()
        if not asked:
            return
        query = _SQL.statement("login_limits")
        for row in await connection.fetch(query, list(asked), timeout=_ASK_TIMEOUT_S):
            role = RoleName(row["role"])
            limits = self.limits_of(role)
            if limits is None:
                continue
            most = login_connections_max(limits)
            if role not in (ROWS_ROLE, *self._doors) and row["connection_limit"] != most:
                self._wanted[role] = most
            if row["temp_file_limit"] != temp_file_limit(limits):
                text = await temp_file_limit_text(connection, role, limits)
                with suppress(asyncpg.InsufficientPrivilegeError):
                    if not await self._changes.make(connection, role, text):
                        self._unlimited.add(role)

    # What they change themselves

    async def undo_changes(self, connection: asyncpg.Connection) -> list[Offence]:
        """Take back settings and passwords that logins gave themselves; what was taken back."""
        # Passwords first: of those there is one for each login, of settings there are hundreds.
        undone = await self._undo_passwords(connection) if self._superuser else []
        query = _SQL.statement("own_settings")
        for row in await connection.fetch(query, ROWS_ROLE, timeout=_ASK_TIMEOUT_S):
            role = RoleName(row["role"])
            if role != ROWS_ROLE and self.limits_of(role) is None:
                continue
            if self._changes.spent:
                break
            if await self._changes.make(connection, role, row["mend"]):
                _log.warning("login %s has set %s for itself; undone", role, row["setting"])
                undone.append(Offence.LOGIN_SETTINGS)
        return undone

    async def _undo_passwords(self, connection: asyncpg.Connection) -> list[Offence]:
        """Look at the shared login, and at those that had a session since the last look."""
        roles = [role for role in self._seen if self.limits_of(role) is not None]
        # The shared one first: its password is everybody's.
        roles.sort(key=lambda role: role != ROWS_ROLE)
        self._seen = {ROWS_ROLE}
        undone = []
        query = _SQL.statement("stored_passwords")
        for row in await connection.fetch(query, roles, timeout=_ASK_TIMEOUT_S):
            role = RoleName(row["role"])
            if self._changes.spent:
                self._seen.add(role)
                continue
            verifier = self._verifiers.get(role)
            if verifier is None:
                verifier = await asyncio.to_thread(self._verifier, role)
                if len(self._verifiers) >= _LOGINS_MAX:
                    self._verifiers.clear()
                self._verifiers[role] = verifier
            if row["verifier"] == verifier:
                continue
            text = await connection.fetchval(
                _ROLES_SQL.statement("set_password_text"), role, verifier, timeout=_ASK_TIMEOUT_S
            )
            if not await self._changes.make(connection, role, text):
                self._seen.add(role)
                continue
            _log.warning("login %s has changed its password; undone", role)
            undone.append(Offence.LOGIN_PASSWORD)
        return undone

    def _verifier(self, role: RoleName) -> str:
        """Thousands of hashes, hence in a thread."""
        password = role_password(self._master_key, self._server, role)
        return scram_verifier(password, role_salt(self._master_key, self._server, role))
