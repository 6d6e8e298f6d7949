"""What the command line prints: results on standard output, everything else on standard error.

Rules this module keeps: an error is one line that says what is the matter, and at most one more
that says what to do; with `--json` standard output has one JSON document and nothing else.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenancy.data_isolation.serve.json_documents import dump_json

#: Exit statuses of the command.
STATUS_ERROR = 1
STATUS_USAGE = 2
#: Neither done nor given up: something starts, stops, is degraded, or was not awaited any longer.
STATUS_UNSETTLED = 4
STATUS_INTERRUPTED = 130

#: The option that every command has.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _number(value: float | None) -> float | None:
    """Refuse "nan", which no time is longer than."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("it is not a number")
    return value


#: The option of the commands that wait.
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=1, callback=_number, help="Seconds to wait at most."),
]

_CELL_CHARACTERS_MAX = 200


class CommandError(Exception):
    """The command cannot do what was asked. `hint` says what to do, where that is known."""

    def __init__(self, message: str, hint: str | None = None, status: int = STATUS_ERROR) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def say(text: str) -> None:
    """A line of a result."""
    print(text)


def note(text: str) -> None:
    """A line about what is going on; no result."""
    print(text, file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` without what a terminal would obey: names of objects can hold control characters."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def print_json(value: Any) -> None:
    """The one document of `--json`."""
    sys.stdout.buffer.write(dump_json(value) + b"\n")
    sys.stdout.buffer.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows under the names of their columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    # A pipe has no width; nothing is cut or folded for it.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    console.print(table)


def print_fields(fields: Sequence[tuple[str, Any]]) -> None:
    """Names and values, one per line."""
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        say(f"{name.ljust(width)}  {_cell(value)}")


def print_error(message: str, hint: str | None = None) -> None:
    """What went wrong, on one line, and what to do on another."""
    note(f"error: {' '.join(message.split())}")
    if hint:
        note(f"hint: {hint}")


def confirmed(question: str, *, yes: bool) -> None:
    """Go on only if the user wants it; `CommandError` where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            "this cannot be undone and nobody can be asked", "add --yes", STATUS_USAGE
        )
    if not typer.confirm(question, err=True):
        raise CommandError("nothing was done")


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case True:
            return "true"
        case False:
            return "false"
        case str():
            text = value
        case list() if all(isinstance(item, str) for item in value):
            text = ", ".join(value)
        case _:
            text = dump_json(value).decode()
    text = "".join(character if character.isprintable() else "·" for character in text)
    if len(text) > _CELL_CHARACTERS_MAX:
        return text[: _CELL_CHARACTERS_MAX - 1] + "…"
    return text
