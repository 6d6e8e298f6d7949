"""The POSIX access control list of a directory, as far as letting one more user through it.

An entry of the list gives one user the right to pass, where the mode bits could only give it to
everyone. The layout is that of the extended attribute `system.posix_acl_access` (Linux,
include/uapi/linux/posix_acl_xattr.h); the meaning of the entries is in acl(5).
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NOBODY = 0xFFFFFFFF
_SEARCH = 0o1
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20

#: (tag, permissions, id of the user or group)
Entry = tuple[int, int, int]


def let_search(directory: Path, uid: int) -> None:
    """Let the user `uid` pass through `directory`, and change nothing for anyone else.

    Raises `OSError` where the file system has no such lists, this process may not change them, or
    the list that is there masks the right out for a group's sake.
    """
    entries = with_search(_read(directory), uid)
    text = _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)
    os.setxattr(directory, _ATTRIBUTE, text)


def with_search(entries: list[Entry], uid: int) -> list[Entry]:
    """`entries` with the right to pass for `uid`, in the order that the kernel asks for."""
    kept = [entry for entry in entries if (entry[0], entry[2]) != (_USER, uid)]
    before = [entry[1] for entry in entries if (entry[0], entry[2]) == (_USER, uid)]
    group = [entry[1] for entry in entries if entry[0] == _GROUP]
    mask = next((entry[1] for entry in entries if entry[0] == _MASK), group[0])
    held_back = [e for e in kept if e[0] not in (_OWNER, _MASK, _OTHER) and e[1] & _SEARCH]
    if not mask & _SEARCH and held_back:
        # The mask, which `chmod` sets too, bounds all but the owner and the others.
        raise PermissionError("its access control list masks the right to pass out for others")
    kept = [entry for entry in kept if entry[0] != _MASK]
    kept += [(_MASK, mask | _SEARCH, _NOBODY), (_USER, sum(before) | _SEARCH, uid)]
    return sorted(kept, key=lambda entry: (entry[0], entry[2]))


def _read(directory: Path) -> list[Entry]:
    """The list of `directory`, made from its mode bits when it has none."""
    try:
        text = os.getxattr(directory, _ATTRIBUTE)
    except OSError:
        mode = stat.S_IMODE(directory.stat().st_mode)
        bits = {_OWNER: mode >> 6 & 7, _GROUP: mode >> 3 & 7, _OTHER: mode & 7}
        return [(tag, permissions, _NOBODY) for tag, permissions in bits.items()]
    return [entry for entry in _ENTRY.iter_unpack(text[_HEADER.size :])]
