"""The master key of an installation: given by a setting, or kept in a file of its own.

Losing it locks the runtime out of its roles, so it is written to the disk before anything is
derived from it, and never replaced.
"""

from __future__ import annotations

from pathlib import Path

from tenancy.data_isolation.core.crypto import MasterKey, new_master_key, parse_master_key
from tenancy.data_isolation.core.errors import OverloadedError, SettingError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.file_lock import FileLock
from tenancy.data_isolation.engine.polling import in_thread, polled
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file

_FILE = "master.key"


async def master_key(settings: Settings) -> MasterKey:
    """The key of `Settings.master_key`, or the one in `home`, which is made on the first start.

    Raises `SettingError` when the file does not hold a key.
    """
    if settings.master_key is not None:
        return parse_master_key(settings.master_key)
    path = settings.home / _FILE
    found = await in_thread(_read, path)
    if found is not None:
        return found
    return await _made(path, settings.server_start_timeout_s)


async def _made(path: Path, timeout_s: float) -> MasterKey:
    """Make the key; of two processes that start at the same time one makes it."""
    lock = FileLock(path.with_suffix(".lock"))
    if not await polled(lock.try_take, timeout_s):
        raise OverloadedError(f"another process holds {lock.path}; start again when it has ended")
    try:
        return await in_thread(_read_or_make, path)
    finally:
        lock.release()


def _read_or_make(path: Path) -> MasterKey:
    found = _read(path)
    if found is None:
        found = new_master_key()
        with file_errors(path):
            replace_file(path, found.hex().encode() + b"\n")
    return found


def _read(path: Path) -> MasterKey | None:
    with file_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            return None
        text = path.read_text()
    try:
        return parse_master_key(text)
    except SettingError:
        raise SettingError(
            f"{path} does not hold a master key (64 hexadecimal digits); put the right one back, "
            "since all role passwords are derived from it"
        ) from None
