"""A lock on a file, which the kernel takes back when its holder is gone.

Rules this module keeps:

* the lock belongs to the open file (flock(2)), so a child that inherits it holds it too, and it is
  free when the last of them has ended, however they ended;
* nothing here blocks: who cannot have the lock is told so at once.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """An exclusive lock on the file `path`, which is made when it does not exist.

    Two objects for one path exclude each other, in one process as in two. Not safe to share between
    threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def path(self) -> Path:
        """The file that is locked."""
        return self._path

    def try_take(self) -> bool:
        """Take the lock if it is free; whether this object has it now."""
        if self._descriptor is None:
            self._descriptor = _locked(self._path, fcntl.LOCK_EX)
        return self._descriptor is not None

    def release(self) -> None:
        """Give the lock up. Children that inherited it keep it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_taken(self) -> bool:
        """Whether anyone, this object included, has the lock."""
        # Shared, so that two who only look are not in each other's way.
        descriptor = _locked(self._path, fcntl.LOCK_SH)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def descriptor(self) -> int:
        """The open file, for a child to inherit. Only while this object has the lock."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._path} is not locked by this object")
        return self._descriptor


def _locked(path: Path, kind: int) -> int | None:
    """The file, open and locked; None when someone else's lock is in the way."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
