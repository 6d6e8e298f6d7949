"""Which process a pid meant when it was written down.

A pid alone says little: it is given out again when its process has ended, and it starts over when
the machine does. With the boot's id and the start time in ticks since the boot it is unique. Both
come from proc(5); a start time in seconds since 1970 would move when the clock is set.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import psutil

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """One process of one boot of this machine."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None when there is none, or only its remains."""
        try:
            text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name in parentheses may hold anything, so fields are counted after the last one.
        fields = text.rpartition(")")[2].split()
        if not fields or fields[0] in "ZX":
            return None
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id)

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def signal(self, number: Signals) -> None:
        """Send a signal to this process and to no other; nothing when it is gone or not ours."""
        if self.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def processes_locking(path: Path) -> list[ProcessIdentity]:
    """The processes, among those this one may look into, that have an exclusive lock on `path`."""
    pids = [pid for pid in psutil.pids() if _has_locked(pid, path)]
    return [found for pid in pids if (found := ProcessIdentity.of(pid))]


def processes_inside(path: Path) -> list[ProcessIdentity]:
    """The processes, among those this one may look into, whose working directory is `path`."""
    target = str(path.resolve())
    pids = [pid for pid in psutil.pids() if _directory(pid) == target]
    return [found for pid in pids if (found := ProcessIdentity.of(pid))]


def _has_locked(pid: int, path: Path) -> bool:
    process, target = _PROC / str(pid), str(path.resolve())
    try:
        names = os.listdir(process / "fd")
        opened = [name for name in names if _link(process / "fd" / name) == target]
        return any(_is_locked(process / "fdinfo" / name) for name in opened)
    except OSError:
        return False


def _is_locked(information: Path) -> bool:
    """Whether an open file has a lock that excludes others. Who only looks has a shared one."""
    lines = information.read_text().splitlines()
    return any({"FLOCK", "WRITE"} <= set(line.split()) for line in lines)


def _directory(pid: int) -> str | None:
    return _link(_PROC / str(pid) / "cwd")


def _link(path: Path) -> str | None:
    """Where a link of /proc leads; None when it is gone, or not for us to see."""
    try:
        return os.readlink(path)
    except OSError:
        return None
