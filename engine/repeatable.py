"""What a statement's result depends on, and what a statement changes: for keeping results.

Rules this module keeps:

* A result may be kept only when the statement, its parameters and the rows of the tables that it
  names say everything about it. Whatever is not known to be so is not: lists of what may be, not
  of what may not.
* What a write changes is told too large rather than too small: every table that it names and all
  that foreign keys' actions reach from there, or, when code of the schema may run, everything.

Text is read as a date or a time when it is executed, and then `now` and `today` are the clock
(manual, 8.5.1.4 "Special Values"), so such words, and texts that are turned into times, count as
well as functions do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from tenancy.data_isolation.engine.guard_rules import Findings
from tenancy.data_isolation.engine.schema_snapshot import ColumnShape
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    function_name,
    nodes,
    pb,
    type_name,
    unwrap,
    words,
)
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

#: Allowed functions whose result is another one each time, or which may turn a text of the data
#: into a time.
_CHANGING: Final = frozenset(
    {
        *("now", "statement_timestamp", "transaction_timestamp", "clock_timestamp", "timeofday"),
        *("age", "random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7"),
        *("array_sample", "array_shuffle"),
        *("json_populate_record", "json_populate_recordset", "json_to_record"),
        *("json_to_recordset", "jsonb_populate_record", "jsonb_populate_record_valid"),
        *("jsonb_populate_recordset", "jsonb_to_record", "jsonb_to_recordset"),
    }
)
#: Types of times, and what is made of them.
_TIMES: Final = frozenset(
    {
        *("date", "time", "timetz", "timestamp", "timestamptz"),
        *("daterange", "tsrange", "tstzrange"),
        *("datemultirange", "tsmultirange", "tstzmultirange"),
    }
)
#: How `format_type` begins for columns of these types.
_TIME_COLUMNS: Final = ("date", "time", "tsrange", "tstzrange", "tsmultirange", "tstzmultirange")
#: Functions whose result is a time already, so that a cast of it reads no text.
_GIVE_TIMES: Final = frozenset(
    {
        *("date_trunc", "date_bin", "date_add", "date_subtract", "to_date", "to_timestamp"),
        *("make_date", "make_time", "make_timestamp", "make_timestamptz"),
    }
)
_CLOCK_WORDS: Final = re.compile(
    r"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE
)


def names_the_clock(value: object) -> bool:
    """Whether a value, or a text inside it, could be read as a time that depends on the clock."""
    if isinstance(value, str | bytes | list | tuple | dict):
        return _CLOCK_WORDS.search(value if isinstance(value, str) else repr(value)) is not None
    return False


def is_repeatable(
    statement: Node, findings: Findings, tables: Collection[str], schema: VisibleSchema
) -> bool:
    """Whether the result of a reading statement follows from its parameters and from the rows."""
    if not tables or findings.writes or findings.schema_functions or findings.schema_types:
        return False
    if findings.functions & _CHANGING:
        return False
    relations = [schema.relations[name] for name in tables]
    if any(item.view or not item.hidden or _is_computed(item.shapes) for item in relations):
        return False
    found = list(nodes(statement))
    times = _time_columns(found, relations)
    return all(_is_steady(node, times) for node in found)


def changed_tables(
    findings: Findings, tables: Iterable[str], schema: VisibleSchema
) -> frozenset[str] | None:
    """The tables that a writing statement may change; None when it may be any."""
    if findings.schema_functions or findings.schema_types:
        return None
    reached: set[str] = set()
    waiting = list(tables)
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        relation = schema.relations.get(name)
        if relation is None or relation.view or relation.runs_code:
            return None
        reached.add(name)
        waiting.extend(relation.acts_on)
    return frozenset(reached)


def _is_computed(shapes: Iterable[ColumnShape]) -> bool:
    """Whether a column is computed when it is read (PostgreSQL 18, virtual generated columns)."""
    return any(shape.generated == "v" for shape in shapes)


def _time_columns(found: Iterable[Node], relations: Iterable[VisibleRelation]) -> frozenset[str]:
    """Names that stand for columns that hold times wherever they occur in the statement."""
    kinds: dict[str, bool] = {}
    for relation in relations:
        for shape in relation.shapes:
            is_time = shape.type.startswith(_TIME_COLUMNS)
            kinds[shape.name] = kinds.get(shape.name, True) and is_time
    renamed: set[str] = set()
    for node in found:
        match type_name(node):
            case "ResTarget":
                renamed.add(node.name)
            case "Alias":
                renamed.update(words(node.colnames))
            case "CommonTableExpr":
                renamed.update(words(node.aliascolnames))
    return frozenset(name for name, is_time in kinds.items() if is_time) - renamed


def _is_steady(node: Node, times: frozenset[str]) -> bool:
    name = type_name(node)
    if name.startswith("Json") or name in ("SQLValueFunction", "ColumnDef"):
        return False
    if name == "A_Const" and node.HasField("sval"):
        return not names_the_clock(node.sval.sval)
    if name == "TypeCast":
        parts = words(node.type_name.names)
        return not parts or parts[-1] not in _TIMES or _is_no_text(unwrap(node.arg), times)
    if name == "FuncCall" and function_name(node)[1] in _TIMES:
        return all(_is_no_text(unwrap(argument), times) for argument in node.args)
    return True


def _is_no_text(node: Node, times: frozenset[str]) -> bool:
    """Whether a value that becomes a time is one, or a text that is looked at for itself."""
    # Parameters are looked at when they come.
    if isinstance(node, pb.A_Const | pb.ParamRef):
        return True
    if isinstance(node, pb.FuncCall):
        return function_name(node)[1] in _GIVE_TIMES
    return isinstance(node, pb.ColumnRef) and not times.isdisjoint(words(node.fields)[-1:])
