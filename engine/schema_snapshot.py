"""What a schema looks like at one moment, as the system catalogs tell it.

The classes mirror the catalogs (PostgreSQL manual, chapter "System Catalogs") as far as scoping
needs them; one-letter codes are PostgreSQL's own. Nothing here does I/O: `scoping.read_snapshot`
fetches the document that `parse_snapshot` reads, and tests write snapshots by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar, cast

#: How `pg_class.relkind` reads in a message.
RELATION_KINDS: Final = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "c": "composite type",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """One privilege of one role on one object. `role` is `PUBLIC` for everybody."""

    role: str
    privilege: str
    grantable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnShape:
    """A column of a table, view or composite type. `row_of` is the table whose rows it holds."""

    name: str
    type: str
    row_of: str | None = None
    not_null: bool = False
    default: str | None = None
    generated: str = ""
    identity: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A row of `pg_class` with its columns and grants; the owner's own grants are left out.

    `sensitive` says that a table's comment has the mark `@sensitive`; `reads` are the tables and
    views that a view is made of; `belongs_to` is the table of a sequence that a column owns.
    """

    name: str
    kind: str = "r"
    owner: str = "tenancy_owner"
    persistence: str = "p"
    row_security: bool = False
    forced: bool = False
    partition: bool = False
    typed: bool = False
    inherits: bool = False
    sensitive: bool = False
    reads: tuple[str, ...] = ()
    belongs_to: str | None = None
    options: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    definition: str | None = None
    columns: tuple[ColumnShape, ...] = ()
    grants: tuple[Grant, ...] = ()
    column_grants: tuple[str, ...] = ()

    def column(self, name: str) -> ColumnShape | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """A constraint of a table. `target` is None where a foreign key leaves the schema."""

    table: str
    name: str
    type: str
    definition: str
    columns: tuple[str, ...] = ()
    target: str | None = None
    target_columns: tuple[str, ...] = ()
    match: str = "s"
    on_update: str = "a"
    on_delete: str = "a"
    delete_set: tuple[str, ...] = ()
    deferrable: bool = False
    deferred: bool = False
    validated: bool = True
    enforced: bool = True
    period: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """An index. `keys` has None for an expression; `tail` is its definition from there on."""

    table: str
    name: str
    keys: tuple[str | None, ...]
    tail: str | None
    method: str = "btree"
    unique: bool = False
    valid: bool = True
    of_constraint: bool = False
    #: The schema's own functions in its expressions and its predicate.
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A row security policy."""

    table: str
    name: str
    using: str | None
    check: str | None
    command: str = "*"
    permissive: bool = True
    roles: tuple[str, ...] = ("PUBLIC",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """A trigger that is not a constraint's own."""

    table: str
    name: str
    definition: str
    enabled: str = "O"


@dataclass(frozen=True, kw_only=True, slots=True)
class Routine:
    """A function, procedure or aggregate.

    `row_types` are tables whose rows it takes or returns; `reads` are the tables and views that its
    body is bound to, when that is in SQL syntax (BEGIN ATOMIC).
    """

    name: str
    arguments: str = ""
    kind: str = "f"
    owner: str = "tenancy_owner"
    language: str = "sql"
    security_definer: bool = False
    leakproof: bool = False
    settings: tuple[str, ...] = ()
    row_types: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    definition: str = ""
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaType:
    """A type of the schema's own: enum, domain, composite, range."""

    name: str
    kind: str
    owner: str = "tenancy_owner"
    definition: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaSnapshot:
    """A whole schema. `outside` holds (kind, object, what it refers to in another schema)."""

    schema: str
    owner: str = "tenancy_owner"
    grants: tuple[Grant, ...] = ()
    relations: tuple[Relation, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[Index, ...] = ()
    policies: tuple[Policy, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    routines: tuple[Routine, ...] = ()
    types: tuple[SchemaType, ...] = ()
    outside: tuple[tuple[str, str, str], ...] = ()
    strangers: tuple[tuple[str, str], ...] = ()

    @property
    def tables(self) -> tuple[Relation, ...]:
        """The ordinary tables."""
        return tuple(relation for relation in self.relations if relation.kind == "r")

    def relation(self, name: str) -> Relation | None:
        """The relation of that name."""
        return next((relation for relation in self.relations if relation.name == name), None)


Shape = TypeVar("Shape")


def parse_snapshot(document: Mapping[str, Any]) -> SchemaSnapshot:
    """The snapshot in the document that the query `schema_snapshot` gives."""
    schema = document["schema"]
    return SchemaSnapshot(
        schema=schema["name"],
        owner=schema["owner"],
        grants=_grants(schema["grants"]),
        relations=tuple(_relation(item) for item in document["relations"] or ()),
        constraints=_shapes(Constraint, document["constraints"]),
        indexes=_shapes(Index, document["indexes"]),
        policies=_shapes(Policy, document["policies"]),
        triggers=_shapes(Trigger, document["triggers"]),
        routines=tuple(
            _shape(Routine, item | {"grants": _grants(item["grants"])})
            for item in document["routines"] or ()
        ),
        types=_shapes(SchemaType, document["types"]),
        outside=tuple((kind, name, other) for kind, name, other in document["outside"] or ()),
        strangers=tuple((kind, name) for kind, name in document["strangers"] or ()),
    )


def _relation(item: Mapping[str, Any]) -> Relation:
    parts = {
        "columns": _shapes(ColumnShape, item["columns"]),
        "grants": _grants(item["grants"]),
    }
    return _shape(Relation, {**item, **parts})


def _grants(items: list[list[Any]] | None) -> tuple[Grant, ...]:
    return tuple(
        Grant(role=role, privilege=privilege, grantable=grantable)
        for role, privilege, grantable in items or ()
    )


def _shapes(kind: type[Shape], items: list[Mapping[str, Any]] | None) -> tuple[Shape, ...]:
    return tuple(_shape(kind, item) for item in items or ())


def _shape(kind: type[Shape], item: Mapping[str, Any]) -> Shape:
    """`item` as a `kind`: JSON has lists where the classes have tuples, and null for no list."""
    values = {}
    for field in fields(cast(Any, kind)):
        value = item[field.name]
        if isinstance(value, list):
            value = tuple(value)
        elif value is None and str(field.type).startswith("tuple"):
            value = ()
        values[field.name] = value
    return kind(**values)
