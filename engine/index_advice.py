"""Indexes that would help, from what the servers have noted of tenants' statements.

Advice is in terms of the tenant-neutral schema: a table, its columns, and the migration that makes
the index, which is brought to every level as any other. Nothing is applied from here.

An index is advised only where statements touch many blocks each time they run, and no index of the
table begins with one of the columns that they look for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.engine.index_need import index_needs
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.statement_statistics import NotedStatement
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

_ADVICE_MAX: Final = 20
_NAME_CHARACTERS_MAX: Final = 80
_PARTIAL: Final = re.compile(r"\bWHERE\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexAdvice:
    """An index that would help, and why: what the statements that would use it have come to."""

    table: str
    columns: tuple[str, ...]
    #: Kinds of statement, their calls, seconds of all, and blocks of 8 KiB that one call touches.
    statements: int
    calls: int
    total_s: float
    blocks_per_call: float

    @property
    def migration(self) -> str:
        """A name for the migration; it gets the next number."""
        words = "_".join(("index", self.table, *self.columns))
        plain = re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_")
        return plain[:_NAME_CHARACTERS_MAX]

    @property
    def sql(self) -> str:
        """The migration that makes the index, at every level."""
        columns = ", ".join(map(quote_identifier, self.columns))
        return f"create index on {quote_identifier(self.table)} ({columns});"


def advised_indexes(
    noted: Iterable[NotedStatement], schema: VisibleSchema, snapshot: SchemaSnapshot
) -> list[IndexAdvice]:
    """The indexes that would help these statements, that first which would save the most."""
    leading = _leading(snapshot)
    found: dict[tuple[str, tuple[str, ...]], list[NotedStatement]] = {}
    for item in noted:
        # A statement may look for the same in several places.
        wanted = {
            (need.table, need.columns)
            for need in index_needs(item.text, schema.relations)
            if not need.is_met(leading.get(need.table, frozenset()))
        }
        for key in wanted:
            found.setdefault(key, []).append(item)
    advice = [
        IndexAdvice(
            table=table,
            columns=columns,
            statements=len(items),
            calls=sum(item.calls for item in items),
            total_s=sum(item.total_s for item in items),
            blocks_per_call=sum(item.blocks for item in items) / sum(item.calls for item in items),
        )
        for (table, columns), items in found.items()
        # One that another one begins with serves its statements as well.
        if not any(
            other == table and more != columns and more[: len(columns)] == columns
            for other, more in found
        )
    ]
    return sorted(advice, key=lambda item: -item.total_s)[:_ADVICE_MAX]


def _leading(snapshot: SchemaSnapshot) -> dict[str, frozenset[str | None]]:
    """The columns that the tables' indexes begin with, behind the hidden one."""
    found: dict[str, set[str | None]] = {}
    for index in snapshot.indexes:
        keys = [key for key in index.keys if key != TENANT_COLUMN]
        if keys and index.valid and not _PARTIAL.search(index.tail or ""):
            found.setdefault(index.table, set()).add(keys[0])
    return {table: frozenset(columns) for table, columns in found.items()}
