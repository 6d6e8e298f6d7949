"""Which index a statement could use, from its text: the columns that it compares with values.

Only what is sure to be so counts: comparisons that are joined by AND at the top of a WHERE clause,
of a column of a known table with something that has no column in it. What is not understood gives
no advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    nodes,
    parse,
    pb,
    type_name,
    unwrap,
    words,
)
from tenancy.data_isolation.engine.visible_schema import VisibleRelation

#: Columns of an index that is advised.
_COLUMNS_MAX: Final = 3
#: How `format_type` begins for types that a B-tree orders and that people look things up by.
_ORDERED: Final = (
    *("smallint", "integer", "bigint", "numeric", "real", "double precision"),
    *("text", "character", "uuid", "date", "time", "interval", "inet", "bytea"),
)
_RANGES: Final = frozenset({"<", ">", "<=", ">="})
_SINGLE: Final = frozenset({pb.AEXPR_OP, pb.AEXPR_IN, pb.AEXPR_OP_ANY})


@dataclass(frozen=True, slots=True)
class IndexNeed:
    """Columns of a table by which rows are looked for: with one value each, and with a range."""

    table: str
    equal: tuple[str, ...]
    range: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the index that would help, in their order."""
        found = self.equal[:_COLUMNS_MAX]
        if self.range is not None and len(found) < _COLUMNS_MAX:
            return (*found, self.range)
        return found

    def is_met(self, leading: Iterable[str | None]) -> bool:
        """Whether one of the indexes that begin with these columns narrows the search already."""
        wanted = {*self.equal, self.range} - {None}
        return not wanted.isdisjoint(leading)


def index_needs(text: str, relations: Mapping[str, VisibleRelation]) -> list[IndexNeed]:
    """What the statement looks for, table by table. A text that cannot be read needs nothing."""
    try:
        tree = parse(text)
    except TenancyError:
        return []  # PostgreSQL cuts long texts off.
    every = list(nodes(tree))
    # The name of a WITH query can be that of a table.
    queries = {node.ctename for node in every if type_name(node) == "CommonTableExpr"}
    tables = {name: item for name, item in relations.items() if name not in queries}
    found: list[IndexNeed] = []
    for node in every:
        if type_name(node) in ("SelectStmt", "UpdateStmt", "DeleteStmt"):
            found += _needs_of(node, tables)
    return found


def _needs_of(statement: Node, relations: Mapping[str, VisibleRelation]) -> Iterator[IndexNeed]:
    if not statement.HasField("where_clause"):
        return
    sources = dict(_sources(statement))
    equal: dict[str, dict[str, None]] = {}
    ranges: dict[str, dict[str, None]] = {}
    for condition in _conjuncts(unwrap(statement.where_clause)):
        compared = _compared(condition)
        if compared is None:
            continue
        names, is_range = compared
        table = _table(names, sources, relations)
        if table is not None:
            (ranges if is_range else equal).setdefault(table, {})[names[-1]] = None
    for table in {**equal, **ranges}:
        order = relations[table].columns
        columns = tuple(name for name in order if name in equal.get(table, {}))
        rest = next((name for name in ranges.get(table, {}) if name not in columns), None)
        yield IndexNeed(table, columns, rest)


def _sources(statement: Node) -> Iterator[tuple[str, str]]:
    """Alias and table of everything that a query level names in its FROM, once for each alias."""
    pending: list[Any] = []
    for name in ("from_clause", "using_clause"):
        pending += [unwrap(item) for item in getattr(statement, name, ())]
    if type_name(statement) != "SelectStmt":
        pending.append(statement.relation)
    while pending:
        node = pending.pop()
        match type_name(node):
            case "RangeVar":
                yield (node.alias.aliasname or node.relname), node.relname
            case "JoinExpr":
                pending += [unwrap(node.larg), unwrap(node.rarg)]
            case _:
                # A subselect or a function may have columns of any name.
                yield "", ""


def _conjuncts(node: Node) -> Iterator[Node]:
    """The conditions that all have to hold."""
    if type_name(node) == "BoolExpr":
        if node.boolop == pb.AND_EXPR:
            for item in node.args:
                yield from _conjuncts(unwrap(item))
        return
    yield node


def _compared(condition: Node) -> tuple[tuple[str, ...], bool] | None:
    """The column that is compared with values, and whether with a range of them."""
    if type_name(condition) != "A_Expr":
        return None
    left, right = unwrap(condition.lexpr), unwrap(condition.rexpr)
    operator = words(condition.name)
    if condition.kind == pb.AEXPR_BETWEEN:
        return (words(left.fields), True) if _is_column(left) and _is_value(right) else None
    if condition.kind not in _SINGLE or not operator:
        return None
    # A list of values stands as a plain list of nodes.
    if not _is_column(left) and condition.kind == pb.AEXPR_OP:
        left, right = right, left
    if not _is_column(left) or not _is_value(right):
        return None
    if operator[-1] == "=":
        return words(left.fields), False
    if condition.kind == pb.AEXPR_OP and operator[-1] in _RANGES:
        return words(left.fields), True
    return None


def _is_column(node: Node) -> bool:
    return type_name(node) == "ColumnRef" and len(words(node.fields)) == len(node.fields)


def _is_value(node: Node) -> bool:
    """Whether there is no column in it, and no query."""
    return all(type_name(item) not in ("ColumnRef", "SubLink") for item in nodes(node))


def _table(
    names: tuple[str, ...], sources: Mapping[str, str], relations: Mapping[str, VisibleRelation]
) -> str | None:
    """The table whose column it is, if that is certain and the column can be looked up by."""
    if len(names) == 2:
        table = sources.get(names[0])
    elif len(names) == 1 and "" not in sources:
        having = {
            table
            for table in sources.values()
            if table in relations and names[0] in relations[table].columns
        }
        known = all(table in relations for table in sources.values())
        table = having.pop() if known and len(having) == 1 else None
    else:
        table = None
    relation = relations.get(table) if table else None
    if relation is None or relation.view or not relation.hidden:
        return None
    shape = next((item for item in relation.shapes if item.name == names[-1]), None)
    if shape is None or not shape.type.startswith(_ORDERED) or shape.type.endswith("[]"):
        return None
    return relation.name
