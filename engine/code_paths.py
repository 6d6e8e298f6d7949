"""Which tables and views can run functions of the schema when a statement names them.

Such a function may leave a trace in the session (a setting, for instance), so what names them is
not plain. Nothing here is exact: whoever only mentions a function's name counts as running it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tenancy.data_isolation.engine.schema_snapshot import Relation, SchemaSnapshot

#: Functions of PostgreSQL's own that leave a trace in the session.
_TRACES: Final = ("set_config", "setseed")
#: Actions of foreign keys that do nothing to the rows that point here.
_HARMLESS: Final = frozenset("ar")


def relations_that_run_code(snapshot: SchemaSnapshot) -> frozenset[str]:
    """The names of these tables and views."""
    marks = (*(routine.name for routine in snapshot.routines), *_TRACES)
    types = _types_that_run_code(snapshot, marks)
    found = {trigger.table for trigger in snapshot.triggers}
    for relation in snapshot.relations:
        if relation.rules or any(_mentions(text, marks) for text in _texts(snapshot, relation)):
            found.add(relation.name)
        if any(_mentions(column.type, types) for column in relation.columns):
            found.add(relation.name)
    while True:
        reached = {*found, *_reached(snapshot, found)}
        if reached == found:
            return frozenset(found)
        found = reached


def relations_with_checks_that_run_code(snapshot: SchemaSnapshot) -> frozenset[str]:
    """The names of tables whose own checks, generated columns or types run functions."""
    marks = (*(routine.name for routine in snapshot.routines), *_TRACES)
    types = _types_that_run_code(snapshot, marks)
    found = {
        constraint.table
        for constraint in snapshot.constraints
        if constraint.type == "c" and _mentions(constraint.definition, marks)
    }
    for relation in snapshot.relations:
        for column in relation.columns:
            generated = column.generated and _mentions(column.default, marks)
            if generated or _mentions(column.type, types):
                found.add(relation.name)
    return frozenset(found)


def tables_acted_on(snapshot: SchemaSnapshot) -> dict[str, tuple[str, ...]]:
    """Tables whose rows an action of a foreign key changes, by the table that it points to."""
    found: dict[str, set[str]] = {}
    for constraint in snapshot.constraints:
        acts = {constraint.on_update, constraint.on_delete} - _HARMLESS
        if constraint.type == "f" and acts and constraint.target:
            found.setdefault(constraint.target, set()).add(constraint.table)
    return {name: tuple(sorted(tables)) for name, tables in found.items()}


def _types_that_run_code(snapshot: SchemaSnapshot, marks: tuple[str, ...]) -> tuple[str, ...]:
    """Types that run functions, and types that are made of such."""
    found: set[str] = set()
    while True:
        words = (*marks, *found)
        reached = {item.name for item in snapshot.types if _mentions(item.definition, words)}
        reached |= {
            relation.name
            for relation in snapshot.relations
            if relation.kind == "c"
            and any(_mentions(column.type, tuple(found)) for column in relation.columns)
        }
        if reached <= found:
            return tuple(sorted(found))
        found |= reached


def _texts(snapshot: SchemaSnapshot, relation: Relation) -> Iterator[str | None]:
    """Every expression that belongs to a relation."""
    yield relation.definition
    for column in relation.columns:
        yield column.default
    for constraint in snapshot.constraints:
        if constraint.table == relation.name and constraint.type != "f":
            yield constraint.definition
    for index in snapshot.indexes:
        if index.table == relation.name:
            yield index.tail


def _reached(snapshot: SchemaSnapshot, found: set[str]) -> Iterator[str]:
    """Views of these relations, and tables whose foreign keys' actions change them."""
    for relation in snapshot.relations:
        if relation.kind == "v" and _mentions(relation.definition, tuple(found)):
            yield relation.name
    for constraint in snapshot.constraints:
        acts = {constraint.on_update, constraint.on_delete} - _HARMLESS
        if constraint.type == "f" and acts and constraint.table in found and constraint.target:
            yield constraint.target


def _mentions(text: str | None, words: tuple[str, ...]) -> bool:
    return text is not None and any(word in text for word in words)
