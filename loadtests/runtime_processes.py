"""The processes of a runtime that a benchmark has started, by what they do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

#: A word of the command line, and what such a process is.
KINDS = (
    ("haproxy", "HAProxy"),
    ("ServeReplica", "HTTP replica"),
    ("Tenant", "tenant actors"),
    ("postgres", "PostgreSQL"),
    ("uvicorn", "uvicorn worker"),
)


def processes_below(folder: Path) -> Iterator[psutil.Process]:
    """What was started from here, and what has let go of it: a daemon and a database server."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), process.environ().get("TENANCY_HOME", "")]
            if any(str(folder) in text for text in told):
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
    yield from found.values()


def kind_of(process: psutil.Process) -> str:
    """What a process does; `the rest` when it is none of `KINDS`. May raise `psutil.Error`."""
    words = command(process)
    return next((kind for word, kind in KINDS if word in words), "the rest")


def command(process: psutil.Process) -> str:
    """Its name and the first words of its command line. May raise `psutil.Error`."""
    return f"{process.name()} {' '.join(process.cmdline()[:6])}"


def pids(folder: Path, *kinds: str) -> dict[str, int]:
    """The processes of these kinds, each with the kind and a number as its name."""
    found: dict[str, int] = {}
    seen: Counter[str] = Counter()
    for process in processes_below(folder):
        with contextlib.suppress(psutil.Error):
            kind = kind_of(process)
            if kind in kinds:
                seen[kind] += 1
                found[f"{kind} {seen[kind]}"] = process.pid
    return found
