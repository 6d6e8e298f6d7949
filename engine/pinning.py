"""SQL of the runtime's own in which every function, operator and type is PostgreSQL's.

While an admin's session works in a users' schema, that schema is in the search_path. For a bare
function or operator PostgreSQL takes the best match of all schemas in the path, and not the first
(manual, "Type Conversion"): a function `format(text, name)` of users would be called in place of
PostgreSQL's, inside the admin's session, where `reset role` makes it the admin (CVE-2018-1058). To
name pg_catalog first in the search_path does not help, for the same reason.

Hence the text is rewritten before it is sent: what has no schema gets `pg_catalog`, and forms that
call an operator without naming it (`IN`, `IS DISTINCT FROM`, `LIKE`, `BETWEEN`, `NULLIF`, `CASE x
WHEN`) are told as operators. Left as they are, because no function or operator is looked up by a
name for them: COALESCE, GREATEST, LEAST, ORDER BY, GROUP BY and DISTINCT, which go by the type; and
`JOIN ... USING`, which takes an operator of exactly the columns' types, in the first schema that
has one, pg_catalog, where both columns have one type.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, LiteralString

from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    Tree,
    nodes,
    parse,
    pb,
    type_name,
    unwrap,
    words,
    write,
)

_SCHEMA: Final = "pg_catalog"
#: Texts that are remembered: to read one takes longer than most statements, also while a tenant is
#: held for it.
_TEXTS_MAX: Final = 1_024
#: The types that our texts name; what else is bare is a type of users', such as one of an enum.
_TYPES: Final = frozenset(
    {
        *("bytea", "char", "date", "int8multirange", "json", "jsonb", "name", "oid", "record"),
        *("regclass", "regnamespace", "regproc", "regprocedure", "regrole", "regtype", "text"),
        "timestamptz",
        *("uuid", "xid"),
    }
)
#: What `BETWEEN` and `NOT BETWEEN` ask of the lower and the upper bound.
_BOUNDS: Final = {
    pb.AEXPR_BETWEEN: (">=", "<=", pb.AND_EXPR),
    pb.AEXPR_NOT_BETWEEN: ("<", ">", pb.OR_EXPR),
}
_LIKES: Final = frozenset({pb.AEXPR_LIKE, pb.AEXPR_ILIKE, pb.AEXPR_SIMILAR})
_PLAIN: Final = frozenset({pb.AEXPR_OP, pb.AEXPR_OP_ANY, pb.AEXPR_OP_ALL})


@lru_cache(maxsize=_TEXTS_MAX)
def pinned(text: str) -> LiteralString:
    """`text`, one or more statements, with every bare function, operator and type PostgreSQL's.

    Text in which there is nothing to pin comes back as it is. Raises `StatementError` for a text
    that cannot be read or written back exactly.
    """
    tree = parse(text)
    if not any(_is_loose(node) for node in nodes(tree)):
        return text
    pin(tree)
    return write(tree)


def pin(tree: Tree) -> None:
    """Pin what `tree` names, in place."""
    queries = {node.ctename for node in nodes(tree) if type_name(node) == "CommonTableExpr"}
    # From the leaves up: what is told anew holds what was pinned before.
    for node in reversed(list(nodes(tree))):
        match type_name(node):
            case "FuncCall" if len(node.funcname) == 1:
                _qualify(node.funcname)
            case "TypeName" if _is_bare_type(node):
                _qualify(node.names)
            case "RangeVar" if _is_bare_catalog(node) and node.relname not in queries:
                node.schemaname = _SCHEMA
            case "SubLink" if node.sub_link_type in (pb.ANY_SUBLINK, pb.ALL_SUBLINK):
                _pin_sublink(node)
            case "CaseExpr" if node.HasField("arg"):
                _search(node)
    _pin_expressions(tree)


def loose(text: str) -> list[str]:
    """What in `text` is looked up by a bare name, for a test to find."""
    return [type_name(node) for node in nodes(parse(text)) if _is_loose(node)]


def _is_loose(node: Node) -> bool:
    match type_name(node):
        case "FuncCall":
            return len(node.funcname) == 1
        case "TypeName":
            return _is_bare_type(node)
        case "A_Expr":
            return node.kind not in _PLAIN or len(node.name) == 1
        case "SubLink":
            named = node.sub_link_type in (pb.ANY_SUBLINK, pb.ALL_SUBLINK)
            return named and len(node.oper_name) < 2
        case "CaseExpr":
            return bool(node.HasField("arg"))
        case "RangeVar":
            return _is_bare_catalog(node)
    return False


def _is_bare_type(node: Node) -> bool:
    names = words(node.names)
    return len(names) == 1 and names[0] in _TYPES


def _is_bare_catalog(node: Node) -> bool:
    return not node.schemaname and node.relname.startswith("pg_")


def _qualify(names: list[Node]) -> None:
    bare = pb.Node()
    bare.CopyFrom(names[0])
    del names[:]
    names.add().string.sval = _SCHEMA  # type: ignore[attr-defined]
    names.append(bare)


def _pin_sublink(node: Node) -> None:
    if not node.oper_name:
        node.oper_name.add().string.sval = "="
    if len(node.oper_name) == 1:
        _qualify(node.oper_name)


def _search(node: Node) -> None:
    """`CASE x WHEN y` as `CASE WHEN x = y`."""
    for holder in node.args:
        when = unwrap(holder)
        when.expr.CopyFrom(_operation("=", node.arg, when.expr))
    node.ClearField("arg")


def _pin_expressions(tree: Tree) -> None:
    """Pin operators. A wrapper is replaced as a whole where the form of an expression changes."""
    for holder in reversed(list(_wrappers(tree))):
        node = unwrap(holder)
        if type_name(node) != "A_Expr":
            continue
        if node.kind in _PLAIN:
            if len(node.name) == 1:
                _qualify(node.name)
        else:
            told = _told(node)
            holder.CopyFrom(told)


def _wrappers(tree: Tree) -> Iterable[Node]:
    """Every `Node` wrapper, outer ones first."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, pb.Node):
            yield node
        inner = unwrap(node)
        if isinstance(inner, pb.A_Const):
            continue
        for field, value in inner.ListFields():
            if field.message_type is not None:
                pending.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _told(node: Node) -> Node:
    """The expression by operators with names; its operands are pinned already."""
    match node.kind:
        case pb.AEXPR_IN:
            sign = words(node.name)[0]
            together = pb.OR_EXPR if sign == "=" else pb.AND_EXPR
            parts = [_operation(sign, node.lexpr, item) for item in node.rexpr.list.items]
            return parts[0] if len(parts) == 1 else _bool(together, *parts)
        case pb.AEXPR_DISTINCT | pb.AEXPR_NOT_DISTINCT:
            return _distinct(node)
        case pb.AEXPR_NULLIF:
            return _choice(_operation("=", node.lexpr, node.rexpr), None, node.lexpr)
        case kind if kind in _LIKES:
            return _operation(words(node.name)[0], node.lexpr, node.rexpr)
        case kind if kind in _BOUNDS:
            low, high, together = _BOUNDS[kind]
            bounds = node.rexpr.list.items
            return _bool(
                together,
                _operation(low, node.lexpr, bounds[0]),
                _operation(high, node.lexpr, bounds[1]),
            )
    raise ValueError(f"an expression of kind {pb.A_Expr_Kind.Name(node.kind)} cannot be pinned")


