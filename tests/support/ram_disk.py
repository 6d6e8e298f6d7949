"""Where servers of tests keep their files: in memory where the system has room for them.

To create a database is to write some 350 files. That takes 15 to 30 ms in memory and 200 to 400 ms
on a disk that others use as well, whether anything is synced or not, and most tests have two.

As a program it makes such a directory for a whole run of pytest, and prints its path.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

#: Where Linux has a file system in memory for everybody: shm_overview(7).
_MEMORY = Path("/dev/shm")
#: What has to be free there. The files of one run of the tests are less than 1 GB at any time.
_ROOM_BYTES = 4 << 30
_PREFIX = "tenancy-test-"
#: No run of the tests takes so long.
_FORGOTTEN_AFTER_S = 7_200


def server_directory() -> Path:
    """A new directory, closed to others; whoever asked removes it."""
    memory = _memory_with_room()
    if memory is None:
        return Path(tempfile.mkdtemp(prefix=_PREFIX))
    _remove_forgotten(memory)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=memory))


def _memory_with_room() -> Path | None:
    """The file system in memory, unless it is missing, closed, or too full, as in a container."""
    try:
        free = min(shutil.disk_usage(_MEMORY).free, psutil.virtual_memory().available)
    except OSError:
        return None
    return _MEMORY if free >= _ROOM_BYTES and os.access(_MEMORY, os.W_OK | os.X_OK) else None


def _remove_forgotten(memory: Path) -> None:
    """Remove what runs that were killed have left: it takes memory until the system restarts."""
    for path in memory.glob(f"{_PREFIX}*-*"):
        maker = path.name.removeprefix(_PREFIX).partition("-")[0]
        if maker.isdecimal() and not psutil.pid_exists(int(maker)):
            with suppress(OSError):  # Another run was quicker, or it is another user's.
                if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER_S:
                    shutil.rmtree(path)


if __name__ == "__main__":
    print(server_directory())
