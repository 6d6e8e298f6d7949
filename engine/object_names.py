"""The names that PostgreSQL gives to constraints and indexes whose maker gave none.

A key or an index that is made on a scoped table begins with the tenant's column, and so would the
name that PostgreSQL chooses. To be called as on a table without that column, it gets the name that
PostgreSQL would have chosen there. The rules are those of PostgreSQL's source (`makeObjectName`,
`ChooseRelationName`, `ChooseConstraintName` and `ChooseIndexName` of indexcmds.c and
pg_constraint.c, `FigureColnameInternal` of parse_target.c); a test holds them against a server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tenancy.data_isolation.engine.syntax_tree import Node, pb, type_name, unwrap, words

_NAME_BYTES_MAX: Final = 63

#: Expressions that always get the same name.
_FIXED: Final = {
    "A_ArrayExpr": "array",
    "CoalesceExpr": "coalesce",
    "GroupingFunc": "grouping",
    "JsonArrayConstructor": "json_array",
    "JsonObjectConstructor": "json_object",
    "JsonParseExpr": "json",
    "JsonScalarExpr": "json_scalar",
    "JsonSerializeExpr": "json_serialize",
    "RowExpr": "row",
    "XmlSerialize": "xmlserialize",
}
_XML: Final = {
    "IS_XMLCONCAT": "xmlconcat",
    "IS_XMLELEMENT": "xmlelement",
    "IS_XMLFOREST": "xmlforest",
    "IS_XMLPARSE": "xmlparse",
    "IS_XMLPI": "xmlpi",
    "IS_XMLROOT": "xmlroot",
}
_JSON_FUNCTIONS: Final = {
    "JSON_EXISTS_OP": "json_exists",
    "JSON_QUERY_OP": "json_query",
    "JSON_VALUE_OP": "json_value",
}


def primary_key_name(table: str, taken: Callable[[str], bool]) -> str:
    """The name of a primary key of `table`."""
    return _free_name(table, "", "pkey", taken)


def unique_name(table: str, columns: Sequence[str], taken: Callable[[str], bool]) -> str:
    """The name of a unique constraint over `columns`, those of INCLUDE among them."""
    return _free_name(table, _joined(_told_apart(columns)), "key", taken)


def foreign_key_name(table: str, columns: Sequence[str], taken: Callable[[str], bool]) -> str:
    """The name of a foreign key of `columns`."""
    return _free_name(table, _joined(columns), "fkey", taken)


def index_name(table: str, elements: Sequence[Node], taken: Callable[[str], bool]) -> str:
    """The name of an index over `elements` (`IndexElem`), those of INCLUDE among them."""
    columns = [element.name or expression_name(element.expr) or "expr" for element in elements]
    return _free_name(table, _joined(_told_apart(columns)), "idx", taken)


def expression_name(expression: Node) -> str | None:
    """What an expression calls itself as a column."""
    return _figured(expression)[0]


def _figured(wrapped: Node) -> tuple[str | None, int]:
    """The name and how much it is worth: 2 is good, 1 is a fallback, 0 is none."""
    node = unwrap(wrapped)
    kind = type_name(node)
    if kind in _FIXED:
        return _FIXED[kind], 2
    match kind:
        case "ColumnRef":
            names = words(node.fields)
            return (names[-1], 2) if names else (None, 0)
        case "A_Indirection":
            names = words(node.indirection)
            return (names[-1], 2) if names else _figured(node.arg)
        case "FuncCall":
            return words(node.funcname)[-1], 2
        case "A_Expr" if node.kind == pb.AEXPR_NULLIF:
            return "nullif", 2
        case "CollateClause":
            return _figured(node.arg)
        case "MinMaxExpr":
            return ("least" if node.op == pb.IS_LEAST else "greatest"), 2
        case "TypeCast":
            name, worth = _figured(node.arg)
            return (name, worth) if worth > 1 else (words(node.type_name.names)[-1], 1)
        case "CaseExpr":
            name, worth = _figured(node.defresult)
            return (name, worth) if worth > 1 else ("case", 1)
    name = _by_operator(node, kind)
    return (name, 2) if name else (None, 0)


def _by_operator(node: Node, kind: str) -> str | None:
    """The name of an expression that stands for one of several functions."""
    match kind:
        case "SQLValueFunction":
            name = str(pb.SQLValueFunctionOp.Name(node.op)).removeprefix("SVFOP_")
            return name.removesuffix("_N").lower()
        case "XmlExpr":
            return _XML.get(pb.XmlExprOp.Name(node.op))
        case "JsonFuncExpr":
            return _JSON_FUNCTIONS.get(pb.JsonExprOp.Name(node.op))
    return None


def _told_apart(columns: Sequence[str]) -> list[str]:
    """`columns` with numbers behind those that occur again."""
    names: list[str] = []
    for column in columns:
        name, number = column, 0
        while name in names:
            number += 1
            name = _clipped(column, _NAME_BYTES_MAX - len(str(number))) + str(number)
        names.append(name)
    return names


def _joined(columns: Sequence[str]) -> str:
    """`columns` with underscores in between, as far as a name reaches."""
    joined = ""
    for column in columns:
        joined += ("_" if joined else "") + column
        if len(joined.encode()) > _NAME_BYTES_MAX:
            break
    return joined


def _free_name(table: str, addition: str, label: str, taken: Callable[[str], bool]) -> str:
    number = 0
    name = _object_name(table, addition, label)
    while taken(name):
        number += 1
        name = _object_name(table, addition, f"{label}{number}")
    return name


def _object_name(first: str, second: str, label: str) -> str:
    """`first_second_label`, with the longer of the first two cut until it fits."""
    room = _NAME_BYTES_MAX - len(label) - (2 if second else 1)
    lengths = [len(first.encode()), len(second.encode())]
    while sum(lengths) > room:
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    parts = [_clipped(first, lengths[0]), _clipped(second, lengths[1]) if second else "", label]
    return "_".join(part for index, part in enumerate(parts) if part or index != 1)


def _clipped(name: str, length: int) -> str:
    """The first `length` bytes of `name`, without half a character at the end."""
    return name.encode()[:length].decode(errors="ignore")
