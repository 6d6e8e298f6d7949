"""ALTER ROLE from beside: what tenants do to their logins never holds it up for others.

A login may alter itself, and as long as it does not commit, whoever else alters it waits; two at
the same moment fail ("tuple concurrently updated"). Hence a change waits for a moment only, what
failed is tried again at a later look, and all of one look have a budget of time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import asyncpg

from tenancy.data_isolation.core.identifiers import RoleName

_log = logging.getLogger(__name__)

#: What a session that alters logins sets: how long it waits for a lock, and for anything.
SESSION_SETTINGS: Final = "set lock_timeout = '100ms'; set statement_timeout = '4s'"
#: How long the client waits for one change.
_CHANGE_TIMEOUT_S: Final = 2.0
#: Changes of one look that are begun; the others are for the next ones.
_BUDGET_S: Final = 0.2
#: After a failure the next try is so long away, twice as long each time.
_RETRY_S: Final = 0.02
_RETRY_MAX_S: Final = 5.0
#: What fails because of the one login alone.
_BLOCKED = (
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalServerError,
    TimeoutError,
)


class LoginChanges:
    """Changes of logins, and which of them have to be tried again when. One event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = 0.0
        #: Logins whose changes failed: how often, and when to try again.
        self._failed: dict[RoleName, tuple[int, float]] = {}

    def begin(self) -> None:
        """A look begins: there is time for changes again."""
        self._until = self._clock() + _BUDGET_S

    @property
    def spent(self) -> bool:
        """Whether the time of this look is over."""
        return self._clock() >= self._until

    async def make(self, connection: asyncpg.Connection, role: RoleName, text: str) -> bool:
        """Alter the login now, if it can be; whether there is nothing left to do."""
        failures, not_before = self._failed.get(role, (0, 0.0))
        if self.spent or self._clock() < not_before:
            return False
        try:
            await connection.execute(text, timeout=_CHANGE_TIMEOUT_S)
        except asyncpg.UndefinedObjectError:
            pass  # The tenant was deleted meanwhile.
        except _BLOCKED as error:
            wait_s = min(_RETRY_MAX_S, _RETRY_S * 2**failures)
            self._failed[role] = failures + 1, self._clock() + wait_s
            if not failures:
                _log.warning("login %s cannot be altered yet: %s", role, type(error).__name__)
            return False
        self._failed.pop(role, None)
        return True
