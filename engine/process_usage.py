"""What a server process of PostgreSQL has used, as Linux tells it on the machine where it runs.

PostgreSQL counts neither processor time nor storage per statement and tenant: pg_stat_statements
knows logins, which tenants of level ROW share. So flights are looked at from outside, some of them.
Only where the server runs on this machine; elsewhere nothing is known, and that is what is said.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.connection import Connection

#: Processes of which it is remembered whether they are those of the sessions they seem to be.
_KNOWN_MAX: Final = 1_024
_READ_BYTES: Final = 4_096
_NS: Final = 1e-9


class ProcessUsage(NamedTuple):
    """Processor time, and bytes that storage was asked for and given (None = not told)."""

    cpu_s: float
    read_bytes: int | None
    written_bytes: int | None

    def since(self, before: ProcessUsage) -> ProcessUsage:
        """What was used between `before` and this."""
        cpu_s = max(self.cpu_s - before.cpu_s, 0.0)
        if None in self or None in before:
            return ProcessUsage(cpu_s, None, None)
        read, written = self.read_bytes or 0, self.written_bytes or 0
        return ProcessUsage(
            cpu_s, read - (before.read_bytes or 0), written - (before.written_bytes or 0)
        )


class SessionUsage:
    """What the server processes of sessions have used. Reads some lines of /proc and no disk."""

    def __init__(self) -> None:
        #: By process: whether it is the one that it seems to be.
        self._known: dict[int, bool] = {}

    def of(self, connection: Connection) -> ProcessUsage | None:
        """What the session's process has used so far; None when it is not on this machine."""
        pid = connection.backend_pid
        known = self._known.get(pid)
        if known is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            known = self._known[pid] = _is_of(connection, pid)
        return usage(pid) if known else None


def usage(pid: int) -> ProcessUsage | None:
    """What a process has used; None when there is none, or the system does not tell.

    Processor time is the first field of /proc/<pid>/schedstat, in nanoseconds (kernel
    documentation, sched-stats); bytes are `read_bytes` and `write_bytes` of /proc/<pid>/io
    (proc(5)), which only the user of the process and root may read.
    """
    try:
        cpu_s = int(_read(pid, "schedstat").split(b" ", 1)[0]) * _NS
    except (OSError, ValueError):
        return None
    try:
        fields = dict(line.split(b": ", 1) for line in _read(pid, "io").splitlines())
        return ProcessUsage(cpu_s, int(fields[b"read_bytes"]), int(fields[b"write_bytes"]))
    except (OSError, ValueError, KeyError):
        return ProcessUsage(cpu_s, None, None)


def _is_of(connection: Connection, pid: int) -> bool:
    """Whether a process of this machine is the session's: a server elsewhere has numbers as well.

    PostgreSQL writes login and database into its processes' titles (manual, 27.1).
    """
    try:
        title = _read(pid, "cmdline").rstrip(b"\0 ")
    except OSError:
        return False
    key = connection.key
    expected = f"postgres: {key.role} {key.database} ".encode()
    # With a cluster name that stands in between.
    return title.startswith(b"postgres: ") and expected.removeprefix(b"postgres: ") in title + b" "


def _read(pid: int, name: str) -> bytes:
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)
