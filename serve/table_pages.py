"""All rows of one of a tenant's tables, page after page in the order of the primary key.

Each page is one statement that asks for the rows behind the last key of the page before, so that
the limits of one result hold however large the table is. What the pages promise while others write:
a row that is there all the time, with one key, is in exactly one page; a row that is written
meanwhile may be in one or not.

Rules this module keeps:

* A key goes back to PostgreSQL as the text that PostgreSQL wrote for it. The wire form of a value
  is not enough to go on from: it drops the lower bounds of an array, and JSON's null looks like
  NULL.
* JSON comes as PostgreSQL's text too: what a tenant may keep in it (depth, names that stand twice)
  is more than one reader of JSON takes, and must not spoil the whole answer.
* Names are always quoted; nothing else of the schema or of the rows becomes part of a statement,
  except the name of a composite type, as PostgreSQL spells it.
"""

# ruff: noqa: S608 - the texts are made of quoted identifiers that the schema has, and of `$n`.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.serve.json_documents import dump_json, parse_json
from tenancy.data_isolation.serve.runtime_client import AnswerError
from tenancy.data_isolation.serve.terminal import CommandError

#: Runs one statement with its parameters: the answer as `QueryAnswer` has it, or `CommandError`.
Ask = Callable[[str, list[Any]], Mapping[str, Any]]

_ROWS_FIRST: Final = 500
_ROWS_MAX: Final = 5_000
#: What a page is to weigh: large enough to be quick, small enough to be far from the limits.
_PAGE_BYTES: Final = 1024 * 1024
#: Pages that have to fit before a size that was refused is tried again.
_PATIENCE_MIN: Final = 2
_PATIENCE_MAX: Final = 64
_JSON: Final = ("json", "jsonb")
#: Nesting that the writer of JSON takes.
_DEPTH_MAX: Final = 200
_TOO_LARGE: Final = "result-too-large"
_SHOWN_CHARACTERS_MAX: Final = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table as it is read: its columns, and those of its primary key in the key's order."""

    name: str
    columns: tuple[str, ...]
    primary_key: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some rows, each a line of JSON: an object of the columns' values in wire form."""

    rows: int
    content: bytes


