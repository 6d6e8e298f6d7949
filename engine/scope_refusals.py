"""What in a schema cannot be kept apart by tenant, with the reason.

Each rule looks at one kind of object in a snapshot of the system catalogs. The rules do not trust
the parser's allow-list: they hold for a schema that somebody changed by hand as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.engine.code_paths import relations_with_checks_that_run_code
from tenancy.data_isolation.engine.schema_snapshot import (
    RELATION_KINDS,
    ColumnShape,
    Constraint,
    Index,
    Relation,
    Routine,
    SchemaSnapshot,
)
from tenancy.data_isolation.engine.sensitive_tables import bound_functions
from tenancy.data_isolation.engine.tenant_column import (
    ISOLATION_POLICY,
    TENANT_COLUMN,
    VERSION_TABLE,
)

#: Settings that a function may carry in a SET clause. The rest could change who it works as, for
#: which tenant, or in which schema.
FUNCTION_SETTINGS: Final = frozenset(
    {
        "array_nulls",
        "bytea_output",
        "datestyle",
        "default_text_search_config",
        "extra_float_digits",
        "intervalstyle",
        "jit",
        "plan_cache_mode",
        "timezone",
        "work_mem",
        "xmlbinary",
        "xmloption",
    }
)

#: Types whose values name objects, transactions or places of one database, so that they would not
#: survive a move to another (manual, 8.19 and 8.20).
_LOCAL_TYPES: Final = frozenset(
    {
        "aclitem",
        "cid",
        "oid",
        "pg_lsn",
        "pg_snapshot",
        "refcursor",
        "regclass",
        "regcollation",
        "regconfig",
        "regdictionary",
        "regnamespace",
        "regoper",
        "regoperator",
        "regproc",
        "regprocedure",
        "regrole",
        "regtype",
        "tid",
        "txid_snapshot",
        "xid",
        "xid8",
    }
)

_LANGUAGES: Final = frozenset({"sql", "plpgsql"})
_ROUTINE_KINDS: Final = {"p": "procedure", "a": "aggregate", "w": "window function"}
_TYPE_KINDS: Final = {"b": "base type", "p": "shell type", "r": "range type"}
_UNSUPPORTED_RELATIONS: Final = {
    "p": "its partitions could be read one by one; use an ordinary table",
    "m": "it would hold the rows of all tenants and has no row security; use a view",
    "f": "row security does not reach the other server; use an ordinary table",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One object that stands in the way."""

    kind: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.reason}"


def refusals(snapshot: SchemaSnapshot) -> Iterator[Refusal]:
    """Everything in `snapshot` that cannot be scoped."""
    for relation in snapshot.relations:
        yield from _relation_refusals(relation, snapshot)
    for constraint in snapshot.constraints:
        reason = _constraint_reason(constraint) or _action_reason(constraint, snapshot)
        if reason:
            name = f"{constraint.name} of table {constraint.table}"
            yield Refusal(kind="constraint", name=name, reason=reason)
    for index in snapshot.indexes:
        reason = _index_reason(index)
        if reason:
            yield Refusal(kind="index", name=index.name, reason=reason)
    yield from _policy_refusals(snapshot)
    for routine in snapshot.routines:
        reason = _routine_reason(routine, snapshot.owner)
        if reason:
            kind = _ROUTINE_KINDS.get(routine.kind, "function")
            yield Refusal(kind=kind, name=f"{routine.name}({routine.arguments})", reason=reason)
    yield from _bound_refusals(snapshot)
    for item in snapshot.types:
        if item.kind in _TYPE_KINDS:
            reason = "only enums, domains and composite types are supported"
            yield Refusal(kind=_TYPE_KINDS[item.kind], name=item.name, reason=reason)
    for kind, name, target in snapshot.outside:
        yield Refusal(kind=kind, name=name, reason=f"it refers to {target} in another schema")
    for kind, name in snapshot.strangers:
        yield Refusal(kind=kind, name=name, reason="a tenant-neutral schema cannot hold this")


def _relation_refusals(relation: Relation, snapshot: SchemaSnapshot) -> Iterator[Refusal]:
    reasons = [
        _UNSUPPORTED_RELATIONS.get(relation.kind),
        f"its owner is {relation.owner}, not {snapshot.owner}"
        if relation.owner != snapshot.owner
        else None,
        "it would be empty after a crash; make it without UNLOGGED"
        if relation.persistence == "u"
        else None,
        f"its rules ({', '.join(relation.rules)}) rewrite statements; use triggers"
        if relation.rules
        else None,
    ]
    if relation.kind == "r" and relation.name != VERSION_TABLE:
        reasons += _table_reasons(relation, snapshot)
    reasons += [_column_reason(column) for column in relation.columns]
    if relation.kind in "vc" and relation.column(TENANT_COLUMN):
        reasons.append(f"it has a column {TENANT_COLUMN}, a name that the runtime keeps for itself")
    for reason in filter(None, reasons):
        yield Refusal(kind=RELATION_KINDS[relation.kind], name=relation.name, reason=reason)


def _table_reasons(table: Relation, snapshot: SchemaSnapshot) -> list[str | None]:
    column = table.column(TENANT_COLUMN)
    keyed = any(item.table == table.name and item.type == "p" for item in snapshot.constraints)
    special = table.partition or table.inherits or table.typed
    return [
        None if keyed else "it has no primary key, so its rows cannot be told apart when they move",
        "it is a partition, inherits, or is made of a type; use an ordinary table"
        if special
        else None,
        f"its column {TENANT_COLUMN} is {column.type}, not bigint; rename the column"
        if column and column.type != "bigint"
        else None,
        f"its column {TENANT_COLUMN} is generated; rename the column"
        if column and (column.generated or column.identity)
        else None,
    ]


