"""What makes relations anew that a schema has lost: tables without rows, views, sequences.

The texts come from a schema that has them, perhaps in another database, and have bare names, so
that they mean what is in the schema they are run in. They call functions of users, hence only the
owner may run them (`findings.by_owner`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tenancy.data_isolation.core.identifiers import RoleName, SchemaName
from tenancy.data_isolation.engine.findings import by_owner
from tenancy.data_isolation.engine.layout import HYBRID_ROLE
from tenancy.data_isolation.engine.schema_snapshot import Relation, SchemaSnapshot
from tenancy.data_isolation.engine.scoping import read_snapshot, set_path
from tenancy.data_isolation.engine.sensitive_tables import sensitive_tables, views_of
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_column import IDEMPOTENCY_TABLE, VERSION_TABLE

_SQL = SqlFile("shape_comparison.sql")
_OVERLAY_SQL = SqlFile("overlay.sql")
#: Stages of `table_texts`: the table itself, a column's own sequence, foreign keys.
_TABLE_STAGE: Final = 1
_SEQUENCE_STAGES: Final = frozenset({3, 4, 5})
_KEY_STAGE: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Remade:
    """One relation, and what makes it anew. Foreign keys are left out: they need both tables."""

    relation: Relation
    texts: Sequence[str]
    #: What the roles of the schema get numbers from.
    sequences: Sequence[str] = ()
    comment: str | None = None
    #: Whether hybrid tenants have one of their own.
    apart: bool = False

    def statements(
        self,
        schema: SchemaName,
        roles: Sequence[RoleName],
        *,
        behind: SchemaName | None = None,
    ) -> tuple[str, ...]:
        """What makes it anew in `schema`, for `roles`; `behind`: in an overlay of that schema."""
        texts = [_enter(schema, behind), *self.texts]
        name = self.relation.name
        if self.relation.kind == "r":
            texts.append(_text("force", relation=name))
        # The marks of sensitive tables are on the shared ones alone.
        if self.comment is not None and behind is None:
            texts.append(self.comment)
        for role in roles:
            if (self.apart and role == HYBRID_ROLE) or name == VERSION_TABLE:
                continue
            if self.relation.kind != "S":
                texts.append(_text("grant_rows", relation=name, role=role))
            for sequence in self.sequences:
                texts.append(_text("grant_numbers", relation=sequence, role=role))
        return by_owner(texts)


@dataclass(kw_only=True, slots=True)
class Source:
    """A schema that has everything, as it looked at one moment."""

    connection: asyncpg.Connection
    snapshot: SchemaSnapshot
    #: Tables, and views of them, that hybrid tenants have apart.
    tables: frozenset[str] = field(init=False)
    views: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        tables = sensitive_tables(self.snapshot)
        self.tables = frozenset({IDEMPOTENCY_TABLE, *tables})
        self.views = views_of(self.snapshot, tables)

    @classmethod
    async def read(cls, connection: asyncpg.Connection, schema: SchemaName) -> Source:
        """The schema in the database of `connection`, which is in a transaction: the search_path is
        the schema from here on, to the transaction's end."""
        await set_path(connection, schema)
        return cls(connection=connection, snapshot=await read_snapshot(connection, schema))

    async def remade(self, name: str) -> Remade | None:
        """What makes that relation anew; None when the schema has no such thing, or when it is a
        sequence that comes with its table."""
        relation = self.snapshot.relation(name)
        match relation.kind if relation is not None else None:
            case "r":
                assert relation is not None  # noqa: S101 - it has a kind.
                return await self._table(relation)
            case "v":
                assert relation is not None  # noqa: S101
                return await self._view(relation)
            case "S":
                assert relation is not None  # noqa: S101
                return await self._sequence(relation)
            case _:
                return None

    async def _table(self, relation: Relation) -> Remade:
        schema, name = self.snapshot.schema, relation.name
        rows = await self._table_texts(name)
        texts = [await self._value("table_text", name)]
        texts += [row["text"] for row in rows if row["stage"] not in (_TABLE_STAGE, _KEY_STAGE)]
        texts += await self._triggers(name)
        owned = await self.connection.fetch(_SQL.statement("sequences_of"), schema, name)
        return Remade(
            relation=relation,
            texts=texts,
            sequences=[row["name"] for row in owned],
            comment=await self._value("comment_text", name),
            apart=name in self.tables,
        )

    async def _view(self, relation: Relation) -> Remade:
        texts: list[str] = []
        for statement in ("view_text", "view_default_texts"):
            rows = await self.connection.fetch(
                _OVERLAY_SQL.statement(statement), self.snapshot.schema, relation.name
            )
            texts += [row["text"] for row in rows]
        texts += await self._triggers(relation.name)
        return Remade(relation=relation, texts=texts, apart=relation.name in self.views)

    async def _sequence(self, relation: Relation) -> Remade:
        name, table = relation.name, relation.belongs_to
        if table is None:
            texts = [await self._value("sequence_text", name)]
        else:
            texts = [
                row["text"]
                for row in await self._table_texts(table)
                if row["stage"] in _SEQUENCE_STAGES and row["name"] == name
            ]
        apart = table in self.tables
        return Remade(relation=relation, texts=texts, sequences=[name], apart=apart)

    async def _table_texts(self, name: str) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = await self.connection.fetch(
            _OVERLAY_SQL.statement("table_texts"), self.snapshot.schema, [name]
        )
        return found

    async def _triggers(self, name: str) -> list[str]:
        rows = await self.connection.fetch(
            _OVERLAY_SQL.statement("trigger_texts"), self.snapshot.schema, [name]
        )
        return [row["text"] for row in rows]

    async def _value(self, statement: str, name: str) -> str:
        found: str = await self.connection.fetchval(
            _SQL.statement(statement), self.snapshot.schema, name
        )
        return found


async def schema_roles(connection: asyncpg.Connection, schema: SchemaName) -> list[RoleName]:
    """Who works in a schema."""
    rows = await connection.fetch(_SQL.statement("roles"), schema)
    return [RoleName(row["role"]) for row in rows]


async def missing_keys(
    connection: asyncpg.Connection, schema: SchemaName, behind: SchemaName
) -> dict[str, tuple[str, ...]]:
    """Foreign keys that the overlay `schema` has lost → what puts each back.

    The search_path of `connection` must be `behind`.
    """
    rows = await connection.fetch(_SQL.statement("key_texts"), behind, schema)
    return {row["subject"]: by_owner([_enter(schema, behind), *row["texts"]]) for row in rows}


def _enter(schema: SchemaName, behind: SchemaName | None) -> str:
    if behind is None:
        return _text("enter", schema=schema)
    return _text("enter_front", schema=schema, behind=behind)


def _text(name: str, **identifiers: str) -> str:
    return _SQL.statement(name, **identifiers).rstrip(";")
