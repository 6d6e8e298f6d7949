"""What makes relations anew that a schema has lost: tables without rows, views, sequences.

The texts come from a schema that has them, perhaps in another database. Bare names in them mean
what is in the schema they are run in, and names with the source's schema are given the other one.
They call functions of users, hence only the owner may run them (`findings.by_owner`). The catalogs
are asked with nothing but `pg_catalog` in the search_path: a function of users could be taken for
one of PostgreSQL's, and would work as the admin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tenancy.data_isolation.core.identifiers import RoleName, SchemaName, quote_identifier
from tenancy.data_isolation.engine.findings import by_owner
from tenancy.data_isolation.engine.layout import HYBRID_ROLE
from tenancy.data_isolation.engine.schema_snapshot import Relation, SchemaSnapshot
from tenancy.data_isolation.engine.scoping import read_snapshot
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
class Naming:
    """How names with the schema of the source are told in another schema.

    `moved` are the relations that the other schema has itself; None: it has everything.
    """

    source: SchemaName
    moved: frozenset[str] | None = None

    def told(self, text: str, schema: SchemaName) -> str:
        """`text` with the names that `schema` has in it."""
        there = f"{quote_identifier(schema)}."
        if self.moved is None:
            return text.replace(f"{self.source}.", there)
        # As quote_ident writes them, and with quotes.
        names = "|".join(re.escape(form) for name in self.moved for form in _forms(name))
        return re.sub(rf'\b{self.source}\.(?=(?:{names})(?![\w$"]))', lambda _: there, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Remade:
    """One relation, and what makes it anew. Foreign keys are left out: they need both tables."""

    relation: Relation
    texts: Sequence[str]
    name: Naming
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
        name = self.relation.name
        texts = [_enter(schema, behind), *(self.name.told(text, schema) for text in self.texts)]
        if self.relation.kind == "r":
            texts.append(_text("force", relation=name))
        # The marks of sensitive tables are on the shared ones alone.
        if self.comment is not None and behind is None:
            texts.append(self.comment)
        for role in roles:
            if self.apart and role == HYBRID_ROLE:
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
        """The schema in the database of `connection`, which is in a transaction."""
        return cls(connection=connection, snapshot=await read_snapshot(connection, schema))

    def naming(self, *, overlay: bool) -> Naming:
        """How its names are told in a schema that has everything, or in an overlay."""
        source = SchemaName(self.snapshot.schema)
        if not overlay:
            return Naming(source=source)
        relations = self.snapshot.relations
        owned = {item.name for item in relations if item.belongs_to in self.tables}
        return Naming(source=source, moved=frozenset({*self.tables, *self.views, *owned}))

    async def remade(self, name: str, *, overlay: bool = False) -> Remade | None:
        """What makes that relation anew; None when the schema has none that can be made so."""
        relation, naming = self.snapshot.relation(name), self.naming(overlay=overlay)
        if relation is None or name == VERSION_TABLE:
            return None
        match relation.kind:
            case "r":
                return await self._table(relation, naming)
            case "v":
                return await self._view(relation, naming)
            case "S":
                return await self._sequence(relation, naming)
            case _:
                return None

    async def _table(self, relation: Relation, naming: Naming) -> Remade:
        schema, name = self.snapshot.schema, relation.name
        rows = await self._table_texts(name)
        texts = [await self._value("table_text", name)]
        texts += [row["text"] for row in rows if row["stage"] not in (_TABLE_STAGE, _KEY_STAGE)]
        texts += await self._triggers(name)
        owned = await self.connection.fetch(_SQL.statement("sequences_of"), schema, name)
        return Remade(
            relation=relation,
            texts=texts,
            name=naming,
            sequences=[row["name"] for row in owned],
            comment=await self._value("comment_text", name),
            apart=name in self.tables,
        )

    async def _view(self, relation: Relation, naming: Naming) -> Remade:
        texts: list[str] = []
        for statement in ("view_text", "view_default_texts"):
            rows = await self.connection.fetch(
                _OVERLAY_SQL.statement(statement), self.snapshot.schema, relation.name
            )
            texts += [row["text"] for row in rows]
        texts += await self._triggers(relation.name)
        apart = relation.name in self.views
        return Remade(relation=relation, texts=texts, name=naming, apart=apart)

    async def _sequence(self, relation: Relation, naming: Naming) -> Remade:
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
        return Remade(relation=relation, texts=texts, name=naming, sequences=[name], apart=apart)

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


async def missing_keys(source: Source, overlay: SchemaName) -> dict[str, tuple[str, ...]]:
    """Foreign keys of the shared schema that an overlay of it has lost → what puts each back."""
    behind = SchemaName(source.snapshot.schema)
    naming = source.naming(overlay=True)
    rows = await source.connection.fetch(_SQL.statement("key_texts"), behind, overlay)
    return {
        row["subject"]: by_owner(
            [_enter(overlay, behind), *(naming.told(text, overlay) for text in row["texts"])]
        )
        for row in rows
    }


def _forms(name: str) -> tuple[str, ...]:
    """A name as PostgreSQL may write it."""
    return (quote_identifier(name), name)


def _enter(schema: SchemaName, behind: SchemaName | None) -> str:
    if behind is None:
        return _text("enter", schema=schema)
    return _text("enter_front", schema=schema, behind=behind)


def _text(name: str, **identifiers: str) -> str:
    return _SQL.statement(name, **identifiers).rstrip(";")