def _column_reason(column: ColumnShape) -> str | None:
    base = column.type.removesuffix("[]")
    if base in _LOCAL_TYPES:
        return f"its column {column.name} is {base}, which means something in one database only"
    if column.row_of:
        return (
            f"its column {column.name} holds rows of table {column.row_of}, and with them "
            f"{TENANT_COLUMN}; use jsonb or a composite type"
        )
    return None


def _constraint_reason(constraint: Constraint) -> str | None:
    """Why `constraint` cannot be scoped, or None."""
    if constraint.table == VERSION_TABLE:
        return None
    if constraint.type == "x":
        return "an exclusion constraint would compare the rows of different tenants"
    if constraint.period:
        return "constraints over periods (WITHOUT OVERLAPS, PERIOD) are not supported"
    if constraint.type in "pu" and TENANT_COLUMN in constraint.columns[1:]:
        return f"{TENANT_COLUMN} is among its columns but not the first"
    if constraint.type == "f":
        return _foreign_key_reason(constraint)
    return None


def _foreign_key_reason(key: Constraint) -> str | None:
    if key.target is None:
        return "it refers to a table in another schema"
    sides = (key.columns, key.target_columns)
    scoped = [side[:1] == (TENANT_COLUMN,) for side in sides]
    if any(TENANT_COLUMN in side[1:] for side in sides) or scoped[0] != scoped[1]:
        return f"{TENANT_COLUMN} is not the first column on both sides"
    if scoped[0]:
        if key.on_delete in "nd" and not key.delete_set:
            return f"ON DELETE SET would change {TENANT_COLUMN}"
        if key.match == "f":
            return "MATCH FULL cannot hold when the other columns are null"
    elif key.match == "f" and len(key.columns) > 1:
        return "MATCH FULL over several columns cannot be kept; use MATCH SIMPLE and a check"
    if key.on_update in "nd":
        return "ON UPDATE SET NULL or SET DEFAULT would change the tenant; use another action"
    return None


def _action_reason(key: Constraint, snapshot: SchemaSnapshot) -> str | None:
    """Why the actions of a foreign key would let code of the schema see other tenants' rows.

    PostgreSQL carries such an action out as the tables' owner and with row security not forced on
    it (`ri_triggers.c`), and what runs inside, BEFORE triggers above all, inherits that.
    """
    if key.type != "f" or not {key.on_delete, key.on_update} - {"a", "r"}:
        return None
    for trigger in snapshot.triggers:
        if trigger.table == key.table and " BEFORE " in trigger.definition:
            return (
                f"its action would run trigger {trigger.name} of table {key.table} without row "
                "security; use an AFTER trigger, or a foreign key without an action"
            )
    if key.table in relations_with_checks_that_run_code(snapshot):
        return (
            f"its action would run functions in checks, generated columns or domains of table "
            f"{key.table} without row security; use a foreign key without an action"
        )
    return None


def _index_reason(index: Index) -> str | None:
    if not index.valid:
        return "it is not valid; drop it and make it again"
    if index.functions:
        # Without a column in the call, PostgreSQL evaluates it when it plans for the table, as
        # whoever asks: the admin too. A function around it may be inlined, so none is allowed.
        return (
            f"it calls {', '.join(index.functions)}, which would run whenever a statement on the "
            "table is planned; index a stored generated column with that value instead"
        )
    if index.of_constraint or index.table == VERSION_TABLE:
        return None
    if TENANT_COLUMN in index.keys[1:]:
        return f"{TENANT_COLUMN} is among its columns but not the first"
    if index.unique and index.method != "btree":
        return f"a unique index of method {index.method} cannot include the tenant"
    if index.method == "btree" and index.keys[0] != TENANT_COLUMN and index.tail is None:
        return "its definition cannot be extended"
    return None


def _policy_refusals(snapshot: SchemaSnapshot) -> Iterator[Refusal]:
    for policy in snapshot.policies:
        own = VERSION_TABLE if policy.table == VERSION_TABLE else ISOLATION_POLICY
        if policy.name != own:
            yield Refusal(
                kind="policy",
                name=f"{policy.name} of table {policy.table}",
                reason=f"{ISOLATION_POLICY} must be the only policy of a table",
            )


def _bound_refusals(snapshot: SchemaSnapshot) -> Iterator[Refusal]:
    for function, arguments, table in bound_functions(snapshot):
        yield Refusal(
            kind="function",
            name=f"{function}({arguments})",
            reason=(
                f"its BEGIN ATOMIC body is bound to {table}, which hybrid tenants keep apart as "
                "sensitive; write the body as a text in quotes"
            ),
        )


def _routine_reason(routine: Routine, owner: str) -> str | None:
    """Why `routine` must not exist, or None."""
    if routine.kind != "f":
        return "only functions are supported"
    if routine.owner != owner:
        return f"its owner is {routine.owner}, not {owner}"
    if routine.security_definer:
        return "SECURITY DEFINER would run it with the owner's rights; use SECURITY INVOKER"
    if routine.leakproof:
        return "a LEAKPROOF function may see rows before row security removes them"
    if routine.language not in _LANGUAGES:
        return f"language {routine.language} is not supported; use sql or plpgsql"
    if routine.row_types:
        return (
            f"it takes or returns rows of table {routine.row_types[0]}, which have "
            f"{TENANT_COLUMN}; use RETURNS TABLE (...) or a composite type"
        )
    named = {setting.split("=", 1)[0].lower() for setting in routine.settings}
    wrong = sorted(named - FUNCTION_SETTINGS)
    return f"its SET clause changes {', '.join(wrong)}" if wrong else None
