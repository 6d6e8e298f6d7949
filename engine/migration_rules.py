"""Which statements a migration may hold, as PostgreSQL's grammar sees them.

An allow-list: a kind of statement, object, subcommand or option that is not named here is refused,
so what a future PostgreSQL adds stays out until someone has looked at it. Names are given without a
schema, because the same text runs in many; `pg_catalog` alone may be written out, which the grammar
itself does for types like `int`.

The catalogs have the last word (`scope_refusals`): these rules are there to say early, and with a
line number, what would be refused there or has no place in a tenant-neutral schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from tenancy.data_isolation.engine.function_bodies import body_queries
from tenancy.data_isolation.engine.scope_refusals import FUNCTION_SETTINGS
from tenancy.data_isolation.engine.syntax_tree import Node, nodes, pb, type_name, unwrap, words
from tenancy.data_isolation.engine.tenant_column import is_reserved, is_runtime_name

_DATA: Final = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})

_INDEX_METHODS: Final = frozenset({"", "btree", "hash", "gin", "gist", "spgist", "brin"})
_STORAGE_OPTION: Final = re.compile(
    r"fillfactor|parallel_workers|toast_tuple_target|vacuum_truncate|vacuum_index_cleanup"
    r"|vacuum_max_eager_freeze_failure_rate|autovacuum_\w+|log_autovacuum_min_duration"
    r"|deduplicate_items|fastupdate|gin_pending_list_limit|buffering|pages_per_range|autosummarize"
)
_VIEW_OPTION: Final = re.compile(r"security_barrier|security_invoker|check_option")
_FUNCTION_OPTIONS: Final = frozenset(
    {"as", "language", "volatility", "strict", "cost", "rows", "parallel", "security", "set"}
)

_DROPPED: Final = frozenset({"TABLE", "INDEX", "TYPE", "DOMAIN", "SEQUENCE", "VIEW", "FUNCTION"})
#: Object types whose name has the table's in front.
_PARTS: Final = frozenset({"COLUMN", "TABCONSTRAINT", "TRIGGER"})
_OBJECTS: Final = _DROPPED | _PARTS | {"ATTRIBUTE", "DOMCONSTRAINT"}
_ALTERED: Final = frozenset({"TABLE", "INDEX", "SEQUENCE", "VIEW", "TYPE"})
_SUBCOMMANDS: Final = frozenset(
    {
        "AddColumn",
        "AddConstraint",
        "AddIdentity",
        "AlterColumnType",
        "AlterConstraint",
        "ColumnDefault",
        "DisableTrig",
        "DisableTrigUser",
        "DropColumn",
        "DropConstraint",
        "DropExpression",
        "DropIdentity",
        "DropNotNull",
        "EnableTrig",
        "EnableTrigUser",
        "ResetOptions",
        "ResetRelOptions",
        "SetCompression",
        "SetExpression",
        "SetIdentity",
        "SetNotNull",
        "SetOptions",
        "SetRelOptions",
        "SetStatistics",
        "SetStorage",
        "ValidateConstraint",
    }
)

#: What a kind of statement is called, where its node's name does not say it.
_KINDS: Final = {
    "AlterTSConfigurationStmt": "ALTER TEXT SEARCH CONFIGURATION",
    "AlterTSDictionaryStmt": "ALTER TEXT SEARCH DICTIONARY",
    "CallStmt": "CALL",
    "CommentStmt": "COMMENT",
    "CompositeTypeStmt": "CREATE TYPE",
    "ConstraintsSetStmt": "SET CONSTRAINTS",
    "CreateEnumStmt": "CREATE TYPE",
    "CreatePLangStmt": "CREATE LANGUAGE",
    "CreateRangeStmt": "CREATE TYPE AS RANGE",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "CreateStatsStmt": "CREATE STATISTICS",
    "CreateStmt": "CREATE TABLE",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreateEventTrigStmt": "CREATE EVENT TRIGGER",
    "CreatedbStmt": "CREATE DATABASE",
    "DropdbStmt": "DROP DATABASE",
    "IndexStmt": "CREATE INDEX",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "RuleStmt": "CREATE RULE",
    "SecLabelStmt": "SECURITY LABEL",
    "TransactionStmt": "transaction control",
    "VariableSetStmt": "SET",
    "VariableShowStmt": "SHOW",
    "ViewStmt": "CREATE VIEW",
}
_ADVICE: Final = {
    "SelectStmt": "a SELECT changes nothing; use INSERT, UPDATE, DELETE or MERGE",
    "CREATE MATERIALIZED VIEW": "it would hold the rows of all tenants; use a view",
    "CreateTableAsStmt": "make the table, then fill it with INSERT ... SELECT",
    "TransactionStmt": "each migration is one transaction already",
    "GrantStmt": "the runtime alone grants rights",
    "GrantRoleStmt": "the runtime alone grants rights",
    "CreatePolicyStmt": "the runtime alone makes policies",
    "TruncateStmt": "it would remove the rows of all tenants; use DELETE",
    "DoStmt": "write plain statements, or a function",
    "VariableSetStmt": "settings would reach beyond the migration",
}

_NO_PLACE: Final = "a tenant-neutral schema cannot hold this"


def is_data(node: Node) -> bool:
    """Whether a statement changes rows and not definitions."""
    return type_name(node) in _DATA


def describe(node: Node) -> str:
    """The kind of a statement and the name of its object, for a message."""
    name = object_name(node)
    return f"{_kind(node)} {name}" if name else _kind(node)


def object_name(node: Node) -> str:
    """The name of the object that a statement makes, changes or drops; empty when it has none."""
    for field in ("idxname", "trigname", "policy_name", "rulename"):
        if getattr(node, field, ""):
            return str(getattr(node, field))
    for field in ("relation", "view", "sequence", "typevar"):
        if hasattr(node, field) and node.HasField(field):
            return str(unwrap(getattr(node, field)).relname)
    if type_name(node) == "CreateTableAsStmt":
        return str(node.into.rel.relname)
    if type_name(node) == "CreateForeignTableStmt":
        return str(node.base_stmt.relation.relname)
    for field in ("funcname", "domainname", "type_name", "defnames"):
        names = getattr(node, field, None)
        if names is not None and not hasattr(names, "DESCRIPTOR"):
            return ".".join(words(names))
    if type_name(node) == "DropStmt":
        return ", ".join(".".join(_object_words(item)) for item in node.objects)
    if type_name(node) == "AlterFunctionStmt":
        return ".".join(words(node.func.objname))
    if type_name(node) in ("CommentStmt", "RenameStmt"):
        return ".".join(_object_words(node.object))
    return ""


def reasons(node: Node, text: str) -> Iterator[str]:
    """Why a statement may not be part of a migration; nothing when it may. `text` is its text."""
    kind = type_name(node)
    if kind not in _RULES:
        yield _ADVICE.get(_kind(node)) or _ADVICE.get(kind) or _NO_PLACE
        return
    found = [*_RULES[kind](node), *_name_reasons(node)]
    if kind in _MAKING and object_name(node).startswith("pg_"):
        found.append(f"the name {object_name(node)} is reserved for PostgreSQL")
    if kind == "CreateFunctionStmt":
        for query, reason in body_queries(node, text):
            found += [reason] if reason else _name_reasons(query)
    yield from dict.fromkeys(found)


# Kinds of statements


def _data(node: Node) -> Iterator[str]:
    if node.HasField("returning_clause"):
        yield "RETURNING has nobody to return to; leave it out"
    if any(type_name(part) == "ParamRef" for part in nodes(node)):
        yield "parameters ($1) have no value here"


def _create_table(node: Node) -> Iterator[str]:
    if node.inh_relations or node.HasField("partspec") or node.HasField("partbound"):
        yield "inheritance and partitions are not supported"
    if node.HasField("of_typename"):
        yield "typed tables (OF) are not supported"
    if node.tablespacename or node.access_method not in ("", "heap"):
        yield "tablespaces and access methods are the servers' business"
    yield from _persistence(node.relation)
    yield from _options(node.options, _STORAGE_OPTION)
    for part in node.table_elts:
        yield from _table_element(unwrap(part))


def _table_element(part: Node) -> Iterator[str]:
    match type_name(part):
        case "ColumnDef":
            for constraint in part.constraints:
                yield from _constraint(unwrap(constraint))
        case "Constraint":
            yield from _constraint(part)
        case "TableLikeClause":
            yield "LIKE would copy what the runtime adds to a table; write the columns out"


def _constraint(node: Node) -> Iterator[str]:
    kind = pb.ConstrType.Name(node.contype)
    if kind == "CONSTR_EXCLUSION":
        yield "exclusion constraints would compare the rows of different tenants"
    if node.without_overlaps or node.fk_with_period or node.pk_with_period:
        yield "constraints over periods (WITHOUT OVERLAPS, PERIOD) are not supported"
    if node.indexspace:
        yield "tablespaces are the servers' business"
    if kind == "CONSTR_FOREIGN":
        if node.fk_upd_action in ("n", "d"):
            yield "ON UPDATE SET NULL or SET DEFAULT would change the tenant; use another action"
        if node.fk_matchtype == "f" and len(node.fk_attrs) > 1:
            yield "MATCH FULL over several columns cannot be kept; use MATCH SIMPLE and a check"


def _create_index(node: Node) -> Iterator[str]:
    if node.concurrent:
        yield "CONCURRENTLY cannot run inside a transaction; leave it out"
    if node.table_space:
        yield "tablespaces are the servers' business"
    if node.access_method not in _INDEX_METHODS:
        yield f"index method {node.access_method} is not supported"
    yield from _options(node.options, _STORAGE_OPTION)


def _create_view(node: Node) -> Iterator[str]:
    yield from _persistence(node.view)
    yield from _options(node.options, _VIEW_OPTION)


def _create_sequence(node: Node) -> Iterator[str]:
    yield from _persistence(node.sequence)
    yield from _owned_by(node)


def _owned_by(node: Node) -> Iterator[str]:
    for option in map(unwrap, node.options):
        if option.defname == "owned_by" and len(words(unwrap(option.arg).items)) > 2:
            yield "names are given without a schema"


def _create_function(node: Node) -> Iterator[str]:
    if node.is_procedure:
        yield "procedures are not supported, since tenants cannot CALL; use a function"
    yield from _function_options(node.options)
    languages = {
        unwrap(option.arg).sval.lower()
        for option in map(unwrap, node.options)
        if option.defname == "language"
    }
    for language in languages - {"sql", "plpgsql"}:
        yield f"language {language} is not supported; use sql or plpgsql"


def _alter_function(node: Node) -> Iterator[str]:
    if node.objtype != pb.OBJECT_FUNCTION:
        yield "only functions are supported"
    yield from _function_options(node.actions)


def _function_options(options: list[Node]) -> Iterator[str]:
    for option in map(unwrap, options):
        argument = unwrap(option.arg)
        if option.defname not in _FUNCTION_OPTIONS:
            yield f"the option {option.defname.upper()} is not supported"
        elif option.defname == "security" and argument.boolval:
            yield "SECURITY DEFINER would run it with the owner's rights; use SECURITY INVOKER"
        elif option.defname == "set" and argument.name.lower() not in FUNCTION_SETTINGS:
            yield f"its SET clause changes {argument.name or 'everything'}"


def _create_trigger(node: Node) -> Iterator[str]:
    truncate = 1 << 5  # TRIGGER_TYPE_TRUNCATE of pg_trigger.h
    if node.events & truncate:
        yield "TRUNCATE triggers never fire, since tenants cannot TRUNCATE"


def _alter_table(node: Node) -> Iterator[str]:
    kind = _object_type(node.objtype)
    if kind not in _ALTERED:
        yield f"ALTER {kind.replace('_', ' ')} is not supported"
    for command in map(unwrap, node.cmds):
        name = pb.AlterTableType.Name(command.subtype).removeprefix("AT_")
        if name not in _SUBCOMMANDS:
            yield f"the subcommand {_spaced(name)} is not supported"
        definition = unwrap(getattr(command, "def"))
        if name == "AddConstraint":
            yield from _constraint(definition)
        elif name == "AddColumn":
            yield from _table_element(definition)
        elif name in ("SetRelOptions", "ResetRelOptions"):
            pattern = _VIEW_OPTION if kind == "VIEW" else _STORAGE_OPTION
            yield from _options(definition.items, pattern)


def _drop(node: Node) -> Iterator[str]:
    kind = _object_type(node.remove_type)
    if kind not in _DROPPED | {"TRIGGER"}:
        yield f"DROP {kind.replace('_', ' ')} is not supported"
        return
    if node.concurrent:
        yield "CONCURRENTLY cannot run inside a transaction; leave it out"
    for item in node.objects:
        yield from _object_reasons(kind, item)


def _comment(node: Node) -> Iterator[str]:
    kind = _object_type(node.objtype)
    if kind not in _OBJECTS:
        yield f"COMMENT ON {kind.replace('_', ' ')} is not supported"
    else:
        yield from _object_reasons(kind, node.object)


def _rename(node: Node) -> Iterator[str]:
    kind = _object_type(node.rename_type)
    if kind not in _OBJECTS:
        yield f"renaming a {kind.replace('_', ' ').lower()} is not supported"
    if node.HasField("object"):
        yield from _object_reasons("TRIGGER" if kind == "TRIGGER" else "TABLE", node.object)
    if is_reserved(node.newname):
        yield f"the name {node.newname} is reserved"


def _nothing(node: Node) -> Iterator[str]:
    yield from ()


_RULES: Final[dict[str, Callable[[Node], Iterator[str]]]] = {
    **dict.fromkeys(_DATA, _data),
    "CreateStmt": _create_table,
    "IndexStmt": _create_index,
    "ViewStmt": _create_view,
    "CreateSeqStmt": _create_sequence,
    "AlterSeqStmt": _owned_by,
    "CreateFunctionStmt": _create_function,
    "AlterFunctionStmt": _alter_function,
    "CreateTrigStmt": _create_trigger,
    "AlterTableStmt": _alter_table,
    "DropStmt": _drop,
    "CommentStmt": _comment,
    "RenameStmt": _rename,
    "CreateEnumStmt": _nothing,
    "AlterEnumStmt": _nothing,
    "CompositeTypeStmt": _nothing,
    "CreateDomainStmt": _nothing,
    "AlterDomainStmt": _nothing,
}


_MAKING: Final = frozenset(
    {"IndexStmt", "CreateFunctionStmt", "CreateEnumStmt", "CreateDomainStmt", "CompositeTypeStmt"}
)


def _persistence(relation: Node) -> Iterator[str]:
    if relation.relpersistence == "t":
        yield "temporary objects end with the session; make an ordinary one"
    elif relation.relpersistence == "u":
        yield "unlogged objects are empty after a crash; make an ordinary one"


def _options(options: list[Node], allowed: re.Pattern[str]) -> Iterator[str]:
    for option in map(unwrap, options):
        if not allowed.fullmatch(option.defname):
            yield f"the option {option.defname} is not supported"


def _object_reasons(kind: str, item: Node) -> Iterator[str]:
    """Reasons against the name of the object of a DROP, COMMENT or RENAME."""
    names = _object_words(item)
    if len(names) > (2 if kind in _PARTS else 1) and names[0] != "pg_catalog":
        yield "names are given without a schema"


def _object_words(item: Node) -> tuple[str, ...]:
    node = unwrap(item)
    match type_name(node):
        case "List":
            first = unwrap(node.items[0]) if node.items else None
            if first is not None and type_name(first) == "TypeName":
                return words(first.names)
            return words(node.items)
        case "ObjectWithArgs":
            return words(node.objname)
        case "TypeName":
            return words(node.names)
        case "String":
            return (str(node.sval),)
    return ()


# Names, wherever they stand

#: Lists of names that may have a schema in front.
_NAME_LISTS: Final = frozenset(
    {"funcname", "name", "collname", "collation", "opclass", "objname", "type_name", "domainname"}
    | {"oper_name", "use_op"}
)
#: Texts that are no names.
_LITERALS: Final = {
    "CommentStmt": {"comment"},
    "AlterEnumStmt": {"old_val", "new_val", "new_val_neighbor"},
    "CreateEnumStmt": {"vals"},
    "CreateTrigStmt": {"args"},
}
_LARGE_OBJECTS: Final = re.compile(r"lo_\w+|loread|lowrite")


def _name_reasons(root: Node) -> Iterator[str]:
    pending = [root]
    while pending:
        node = unwrap(pending.pop())
        kind = type_name(node)
        if kind == "A_Const" or (kind == "DefElem" and node.defname == "as"):
            continue
        yield from _qualified(node, kind)
        for field, value in node.ListFields():
            if field.name in _LITERALS.get(kind, ()):
                continue
            values = [value] if isinstance(value, str) or not hasattr(value, "__len__") else value
            if field.message_type is not None:
                pending.extend(values)
            elif field.type == field.TYPE_STRING:
                for text in values:
                    if is_runtime_name(text):
                        yield f"the name {text} is kept for the runtime"


def _qualified(node: Node, kind: str) -> Iterator[str]:
    """Reasons against how `node` names something."""
    match kind:
        case "RangeVar":
            if node.schemaname or node.catalogname:
                yield f"{node.schemaname}.{node.relname}: names are given without a schema"
            elif node.relname.startswith("pg_"):
                yield f"the name {node.relname} is reserved for PostgreSQL's catalogs"
        case "ColumnRef":
            if len(words(node.fields)) > 2:
                yield f"{'.'.join(words(node.fields))}: names are given without a schema"
        case "TypeName":
            names = words(node.names)
            if len(names) > (2 if node.pct_type else 1) and names[0] != "pg_catalog":
                yield f"{'.'.join(names)}: names are given without a schema"
        case "FuncCall" if _LARGE_OBJECTS.fullmatch(words(node.funcname)[-1]):
            yield "large objects belong to no table and no tenant; use bytea"
    for field, value in node.ListFields():
        if field.name in _NAME_LISTS and field.message_type is not None and kind != "TypeName":
            names = words(value) if not hasattr(value, "DESCRIPTOR") else ()
            if len(names) > 1 and names[0] != "pg_catalog":
                yield f"{'.'.join(names)}: names are given without a schema"


def _kind(node: Node) -> str:
    kind = type_name(node)
    if kind in ("DropStmt", "AlterTableStmt", "RenameStmt"):
        field = {"DropStmt": "remove_type", "AlterTableStmt": "objtype"}.get(kind, "rename_type")
        verb = "DROP" if kind == "DropStmt" else "ALTER"
        return f"{verb} {_object_type(getattr(node, field)).replace('_', ' ')}"
    if kind == "CreateTableAsStmt":
        view = node.objtype == pb.OBJECT_MATVIEW
        return "CREATE MATERIALIZED VIEW" if view else "CREATE TABLE AS"
    return _KINDS.get(kind) or _spaced(kind.removesuffix("Stmt"))


def _object_type(number: int) -> str:
    return str(pb.ObjectType.Name(number)).removeprefix("OBJECT_")


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()
