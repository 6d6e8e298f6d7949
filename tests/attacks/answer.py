"""What a statement of the attacker's came back with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tenancy.data_isolation.core.errors import (
    ConstraintError,
    SchemaError,
    StatementError,
    StatementForbiddenError,
    StatementSyntaxError,
    TenancyError,
)

_BINDING_CODES = {"TN001", "TN002", "TN003", "TN004"}
#: Classes and codes of names that are not there (manual, appendix A).
_UNKNOWN_NAMES = {"42P01", "3F000", "42883", "42703", "42704", "3D000", "26000", "34000", "55000"}


class Blocker(StrEnum):
    """What an attack stopped at."""

    GUARD = "guard"
    PRIVILEGES = "privileges"
    ROW_SECURITY = "row security"
    BINDING = "binding"
    KEYS = "tenant-first keys"
    NAMES = "nothing of that name in reach"
    PROTOCOL = "one statement at a time"
    RULES = "rules of PostgreSQL"
    RUNTIME = "the runtime"
    SCHEMA = "refused in migrations"
    #: It ran, and got the attacker's own rows or nothing.
    NOTHING = "own rows only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Rows, or an error with all its texts."""

    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    code: str = ""
    blocker: Blocker | None = None

    @property
    def failed(self) -> bool:
        """Whether the statement had no effect."""
        return self.blocker is not None

    def cells(self) -> Iterable[str]:
        """Everything that the attacker got to see, as text."""
        yield from (str(cell) for row in self.rows for cell in row)
        if self.error:
            yield self.error


def of_rows(rows: Iterable[Iterable[Any]]) -> Answer:
    """The answer of a statement that did not fail."""
    return Answer(rows=tuple(tuple(row) for row in rows))


def of_postgres_error(error: Exception) -> Answer:
    """The answer of a statement that PostgreSQL, or asyncpg, refused."""
    parts = [str(error)]
    parts += [str(getattr(error, name, None) or "") for name in ("detail", "hint", "context")]
    code = str(getattr(error, "sqlstate", None) or "")
    return Answer(
        error=" | ".join(part for part in parts if part), code=code, blocker=blocker_of(code, parts)
    )


def of_runtime_error(error: TenancyError) -> Answer:
    """The answer of an operation that the runtime refused, or PostgreSQL through it."""
    code = error.sqlstate or ""
    if code in _BINDING_CODES:
        blocker = Blocker.BINDING
    elif isinstance(error, StatementForbiddenError | StatementSyntaxError) and code != "42501":
        blocker = Blocker.GUARD
    elif isinstance(error, SchemaError):
        blocker = Blocker.SCHEMA
    elif isinstance(error, ConstraintError):
        blocker = Blocker.KEYS
    elif isinstance(error, StatementError):
        blocker = blocker_of(code, [error.detail])
    else:
        blocker = Blocker.RUNTIME
    return Answer(error=error.detail, code=code, blocker=blocker)


def blocker_of(code: str, texts: list[str]) -> Blocker:
    """What PostgreSQL's error code stands for."""
    if code in _BINDING_CODES:
        return Blocker.BINDING
    if code == "42501":
        secured = any("row-level security" in text for text in texts)
        return Blocker.ROW_SECURITY if secured else Blocker.PRIVILEGES
    if code.startswith("23"):
        return Blocker.KEYS
    if code in _UNKNOWN_NAMES:
        return Blocker.NAMES
    if code == "42601" and any("multiple commands" in text for text in texts):
        return Blocker.PROTOCOL
    return Blocker.RULES
