"""What tenant SQL may be made of: the allow-lists, and the checks that need one node at a time.

Rules this module keeps:

* Everything that is not on a list is refused: statements, nodes of the syntax tree, functions,
  types, values such as CURRENT_DATE.
* Every node of a tree is looked at, whatever it hangs on.
* A message names what is refused, where it stands, and what may be used instead.

The lists are in `data/functions.toml` and `data/syntax.toml`, with the reason for each group.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from tenancy.data_isolation.core.errors import StatementForbiddenError, StatementSyntaxError
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    nodes,
    pb,
    position,
    scan,
    type_name,
    words,
)
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN, is_reserved
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

_DATA: Final = files("tenancy.data_isolation.engine") / "data"

#: What tenants may run, for messages.
ALLOWED: Final = "tenants may run SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE and MERGE"
#: Columns that every table has besides its own (manual, 5.6 "System Columns").
_SYSTEM_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
#: Statements whose second word says what they are.
_TWO_WORDS: Final = frozenset({"ALTER", "CREATE", "DROP", "SET", "REFRESH", "SECURITY", "START"})
#: Why a node that stands for a feature is refused, where its name alone does not say it.
_NODE_REASONS: Final = {
    "IntoClause": "SELECT INTO makes a table; tables are made by migrations",
    "RangeTableSample": "TABLESAMPLE reads pages that tenants may share; use ORDER BY random()",
    "RangeTableFunc": "XMLTABLE is not available to tenants; use JSON_TABLE",
    "XmlExpr": "XML functions are not available to tenants; use JSON",
    "XmlSerialize": "XML functions are not available to tenants; use JSON",
    "CurrentOfExpr": "cursors are not available to tenants; name the row by its key",
}
_WRITING: Final = frozenset(
    {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "LockingClause"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowed:
    """The allow-lists."""

    statements: frozenset[str]
    nodes: frozenset[str]
    values: frozenset[str]
    types: frozenset[str]
    functions: frozenset[str]
    aggregates: frozenset[str]


def _load() -> Allowed:
    syntax = _read("syntax.toml")
    functions = _read("functions.toml")
    return Allowed(
        statements=syntax["statements"],
        nodes=syntax["statements"] | syntax["clauses"] | syntax["expressions"] | syntax["json"],
        values=syntax["values"],
        types=syntax["types"],
        functions=frozenset().union(*functions.values()),
        aggregates=functions["aggregates"],
    )


def _read(name: str) -> dict[str, frozenset[str]]:
    groups = tomllib.loads((_DATA / name).read_text(encoding="utf-8"))
    return {group: frozenset(content["names"].split()) for group, content in groups.items()}


#: The lists as they are in the package.
ALLOW: Final = _load()


@dataclass(slots=True)
class Findings:
    """What the nodes of one statement say about it."""

    functions: set[str] = field(default_factory=set)
    #: Functions and types of the schema that it uses, or may use.
    schema_functions: set[str] = field(default_factory=set)
    schema_types: set[str] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)
    writes: bool = False


def check_kind(sql: str, statement: Node) -> None:
    """Refuse every kind of statement but those that read and change rows."""
    if type_name(statement) not in ALLOW.statements:
        raise StatementForbiddenError(f"{_spelled(sql)} is refused: {ALLOWED}")


def check_nodes(sql: str, statement: Node, schema: VisibleSchema) -> Findings:
    """Hold every node of a statement against the lists."""
    inspection = _Inspection(sql, schema)
    for node in nodes(statement):
        inspection.look_at(node)
    return inspection.findings


class _Inspection:
    """One pass over one statement."""

    def __init__(self, sql: str, schema: VisibleSchema) -> None:
        self._sql = sql
        self._schema = schema
        self.findings = Findings()

    def look_at(self, node: Node) -> None:
        name = type_name(node)
        if name not in ALLOW.nodes:
            raise self._refusal(
                node, _NODE_REASONS.get(name, f"{name} is not available to tenants")
            )
        self.findings.writes |= name in _WRITING
        check = _CHECKS.get(name)
        if check is not None:
            check(self, node)

    def relation(self, node: Node) -> None:
        if node.catalogname or node.schemaname:
            given = ".".join(filter(None, (node.catalogname, node.schemaname, node.relname)))
            raise self._refusal(
                node, f'"{_cut(given)}" names a schema; name the table alone ("{node.relname}")'
            )
        if is_reserved(node.relname):
            raise self._refusal(
                node, f'"{node.relname}" is not a table of tenants: names that start with pg_ or '
                "tenancy_ belong to PostgreSQL and to the runtime"
            )  # fmt: skip

    def function(self, node: Node) -> None:
        parts = words(node.funcname)
        name = parts[-1] if parts else ""
        if parts[:-1] not in ((), ("pg_catalog",)):
            raise self._refusal(
                node, f'the function "{_cut(".".join(parts))}" names a schema; name it alone'
            )
        if parts[:-1] == () and name in self._schema.functions:
            self.findings.schema_functions.add(name)
        elif name not in ALLOW.functions:
            raise self._refusal(
                node,
                f'the function "{_cut(name)}" is not available to tenants; allowed are the '
                "built-in functions that only compute, and those that the schema defines",
            )
        self.findings.functions.add(name)

    def type(self, node: Node) -> None:
        parts = words(node.names)
        name = parts[-1] if parts else ""
        if node.setof or node.pct_type:
            raise self._refusal(node, "%TYPE and SETOF are for function definitions")
        if parts[:-1] not in ((), ("pg_catalog",)):
            raise self._refusal(
                node, f'the type "{_cut(".".join(parts))}" names a schema; name it alone'
            )
        if parts[:-1] == () and name in self._schema.types:
            self.findings.schema_types.add(name)
        elif name in self._schema.relations:
            raise self._refusal(
                node, f'the row type of "{_cut(name)}" cannot be used: it has columns that tenants '
                "do not see; list the columns and their types"
            )  # fmt: skip
        elif name not in ALLOW.types:
            raise self._refusal(node, f'the type "{_cut(name)}" is not available to tenants')

    def operator(self, node: Node) -> None:
        names = {"A_Expr": "name", "SubLink": "oper_name", "SortBy": "use_op"}[type_name(node)]
        parts = words(getattr(node, names))
        if parts[:-1] not in ((), ("pg_catalog",)):
            raise self._refusal(
                node, f'the operator "{_cut(".".join(parts))}" names a schema; name it alone'
            )

    def collation(self, node: Node) -> None:
        parts = words(node.collname)
        if parts[:-1] not in ((), ("pg_catalog",)):
            raise self._refusal(
                node, f'the collation "{_cut(".".join(parts))}" names a schema; name it alone'
            )

    def value(self, node: Node) -> None:
        name = pb.SQLValueFunctionOp.Name(node.op)
        if name not in ALLOW.values:
            spelled = name.removeprefix("SVFOP_")
            raise self._refusal(
                node, f"{spelled} is not available to tenants: it differs between isolation levels"
            )

    def column(self, node: Node) -> None:
        parts = words(node.fields)
        if len(node.fields) > 2:
            raise self._refusal(
                node, f'"{_cut(".".join(parts))}" names a schema; use the table\'s name or alias, '
                "and parentheses for the field of a composite column: (column).field"
            )  # fmt: skip
        self.names(node, parts)
        if len(parts) == 2:
            self.attribute(parts[1])

    def indirection(self, node: Node) -> None:
        parts = words(node.indirection)
        self.names(node, parts)
        for part in parts:
            self.attribute(part)

    def attribute(self, name: str) -> None:
        """`x.f` can be the call `f(x)` (manual, 8.16.5 "Using Composite Types in Queries")."""
        if name in self._schema.functions:
            self.findings.schema_functions.add(name)

    def target(self, node: Node) -> None:
        self.names(node, (node.name, *words(node.indirection)))

    def inferred(self, node: Node) -> None:
        self.names(node, (node.name,))
        if node.opclassopts or node.ordering != pb.SORTBY_DEFAULT:
            raise self._refusal(node, "ON CONFLICT takes columns and expressions")
        for names in (node.collation, node.opclass):
            if len(names) > 1 and words(names)[0] != "pg_catalog":
                raise self._refusal(node, f'"{_cut(".".join(words(names)))}" names a schema')

    def alias(self, node: Node) -> None:
        self.names(node, words(node.colnames))

    def common_table(self, node: Node) -> None:
        self.names(node, words(node.aliascolnames))
        if is_reserved(node.ctename):
            raise self._refusal(
                node, f'a WITH query cannot be called "{node.ctename}": names that start with pg_ '
                "or tenancy_ belong to PostgreSQL and to the runtime"
            )  # fmt: skip

    def join(self, node: Node) -> None:
        self.names(node, words(node.using_clause))

    def defined_column(self, node: Node) -> None:
        self.names(node, (node.colname,))

    def json_column(self, node: Node) -> None:
        self.names(node, (node.name,))

    def parameter(self, node: Node) -> None:
        self.findings.parameters.add(node.number)

    def names(self, node: Node, names: tuple[str, ...]) -> None:
        """Refuse the names of columns that no tenant sees."""
        for name in names:
            if name == TENANT_COLUMN:
                raise self._refusal(
                    node, f'"{TENANT_COLUMN}" is kept by the runtime and is no column for tenants: '
                    "leave it out, every row is the tenant's own"
                )  # fmt: skip
            if name in _SYSTEM_COLUMNS:
                raise self._refusal(
                    node, f'"{name}" is a system column and not available to tenants; '
                    "use the table's key"
                )  # fmt: skip

    def _refusal(self, node: Node, reason: str) -> StatementForbiddenError:
        return StatementForbiddenError(reason + place(self._sql, node))


_CHECKS: Final[Mapping[str, Callable[[_Inspection, Any], None]]] = {
    "RangeVar": _Inspection.relation,
    "FuncCall": _Inspection.function,
    "TypeName": _Inspection.type,
    "A_Expr": _Inspection.operator,
    "SubLink": _Inspection.operator,
    "SortBy": _Inspection.operator,
    "CollateClause": _Inspection.collation,
    "SQLValueFunction": _Inspection.value,
    "ColumnRef": _Inspection.column,
    "A_Indirection": _Inspection.indirection,
    "ResTarget": _Inspection.target,
    "IndexElem": _Inspection.inferred,
    "Alias": _Inspection.alias,
    "CommonTableExpr": _Inspection.common_table,
    "JoinExpr": _Inspection.join,
    "ColumnDef": _Inspection.defined_column,
    "JsonTableColumn": _Inspection.json_column,
    "ParamRef": _Inspection.parameter,
}


def check_parameters(found: set[int], most: int) -> int:
    """How many `$n` a statement has; they must be `$1` to `$n` without a gap."""
    highest = max(found, default=0)
    if highest > most:
        raise StatementForbiddenError(
            f"the statement has ${highest}; it may have {most} parameters, "
            "use an array for more values"
        )
    missing = next((number for number in range(1, highest + 1) if number not in found), None)
    if missing is not None or 0 in found:
        raise StatementSyntaxError(
            f"the statement uses ${highest} but not ${missing}: number the placeholders from $1 on"
            if missing
            else "placeholders are numbered from $1 on",
            "42P02",
        )
    return highest


def place(sql: str, node: Node) -> str:
    """` (line 1, column 8)`, or nothing for a node that does not know where it stands."""
    location = getattr(node, "location", -1)
    return f" ({position(sql, location)})" if location > 0 else ""


def _spelled(sql: str) -> str:
    """The first words of a statement, as far as they are key words."""
    tokens = [
        token
        for token in scan(sql)
        if token.token not in (pb.SQL_COMMENT, pb.C_COMMENT, pb.ASCII_59)
    ]
    source = sql.encode()
    spelled = [
        source[token.start : token.end].decode().upper()
        for token in tokens[:2]
        if token.keyword_kind != pb.NO_KEYWORD
    ]
    if len(spelled) == 2 and spelled[0] in _TWO_WORDS:
        return " ".join(spelled)
    return spelled[0] if spelled else "this statement"


def _cut(name: str) -> str:
    return name if len(name) <= 63 else name[:60] + "..."
