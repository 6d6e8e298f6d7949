"""Which tables of a schema a hybrid tenant keeps apart, from the marks in the tables' comments.

A table is marked by the word `@sensitive` in its comment. Rules this module keeps:

* A foreign key never leaves a schema: what a sensitive table refers to and what refers to it goes
  along. A key across would lock the shared table whenever a hybrid tenant is made or erased, and
  every DELETE there would ask the tables of all hybrid tenants (`ri_triggers.c`).
* A view of what is kept apart is kept apart too; it is bound to tables, not to names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter

from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot


def sensitive_tables(
    snapshot: SchemaSnapshot,
    also: Collection[str] = (),
    *,
    new_keys: Collection[frozenset[str]] = (),
) -> frozenset[str]:
    """The tables that are marked or in `also`, and those that foreign keys join with them.

    `new_keys` are pairs of tables that a foreign key is about to join.
    """
    tables = {table.name for table in snapshot.tables}
    found = {table.name for table in snapshot.tables if table.sensitive} | (tables & set(also))
    keys: list[Collection[str]] = [
        {key.table, key.target} for key in snapshot.constraints if key.type == "f" and key.target
    ]
    keys += new_keys
    while True:
        joined = found.union(*(ends for ends in keys if found.intersection(ends))) & tables
        if joined == found:
            return frozenset(found)
        found = joined


def views_of(snapshot: SchemaSnapshot, tables: Collection[str]) -> tuple[str, ...]:
    """The views that are made of any of `tables`, also by way of other views, those first."""
    views = {item.name: set(item.reads) for item in snapshot.relations if item.kind == "v"}
    found: set[str] = set()
    while True:
        reached = {name for name, reads in views.items() if reads & (found | set(tables))}
        if reached == found:
            break
        found = reached
    order = TopologicalSorter({name: views[name] & found for name in sorted(found)})
    return tuple(order.static_order())


def bound_functions(snapshot: SchemaSnapshot) -> Iterator[tuple[str, str, str]]:
    """Functions whose bodies are bound to a table that is kept apart: name, arguments, table."""
    tables = sensitive_tables(snapshot)
    apart = {*tables, *views_of(snapshot, tables)}
    for routine in snapshot.routines:
        for name in sorted(apart & set(routine.reads)):
            yield routine.name, routine.arguments, name
            break
