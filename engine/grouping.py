"""GROUP BY a primary key, where the key has one column more than tenants see.

A column may stand outside of aggregates when the GROUP BY list holds the primary key of its table
(manual, SELECT, "GROUP BY Clause"). Inside the databases the key starts with the hidden column, so
it has to be in the list too. Grouping by it changes no result: within what a tenant sees it has one
value, and where an outer join leaves it null, the rest of the key is null as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenancy.data_isolation.engine.guard_rules import ALLOW
from tenancy.data_isolation.engine.scopes import Scope, Source
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    children,
    column_ref,
    function_name,
    is_star,
    pb,
    unwrap,
    words,
)
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN


def determined_sources(select: Node, scope: Scope) -> list[Source]:
    """The tables whose other columns a query uses because it groups by their primary keys.

    `select` is as it was written: stars in its list are not replaced yet.
    """
    if not select.group_clause:
        return []
    grouped = {
        found
        for item in select.group_clause
        if (found := _column(_resolved(unwrap(item), select, scope), scope)) is not None
    }
    outputs = [
        *select.target_list,
        *select.sort_clause,
        *select.distinct_clause,
        *select.window_clause,
        *([select.having_clause] if select.HasField("having_clause") else []),
    ]
    used = [node for output in outputs for node in _outside_aggregates(unwrap(output))]
    return [
        source
        for source in scope.sources
        if source.hides
        and source.key
        and all((id(source), name) in grouped for name in source.key)
        and any(_needs_more(node, source, grouped) for node in used)
    ]


def add_tenant_column(select: Node, source: Source) -> None:
    """Group by the hidden column as well."""
    select.group_clause.append(column_ref(source.alias, TENANT_COLUMN))


def _resolved(item: Node, select: Node, scope: Scope) -> Node:
    """What a GROUP BY item stands for: itself, or the output column that it numbers or names."""
    if isinstance(item, pb.A_Const) and item.HasField("ival"):
        number = item.ival.ival
        before = [unwrap(target.res_target.val) for target in select.target_list[:number]]
        if 1 <= number == len(before) and not any(map(is_star, before)):
            return before[-1]
    if isinstance(item, pb.ColumnRef) and len(item.fields) == 1 and _column(item, scope) is None:
        for target in select.target_list:
            if target.res_target.name == words(item.fields)[0]:
                return unwrap(target.res_target.val)
    return item


def _column(node: Node, scope: Scope) -> tuple[int, str] | None:
    """The table of this query level, by its identity, and the column that a reference means."""
    if not isinstance(node, pb.ColumnRef):
        return None
    names = words(node.fields)
    if len(names) != len(node.fields):
        return None
    for source in scope.sources:
        if names[-1] in source.names and (len(names) == 1 or names[0] == source.alias):
            return id(source), names[-1]
    return None


def _outside_aggregates(root: Node) -> Iterator[Node]:
    """The column references below a node that are not arguments of an aggregate."""
    pending = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, pb.ColumnRef):
            yield node
        elif isinstance(node, pb.FuncCall) and not node.HasField("over"):
            if function_name(node)[1] not in ALLOW.aggregates:
                pending.extend(children(node))
        else:
            pending.extend(children(node))


def _needs_more(node: Node, source: Source, grouped: set[tuple[int, str]]) -> bool:
    """Whether a reference uses a column of the source that is not grouped by."""
    names = words(node.fields)
    if len(names) != len(node.fields):  # A star, alone or with the alias.
        return not names or names[0] == source.alias
    if len(names) == 2 and names[0] != source.alias:
        return False
    return names[-1] in source.names and (id(source), names[-1]) not in grouped
