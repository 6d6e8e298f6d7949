"""Migrations: numbered files of tenant-neutral SQL, read and cut into statements.

Rules this module keeps:

* A migration is a file `NNNN_name.sql`; its number is its place in the order, and its text never
  changes once it is registered (the checksum is SHA-256 of the UTF-8 text).
* Every statement is a definition (DDL) or data (INSERT, UPDATE, DELETE, MERGE), and one that
  `migration_rules` knows. Everything else is refused before anything runs, all refusals at once.
* A statement's text is the user's own, byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    MigrationConflictError,
    SchemaRefusedError,
    StatementSyntaxError,
)
from tenancy.data_isolation.engine.migration_rules import describe, is_data, reasons
from tenancy.data_isolation.engine.syntax_tree import Node, Token, Tree, parse, pb, scan, unwrap

_FILE_NAME: Final = re.compile(r"([0-9]{1,9})_([A-Za-z0-9][A-Za-z0-9_-]{0,99})\.sql")
_NUMBERED_NAME: Final = re.compile(r"([0-9]{1,9})[_-](.+)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_COMMENTS: Final = frozenset({pb.SQL_COMMENT, pb.C_COMMENT})
_SHOWN_REFUSALS: Final = 20
_NUMBER_MAX: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One step of the schema. Raises `InvalidInputError` when number or name cannot be used."""

    number: int
    name: str
    sql: str = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.number <= _NUMBER_MAX:
            raise InvalidInputError(f"migration {self.number}: numbers start at 1")
        if not _NAME.fullmatch(self.name):
            raise InvalidInputError(
                f"migration {self.number}: the name may have 1 to 100 letters, digits, '_' and '-'"
            )

    @classmethod
    def called(cls, name: str, sql: str) -> Migration:
        """The migration of that name, which begins with its number. Raises `InvalidInputError`."""
        found = _NUMBERED_NAME.fullmatch(name)
        if found is None:
            raise InvalidInputError(
                f"migration {name[:80]!r} is not valid: call it <number>_<name>, as in 0001_users"
            )
        return cls(number=int(found[1]), name=found[2], sql=sql)

    @property
    def checksum(self) -> bytes:
        """SHA-256 of the text."""
        return hashlib.sha256(self.sql.encode()).digest()

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"migration {self.number} ({self.name})"


class StatementSort(StrEnum):
    """What a statement of a migration works on."""

    DEFINITION = "definition"
    DATA = "data"


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationStatement:
    """One statement: its text without the semicolon, and its first line in the file.

    `tree` holds this statement alone; the places in it are those in `source`, the whole file.
    """

    text: str
    line: int
    sort: StatementSort
    source: str = field(repr=False)
    tree: Tree = field(repr=False, compare=False)


def read_migrations(directory: Path) -> tuple[Migration, ...]:
    """The migrations in the `.sql` files of `directory`, in order.

    Raises `InvalidInputError` for a file that is no migration, `MigrationConflictError` for two of
    one number.
    """
    if not directory.is_dir():
        raise InvalidInputError(f"{directory} is not a directory; give the one with the .sql files")
    found = []
    for path in sorted(directory.glob("*.sql")):
        parts = _FILE_NAME.fullmatch(path.name)
        if parts is None:
            raise InvalidInputError(f"{path.name}: migrations are called like 0001_customers.sql")
        try:
            sql = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise InvalidInputError(f"{path.name} cannot be read as UTF-8 text") from None
        found.append(Migration(number=int(parts[1]), name=parts[2], sql=sql))
    return in_order(found)


def in_order(migrations: Iterable[Migration]) -> tuple[Migration, ...]:
    """`migrations` by number; `MigrationConflictError` when two of one number differ."""
    by_number: dict[int, Migration] = {}
    for migration in migrations:
        known = by_number.setdefault(migration.number, migration)
        if known != migration:
            raise MigrationConflictError(
                f"two migrations have the number {migration.number}: "
                f"{known.name} and {migration.name}; give one of them another number"
            )
    return tuple(by_number[number] for number in sorted(by_number))


def parse_migration(migration: Migration) -> tuple[MigrationStatement, ...]:
    """The statements of `migration`.

    Raises `SchemaRefusedError` with every statement that is not allowed: its kind, the name of its
    object, its line and the reason; and when there is no statement.
    """
    try:
        tree = parse(migration.sql)
    except StatementSyntaxError as error:
        raise SchemaRefusedError(f"{migration.title}: {error.detail}", error.sqlstate) from None
    source = migration.sql.encode()
    tokens = [token for token in scan(migration.sql) if token.token not in _COMMENTS]
    statements, refused = [], []
    for raw in tree.stmts:
        if not raw.HasField("stmt"):
            continue
        node = unwrap(raw.stmt)
        end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(source)
        start = _first_token(tokens, raw.stmt_location)
        line = source.count(b"\n", 0, start) + 1
        text = source[start:end].decode().strip()
        refused += [f"line {line}: {describe(node)}: {reason}" for reason in reasons(node, text)]
        statements.append(
            MigrationStatement(
                text=text,
                line=line,
                sort=StatementSort.DATA if is_data(node) else StatementSort.DEFINITION,
                source=migration.sql,
                tree=_alone(tree, raw),
            )
        )
    if refused:
        raise refusal(migration, refused)
    if not statements:
        # Registered once, it could never be filled in: its text does not change any more.
        raise SchemaRefusedError(f"{migration.title} holds no statement; nothing was changed")
    return tuple(statements)


def refusal(migration: Migration, found: Sequence[str]) -> SchemaRefusedError:
    """The error that lists what is wrong with `migration`."""
    lines = [f"{migration.title} is refused; nothing was changed:", *found[:_SHOWN_REFUSALS]]
    if len(found) > _SHOWN_REFUSALS:
        lines.append(f"... and {len(found) - _SHOWN_REFUSALS} more")
    return SchemaRefusedError("\n".join(lines))


def _alone(tree: Tree, raw: Node) -> Tree:
    """A tree with one statement of `tree`."""
    alone = pb.ParseResult(version=tree.version)
    alone.stmts.add().stmt.CopyFrom(raw.stmt)
    return alone


def _first_token(tokens: Sequence[Token], place: int) -> int:
    """Where the statement that begins at `place` has its first token, past comments."""
    start: int = next(token.start for token in tokens if token.start >= place)
    return start
