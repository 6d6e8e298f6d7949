"""What the body of a user's function may say.

A body is a text of its own, so what `migration_rules` say of names holds inside it as well. A body
in SQL is rewritten like any query (`scoped_definitions`). One in PL/pgSQL stays as it is; it is
refused where it would mean something else on a table with a column that its author does not see.

This is for good error messages, not for safety: functions run with the rights of whoever calls
them. What a body puts together at run time (EXECUTE) nobody can read beforehand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Final

from tenancy.data_isolation.core.errors import StatementSyntaxError
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    nodes,
    parse,
    statement_nodes,
    type_name,
    unwrap,
    words,
)

# By name, for the reason that syntax_tree gives.
_native: Any = import_module("postgast.native")

_KINDS: Final = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
#: How PL/pgSQL's parser reads a text: RAW_PARSE_DEFAULT and RAW_PARSE_PLPGSQL_EXPR of parser.h; the
#: higher ones are assignments.
_STATEMENT, _EXPRESSION = 0, 2
_BROKEN_DATUM: Final = re.compile(r"\{\}\},")
_ASSIGNMENT: Final = re.compile(r":?=")


def body_queries(function: Node, text: str) -> Iterator[tuple[Node, str | None]]:
    """The statements in the body of a CREATE FUNCTION, with a reason against each, or None.

    `text` is the whole CREATE FUNCTION.
    """
    options = {unwrap(item).defname: unwrap(item) for item in function.options}
    if "as" not in options or "language" not in options:
        return
    language = unwrap(options["language"].arg).sval.lower()
    body = words(unwrap(options["as"].arg).items)[0]
    if language == "sql":
        for node in _parsed(body):
            yield node, _kind_reason(node)
    elif language == "plpgsql":
        for query, returned in _plpgsql_queries(text):
            for node in _parsed(query):
                reason = _kind_reason(node) or _hidden_column_reason(node)
                if returned and reason is None and _has_star(node):
                    reason = "RETURN QUERY with * would return the runtime's column; list columns"
                yield node, reason


def _parsed(text: str) -> list[Node]:
    """The statements in `text`; none when it is not SQL, which PostgreSQL will say better."""
    try:
        return statement_nodes(parse(text))
    except StatementSyntaxError:
        return []


def _kind_reason(node: Node) -> str | None:
    if type_name(node) in _KINDS:
        return None
    return "its body may only hold SELECT, INSERT, UPDATE, DELETE and MERGE"


def _hidden_column_reason(root: Node) -> str | None:
    """Why a statement needs a change that nobody makes inside PL/pgSQL."""
    for node in nodes(root):
        match type_name(node):
            case "InsertStmt" if not node.cols and node.HasField("select_stmt"):
                return f"INSERT INTO {node.relation.relname} needs a list of columns in its body"
            case "OnConflictClause" if node.HasField("infer") and node.infer.index_elems:
                return "ON CONFLICT (columns) does not work in its body; use ON CONSTRAINT name"
    return None


def _has_star(node: Node) -> bool:
    return type_name(node) == "SelectStmt" and any(
        target.res_target.val.HasField("column_ref")
        and target.res_target.val.column_ref.fields[-1].HasField("a_star")
        for target in node.target_list
    )


def _plpgsql_queries(text: str) -> Iterator[tuple[str, bool]]:
    """The SQL inside a function in PL/pgSQL, and whether the function returns its rows."""
    pending: list[tuple[Any, bool]] = [(_plpgsql_tree(text), False)]
    while pending:
        item, returned = pending.pop()
        if isinstance(item, list):
            pending += [(part, returned) for part in item]
        elif isinstance(item, dict):
            if "query" in item and "parseMode" in item:
                yield _as_statement(item["query"], item["parseMode"]), returned
            pending += [
                (part, name == "PLpgSQL_stmt_return_query")
                if name.startswith("PLpgSQL_stmt")
                else (part, returned)
                for name, part in item.items()
            ]


def _plpgsql_tree(text: str) -> Any:
    """PL/pgSQL's syntax tree as JSON; None when the text is not PL/pgSQL.

    libpg_query writes the variables of a trigger (TG_OP and so on) as `{}},`, which is no JSON.
    """
    result = _native.lib.pg_query_parse_plpgsql(text.encode())
    try:
        if result.error:
            return None
        return json.loads(_BROKEN_DATUM.sub("", result.plpgsql_funcs.decode()))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    finally:
        _native.lib.pg_query_free_plpgsql_parse_result(result)


def _as_statement(text: str, mode: int) -> str:
    if mode == _STATEMENT:
        return text
    # The target of an assignment is an expression like its value, as far as names go.
    return f"SELECT {text if mode == _EXPRESSION else _ASSIGNMENT.sub(',', text, count=1)}"