class PageSize:
    """How many rows the next page asks for: by the weight of the rows, and by what was refused.

    A size that was refused is tried again after some pages that fitted, and after ever more of them
    while it is refused each time: fat rows in one place do not slow down the rest, and a limit on
    the number of rows is not run into again and again.
    """

    def __init__(self) -> None:
        self.rows = _ROWS_FIRST
        self._most = _ROWS_MAX
        self._calm = 0
        self._patience = _PATIENCE_MIN
        self._is_trial = False

    def halve(self) -> None:
        """The page was refused as too large."""
        if self._is_trial:
            self._patience = min(self._patience * 2, _PATIENCE_MAX)
        self.rows = self._most = max(1, self.rows // 2)
        self._calm, self._is_trial = 0, False

    def follow(self, content_bytes: int) -> None:
        """The page had as many rows as it asked for, and weighed so much."""
        if self._is_trial:
            self._patience = _PATIENCE_MIN
        self._calm += 1
        self._is_trial = self._calm >= self._patience and self._most < _ROWS_MAX
        if self._is_trial:
            self._most = min(self._most * 2, _ROWS_MAX)
            self._calm = 0
        fitting = self.rows * _PAGE_BYTES // max(content_bytes, 1)
        self.rows = max(1, min(fitting, self.rows * 2, self._most))


def read_pages(table: Table, ask: Ask) -> Iterator[Page]:
    """Every row of `table`; no page for an empty one.

    Raises what `ask` raises, and `CommandError` that names the row when one alone is larger than a
    result may be.
    """
    if not table.primary_key:
        raise CommandError(f"table {shown(table.name)} has no primary key to read it by")
    reading, size = _Reading(table, ask), PageSize()
    while True:
        try:
            rows = reading.next_rows(size.rows)
        except AnswerError as error:
            if error.slug != _TOO_LARGE:
                raise
            if size.rows == 1:
                raise reading.row_too_large() from None
            size.halve()
            continue
        content = reading.lines(rows)
        if rows:
            yield Page(rows=len(rows), content=content)
        if len(rows) < size.rows:
            return
        size.follow(len(content))


def shown(text: str) -> str:
    """A text from a database for a message: quoted, on one line, without control characters."""
    quoted = repr(text)
    if len(quoted) > _SHOWN_CHARACTERS_MAX:
        return quoted[: _SHOWN_CHARACTERS_MAX - 1] + "…"
    return quoted


class _Reading:
    """How far a table has been read."""

    def __init__(self, table: Table, ask: Ask) -> None:
        self._table = table
        self._ask = ask
        names = [_column(name) for name in table.columns]
        nothing = f"select {', '.join(names)} from {quote_identifier(table.name)} as t limit $1"
        #: The types of the columns, domains as what they are made of.
        self._kinds = [item["type"] for item in ask(nothing, [0])["columns"]]
        self._wanted = [
            f"cast({name} as text)" if kind in _JSON else name
            for name, kind in zip(names, self._kinds, strict=True)
        ]
        self._key_places = [table.columns.index(name) for name in table.primary_key]
        #: The texts of the last key that was read, and the placeholders that take them.
        self._after: list[str] = []
        self._marks: list[str] = []

    def next_rows(self, count: int) -> list[list[Any]]:
        """The rows behind those that were read: values of the columns, then texts of the key."""
        rows: list[list[Any]] = self._ask(*self._statement(self._wanted, count))["rows"]
        if rows:
            last = rows[-1]
            self._after = last[len(self._kinds) :]
            self._marks = [
                _mark(number, self._kinds[place], last[place])
                for number, place in enumerate(self._key_places, start=1)
            ]
        return rows

    def lines(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """The rows as lines of JSON."""
        documents = [place for place, kind in enumerate(self._kinds) if kind in _JSON]
        lines = []
        for row in rows:
            # The texts of the key fall off here.
            values = list(row[: len(self._kinds)])
            for place in documents:
                values[place] = _document(values[place])
            lines.append(dump_json(dict(zip(self._table.columns, values, strict=True))) + b"\n")
        return b"".join(lines)

    def row_too_large(self) -> CommandError:
        """The error for the next row, which does not fit by itself."""
        try:
            found = self._ask(*self._statement((), 1))["rows"]
        except AnswerError:
            found = []  # Then the key itself is too large, or nothing answers any more.
        place, texts = ("with", found[0]) if found else ("after", self._after)
        pairs = zip(self._table.primary_key, texts, strict=False)
        key = ", ".join(f"{shown(name)} = {shown(text)}" for name, text in pairs)
        where = f"the row {place} the key {key}" if key else "the first row"
        return CommandError(
            f"{where} is larger than one result may be",
            "start the runtime with a larger TENANCY_RESULT_BYTES_MAX",
        )

    def _statement(self, wanted: Sequence[str], count: int) -> tuple[str, list[Any]]:
        """The next rows. With the alias, ORDER BY means columns and not results."""
        key = [_column(name) for name in self._table.primary_key]
        fields = [*wanted, *(f"cast({name} as text)" for name in key)]
        order = ", ".join(key)
        where = f" where ({order}) > ({', '.join(self._marks)})" if self._after else ""
        query = (
            f"select {', '.join(fields)} from {quote_identifier(self._table.name)} as t{where} "
            f"order by {order} limit ${len(self._after) + 1}"
        )
        return query, [*self._after, count]


def _column(name: str) -> str:
    return f"t.{quote_identifier(name)}"


def _mark(number: int, kind: str, value: Any) -> str:
    """The placeholder that takes the text of a key of that type, of which `value` is one."""
    if kind in _JSON:
        # Its parameters are JSON values and no texts of them.
        return f"cast(cast(${number} as text) as jsonb)"
    if isinstance(value, list) and not kind.endswith("]"):
        # Composite types are compared as records, and PostgreSQL reads no text as just a record.
        return f"cast(${number} as {kind})"
    return f"${number}"


def _document(text: str | None) -> Any:
    """What stands in a line for PostgreSQL's text of a JSON value."""
    if text is None:
        return None
    try:
        return parse_json(text.encode(), depth_max=_DEPTH_MAX)
    except InvalidInputError:
        # What one reader of JSON cannot take another one can: names that stand twice, halves of
        # surrogate pairs, great depth. A line break can only stand between its parts.
        return orjson.Fragment(text.replace("\n", " ").replace("\r", " "))
