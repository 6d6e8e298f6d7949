"""SQL text, read from the files under `engine/sql`.

Rules this module keeps:

* A statement starts at a line `-- name: <word>` and ends before the next one. A statement may be a
  script of several commands.
* The only thing ever put into the text is a quoted identifier, at a placeholder `{word}`. Values
  travel as parameters.
* What may run while an admin's session has a users' schema in its search_path is pinned to
  PostgreSQL's own functions and operators (`pinning`).
* A missing or a superfluous identifier is an error of the programmer (`ValueError`), found by the
  first test that runs the statement.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from importlib import resources
from typing import Final, LiteralString

from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.engine.pinning import pinned

#: Files whose statements may run under a users' search_path (`scoping.enter_schema`). The others
#: are for connections whose search_path is pg_catalog, or for a login's own session. `fleet.sql`
#: notes a migration in the transaction that works it out.
PINNED_FILES: Final = frozenset(
    {
        *("fleet.sql", "move.sql", "namespace.sql", "overlay.sql", "provisioning.sql"),
        *("result_cache.sql", "scoping.sql"),
    }
)

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
        if self._filename in PINNED_FILES:
            text = _pinned(text)
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


@lru_cache(maxsize=512)
def _pinned(text: str) -> str:
    """A statement pinned, with the same placeholders. As quoted names they pass the parser."""
    quoted = _PLACEHOLDER.sub(r'"{\1}"', text)
    found = pinned(quoted)
    if found == quoted:
        return text
    return re.sub(rf'"({_PLACEHOLDER.pattern})"', r"\1", found)
