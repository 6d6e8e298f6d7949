"""Which sessions on a server are the runtime's own, by the marks that they presented.

A mark is a name that anybody who sees it can repeat (`core.crypto.session_mark`). Hence it counts
once, for the login and the database it was signed for, and for a session that began when it was
issued; and a session that presented one stays the runtime's whatever name it takes later, since
what a tenant runs in it can change the name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, session_mark_time
from tenancy.data_isolation.core.identifiers import ServerName

#: What a session may take to begin, beside the time that connecting may take.
_MARK_AGE_S: Final = 60.0


#: How exactly the clocks of two machines are compared.
_CLOCKS_S: Final = 0.25


class SessionId(NamedTuple):
    """What tells a session from all others, before and after it."""

    pid: int
    backend_start: datetime


class Mark(NamedTuple):
    """A name that a session of a login in a database has."""

    role: str
    database: str
    name: str


class SessionMarks:
    """What is known of the marks of one server. Belongs to one event loop."""

    def __init__(
        self,
        master_key: MasterKey,
        server: ServerName,
        *,
        entries_max: int,
        connect_timeout_s: float = 0.0,
    ) -> None:
        self._master_key = master_key
        self._server = server
        self._entries_max = entries_max
        self._age_s = _MARK_AGE_S + connect_timeout_s
        #: How far the server's clock is ahead of ours, which marks are issued by.
        self.clock_ahead_s = 0.0
        #: When names were issued as marks (time of day), or that they are none.
        self._issued: dict[Mark, int | None] = {}
        #: Whose a mark is. Kept when the session has ended: it is not worth a second one.
        self._holders: dict[Mark, SessionId] = {}
        self._own: set[SessionId] = set()
        self._copies: set[SessionId] = set()

    def look(self, rows: Iterable[asyncpg.Record]) -> None:
        """Take in all sessions that there are."""
        claims: defaultdict[Mark, list[tuple[bool, float, SessionId]]] = defaultdict(list)
        there = set()
        for row in rows:
            session = SessionId(row["pid"], row["backend_start"])
            there.add(session)
            if session in self._own:
                continue
            mark = Mark(row["role"], row["database"], row["application_name"])
            issued = self._time_of(mark)
            if issued is None:
                continue
            began_s = session.backend_start.timestamp() - self.clock_ahead_s
            after_s = began_s - issued / 1_000
            if abs(after_s) <= self._age_s:
                # A mark is issued before its session begins, as far as clocks can be compared.
                claims[mark].append((after_s < -_CLOCKS_S, abs(after_s), session))
        self._own &= there
        self._copies = set()
        for mark, found in claims.items():
            if mark not in self._holders:
                # Who copied it had to see it first, in a session that was there already.
                self._own.add(self._hold(mark, min(found)[2]))
            self._copies.update(session for *_, session in found)
        self._copies -= self._own

    def is_own(self, session: SessionId) -> bool:
        """Whether the runtime opened it."""
        return session in self._own

    def is_copy(self, session: SessionId) -> bool:
        """Whether it presents a mark that is another session's, or was."""
        return session in self._copies

    def _hold(self, mark: Mark, session: SessionId) -> SessionId:
        while len(self._holders) >= self._entries_max:
            del self._holders[next(iter(self._holders))]
        self._holders[mark] = session
        return session

    def _time_of(self, mark: Mark) -> int | None:
        if mark not in self._issued:
            if len(self._issued) >= self._entries_max:
                self._issued.clear()
            self._issued[mark] = session_mark_time(
                self._master_key, self._server, mark.role, mark.database, mark.name
            )
        return self._issued[mark]
