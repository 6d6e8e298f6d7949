"""Which process a pid meant when it was written down.

A pid alone says little: it is given out again when its process has ended, and it starts over when
the machine does. With the boot's id and the start time in ticks since the boot it is unique. Both
come from proc(5); a start time in seconds since 1970 would move when the clock is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
        """Send a signal to this process and to no other."""
        if self.is_alive():
            _send(self.pid, number)


def processes_holding(path: Path) -> list[ProcessIdentity]:
    """The processes, among those this one may look into, that have the file `path` open."""
    return [found for pid in psutil.pids() if _has_open(pid, path) and (found := _of(pid))]


def processes_inside(path: Path) -> list[ProcessIdentity]:
    """The processes, among those this one may look into, whose working directory is `path`."""
    target = path.resolve()
    return [found for pid in psutil.pids() if _directory(pid) == target and (found := _of(pid))]


_of = ProcessIdentity.of


def _has_open(pid: int, path: Path) -> bool:
    target = path.resolve()
    return any(link == str(target) for link in _links(_PROC / str(pid) / "fd"))


def _links(directory: Path) -> Iterator[str]:
    """Where the links in `directory` lead; those that vanish or are not ours are left out."""
    try:
        for entry in os.scandir(directory):
            yield os.readlink(entry.path)
    except OSError:
        return


def _directory(pid: int) -> Path | None:
    try:
        return Path(os.readlink(_PROC / str(pid) / "cwd"))
    except OSError:
        return None


def _send(pid: int, number: Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
