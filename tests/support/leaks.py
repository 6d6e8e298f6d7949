"""Looking for texts that must not be found where an installation writes or shows something."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_FILE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """A text that was found."""

    place: str
    name: str


def in_text(place: str, content: bytes, hidden: Mapping[str, str]) -> Iterator[Leak]:
    """Each of the hidden texts that stands in `content`."""
    for name, text in hidden.items():
        if text.encode() in content:
            yield Leak(place=place, name=name)


def in_files(paths: Iterable[Path], hidden: Mapping[str, str]) -> Iterator[Leak]:
    """Leaks in regular files."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            yield from in_text(str(path), file.read(_FILE_BYTES_MAX), hidden)


def files_below(directory: Path) -> Iterator[Path]:
    """Every regular file in a directory and those below it."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def in_processes(processes: Iterable[psutil.Process], hidden: Mapping[str, str]) -> Iterator[Leak]:
    """Leaks in what other programs of the machine can read of a process.

    The command line and the title are for everyone, the environment for the same user (proc(5)).
    """
    for process in processes:
        for name in ("cmdline", "environ", "comm"):
            path = Path(f"/proc/{process.pid}/{name}")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield from in_text(f"{path} ({process.name()})", path.read_bytes(), hidden)
