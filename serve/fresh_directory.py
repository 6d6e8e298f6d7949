"""A directory that appears under its name complete and on the disk, or not at all.

Rules this module keeps: it is filled under a hidden name next to the final one and renamed at the
end; only its owner can read it; nothing that was there before is touched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenancy.data_isolation.engine.state_directory import sync_directory
from tenancy.data_isolation.serve.terminal import CommandError

_PREFIX = ".tenancy-"


def check_fresh(path: Path) -> Path:
    """The directory that `path` means, which nothing is in yet: it is missing, or empty.

    Raises `CommandError` when it cannot become a fresh directory.
    """
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise CommandError(f"there is no directory {target.parent}", "make it first")
        if not target.exists():
            return target
        if not target.is_dir():
            raise CommandError(f"{target} is there already and is no directory", _ANOTHER)
        if next(target.iterdir(), None) is not None:
            raise CommandError(f"the directory {target} is not empty", _ANOTHER)
        if target.is_mount() or target.samefile(os.curdir):
            # It is replaced as a whole, which the kernel refuses for the one and which would leave
            # a shell in a directory that is gone for the other.
            raise CommandError(
                f"{target} is a mounted file system or the working directory",
                "name a directory in it",
            )
    except OSError as error:
        raise unusable(path, error) from None
    return target


@contextmanager
def fresh_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which gets the name `target` at the end of the block.

    Raises `CommandError` for every `OSError`, those of the block too. After an error of any kind
    nothing is left.
    """
    try:
        building = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    except OSError as error:
        raise unusable(target, error) from None
    try:
        yield building
        sync_directory(building)
        # Takes the place of an empty directory, and of nothing else that came there meanwhile.
        building.rename(target)
        sync_directory(target.parent)
    except OSError as error:
        raise unusable(target, error) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def unusable(path: Path, error: OSError) -> CommandError:
    """What to say when the system refuses work at `path`."""
    return CommandError(f"{path} cannot be written: {error.strerror or error}")


_ANOTHER = "name one that does not exist yet, or is empty"
