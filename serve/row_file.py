"""A file of a table's rows, one on each line: named, written, and read again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenancy.data_isolation.serve.table_pages import Page

_SUFFIX: Final = ".ndjson"
#: What some system cannot have in the name of a file, and the sign that stands for it.
_UNSAFE: Final = frozenset('%/\\:*?"<>|')
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What is in a file of rows."""

    rows: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Content:
        """What the file at `path` has now. Raises `OSError`."""
        digest, rows, size = hashlib.sha256(), 0, 0
        with path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
                # A row has no line break in it: JSON writes those of texts as \n.
                rows += part.count(b"\n")
                size += len(part)
        return cls(rows=rows, bytes=size, sha256=digest.hexdigest())


class RowFile:
    """A file that did not exist before; it is on the disk at the end of the block.

    Only its owner can read it. Raises `OSError`.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._digest = hashlib.sha256()
        self._rows = 0
        self._bytes = 0

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, page: Page) -> None:
        """Add a page."""
        self._file.write(page.content)
        self._digest.update(page.content)
        self._rows += page.rows
        self._bytes += len(page.content)

    @property
    def content(self) -> Content:
        """What was written so far."""
        return Content(rows=self._rows, bytes=self._bytes, sha256=self._digest.hexdigest())


def file_name(table: str) -> str:
    """The name of a table's file: different for any two tables, and one part of a path."""
    safe = "".join(
        character
        if character.isprintable() and character not in _UNSAFE
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in table
    )
    # No hidden file, and none that means the directory.
    return (f"%2E{safe[1:]}" if safe.startswith(".") else safe) + _SUFFIX
