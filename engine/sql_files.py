"""SQL text, read from the files under `engine/sql`.

Rules this module keeps:

* A statement starts at a line `-- name: <word>` and ends before the next one. A statement may be a
  script of several commands.
* The only thing ever put into the text is a quoted identifier, at a placeholder `{word}`. Values
  travel as parameters.
* A missing or a superfluous identifier is an error of the programmer (`ValueError`), found by the
  first test that runs the statement.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib import resources
from typing import LiteralString

from tenancy.data_isolation.core.identifiers import quote_identifier

_NAME = re.compile(r"^-- name: *([a-z][a-z0-9_]*) *$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class SqlFile:
    """The named statements of one file under `engine/sql`. Read on first use, then immutable."""

    def __init__(self, filename: str) -> None:
        self._filename = filename

    def statement(self, name: str, **identifiers: str) -> LiteralString:
        """The statement called `name`, with each `{word}` replaced by its quoted identifier."""
        text = self._statements.get(name)
        if text is None:
            raise ValueError(f"{self._filename} has no statement named {name}")
        wanted = set(_PLACEHOLDER.findall(text))
        if wanted != set(identifiers):
            raise ValueError(
                f"{self._filename}: {name} takes the identifiers {sorted(wanted)}, "
                f"not {sorted(identifiers)}"
            )
        if wanted:
            text = _PLACEHOLDER.sub(lambda found: quote_identifier(identifiers[found[1]]), text)
        # It is literal: it comes from a file of this package and from quote_identifier alone.
        return text

    @property
    def filename(self) -> str:
        """The name of the file."""
        return self._filename

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all statements, in the order of the file."""
        return tuple(self._statements)

    @cached_property
    def _statements(self) -> dict[str, str]:
        folder = resources.files("tenancy.data_isolation.engine") / "sql"
        pieces = _NAME.split((folder / self._filename).read_text(encoding="utf-8"))
        names, texts = pieces[1::2], pieces[2::2]
        if len(set(names)) != len(names):
            raise ValueError(f"{self._filename} names a statement twice")
        return dict(zip(names, (text.strip() for text in texts), strict=True))