def _distinct(node: Node) -> Node:
    """Whether two values are not the same, or are; null is the same as null alone."""
    left, right = node.lexpr, node.rexpr
    is_distinct = node.kind == pb.AEXPR_DISTINCT
    together = _bool(pb.AND_EXPR, _is_null(left), _is_null(right))
    sign = "<>" if is_distinct else "="
    alone = _bool(pb.NOT_EXPR, together) if is_distinct else together
    either = _bool(pb.OR_EXPR, _is_null(left), _is_null(right))
    return _choice(either, alone, _operation(sign, left, right))


def _operation(sign: str, left: Node, right: Node) -> Node:
    made = pb.Node()
    made.a_expr.kind = pb.AEXPR_OP
    for name in (_SCHEMA, sign):
        made.a_expr.name.add().string.sval = name
    made.a_expr.lexpr.CopyFrom(left)
    made.a_expr.rexpr.CopyFrom(right)
    return made


def _bool(kind: int, *parts: Node) -> Node:
    made = pb.Node()
    made.bool_expr.boolop = kind
    made.bool_expr.args.extend(parts)
    return made


def _is_null(operand: Node) -> Node:
    made = pb.Node()
    made.null_test.nulltesttype = pb.IS_NULL
    made.null_test.arg.CopyFrom(operand)
    return made


def _choice(condition: Node, then: Node | None, otherwise: Node) -> Node:
    made = pb.Node()
    when = made.case_expr.args.add().case_when
    when.expr.CopyFrom(condition)
    if then is None:
        when.result.a_const.isnull = True
    else:
        when.result.CopyFrom(then)
    made.case_expr.defresult.CopyFrom(otherwise)
    return made
