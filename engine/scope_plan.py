"""How to keep the tables of a schema apart by tenant: from a snapshot to statements or refusals.

What a scoped schema looks like:

* Every table has `tenant_id bigint NOT NULL DEFAULT tenancy.bound_tenant()`.
* Primary keys, unique constraints, unique indexes and foreign keys begin with `tenant_id` and have
  the names that they had. `ON DELETE SET NULL` and `SET DEFAULT` name the columns that they touch,
  since `tenant_id` must stay (PostgreSQL manual, CREATE TABLE). A foreign key of one column that
  was `MATCH FULL` is a simple one, which means the same.
* Other btree indexes lead with `tenant_id`. Indexes of other methods (gin, gist, brin, hash) are
  left as they are: most cannot hold a bigint, and row security filters what they find.
* Row security is enabled and forced, with the one policy `tenancy_isolation`. In the reference it
  is not forced: nobody but the owner has any right there, and its rows are to be copied.
* The namespace's roles are those that may use the schema. They have SELECT, INSERT, UPDATE and
  DELETE on tables and views, USAGE on sequences, EXECUTE on functions, and nothing else has any
  right, PUBLIC included. Views run with the rights of whoever asks (`security_invoker`).

Names, columns and definitions come from the system catalogs alone. The plan of a scoped schema is
empty, so running it twice changes nothing. A comment on a constraint or an index that has to be
made again is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.engine.layout import REFERENCE_SCHEMA
from tenancy.data_isolation.engine.schema_grants import grant_statements
from tenancy.data_isolation.engine.schema_snapshot import (
    Constraint,
    Index,
    Policy,
    Relation,
    SchemaSnapshot,
)
from tenancy.data_isolation.engine.scope_refusals import Refusal, refusals
from tenancy.data_isolation.engine.tenant_column import (
    ISOLATION_POLICY,
    TENANT_COLUMN,
    VERSION_TABLE,
)

_DEFAULT: Final = "tenancy.bound_tenant()"
_PREDICATE: Final = "(tenant_id = (SELECT tenancy.tenant()))"
_TENANT: Final = quote_identifier(TENANT_COLUMN)
#: How the catalogs spell the predicate back.
_PREDICATE_SHOWN: Final = "(tenant_id = ( SELECT tenancy.tenant() AS tenant))"

_ACTIONS: Final = {
    "a": "NO ACTION",
    "r": "RESTRICT",
    "c": "CASCADE",
    "n": "SET NULL",
    "d": "SET DEFAULT",
}
_KEY_HEADS: Final = ("PRIMARY KEY (", "UNIQUE NULLS NOT DISTINCT (", "UNIQUE (")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScopePlan:
    """What is left to do. With refusals there is something that no statement can mend."""

    #: Changes of tables, indexes, policies and views, in order: the same in every namespace.
    changes: tuple[str, ...]
    #: Forced row security and rights, which differ between namespaces.
    protection: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """All statements, in order."""
        return self.changes + self.protection


def plan_scope(snapshot: SchemaSnapshot, *, roles: Sequence[str] | None = None) -> ScopePlan:
    """The statements that are missing for `snapshot` to be scoped, and what stands against it.

    `roles` are the logins that shall work in the schema, by default those that may use it now.

    The statements name nothing by schema: run them with the schema as the search_path and as the
    owner of the tables, in one transaction.
    """
    changes = tuple(_changes(snapshot))
    return ScopePlan(
        changes=changes,
        protection=(*_force(snapshot, changes), *grant_statements(snapshot, roles)),
        refusals=tuple(refusals(snapshot)),
    )


def lift_statement(table: str) -> str:
    """Let the owner see all rows of `table`."""
    return f"ALTER TABLE {quote_identifier(table)} NO FORCE ROW LEVEL SECURITY"


def force_statement(table: str) -> str:
    """Let row security bind the owner of `table` too."""
    return f"ALTER TABLE {quote_identifier(table)} FORCE ROW LEVEL SECURITY"


def _changes(snapshot: SchemaSnapshot) -> Iterator[str]:
    tables = [table for table in snapshot.tables if table.name != VERSION_TABLE]
    keys = [
        item
        for item in snapshot.constraints
        if item.type == "f" and item.target is not None and not _leads(item)
    ]
    for key in keys:
        yield f"ALTER TABLE {quote_identifier(key.table)} DROP CONSTRAINT {_name(key)}"
    for table in tables:
        yield from _table_change(table, snapshot)
    for index in snapshot.indexes:
        yield from _index_change(index)
    for table in tables:
        yield from _policy_change(table, snapshot)
    yield from _foreign_key_changes(keys, snapshot)
    for view in snapshot.relations:
        if view.kind == "v" and "security_invoker=true" not in view.options:
            yield f"ALTER VIEW {quote_identifier(view.name)} SET (security_invoker = true)"


def _table_change(table: Relation, snapshot: SchemaSnapshot) -> Iterator[str]:
    """One statement that gives `table` its column, its keys and row security."""
    actions: list[str] = []
    column = table.column(TENANT_COLUMN)
    if column is None:
        # The default comes second: PostgreSQL would evaluate it for the rows that are there.
        actions.append(f"ADD COLUMN {_TENANT} bigint NOT NULL")
    elif not column.not_null:
        actions.append(f"ALTER COLUMN {_TENANT} SET NOT NULL")
    if column is None or column.default != _DEFAULT:
        actions.append(f"ALTER COLUMN {_TENANT} SET DEFAULT {_DEFAULT}")
    for constraint in snapshot.constraints:
        if constraint.table == table.name and constraint.type in "pu" and not _leads(constraint):
            actions.append(f"DROP CONSTRAINT {_name(constraint)}")
            actions.append(f"ADD CONSTRAINT {_name(constraint)} {_scoped_key(constraint)}")
    if not table.row_security:
        actions.append("ENABLE ROW LEVEL SECURITY")
    if actions:
        yield f"ALTER TABLE {quote_identifier(table.name)} " + ", ".join(actions)


def _scoped_key(constraint: Constraint) -> str:
    """The definition of a primary key or unique constraint with the tenant in front."""
    for head in _KEY_HEADS:
        if constraint.definition.startswith(head):
            return f"{head}{_TENANT}, {constraint.definition[len(head) :]}"
    raise AssertionError(f"no key: {constraint.definition}")


def _index_change(index: Index) -> Iterator[str]:
    if index.of_constraint or index.method != "btree" or TENANT_COLUMN in index.keys:
        return
    if index.tail is None or index.table == VERSION_TABLE:
        return
    unique = "UNIQUE " if index.unique else ""
    name, table = quote_identifier(index.name), quote_identifier(index.table)
    yield f"DROP INDEX {name}"
    yield f"CREATE {unique}INDEX {name} ON {table} USING btree ({_TENANT}, {index.tail}"


def _policy_change(table: Relation, snapshot: SchemaSnapshot) -> Iterator[str]:
    name = quote_identifier(table.name)
    policy = next(
        (
            policy
            for policy in snapshot.policies
            if policy.table == table.name and policy.name == ISOLATION_POLICY
        ),
        None,
    )
    if policy is not None and _isolates(policy):
        return
    if policy is not None:
        yield f"DROP POLICY {ISOLATION_POLICY} ON {name}"
    yield (
        f"CREATE POLICY {ISOLATION_POLICY} ON {name} FOR ALL TO PUBLIC "
        f"USING {_PREDICATE} WITH CHECK {_PREDICATE}"
    )


def _isolates(policy: Policy) -> bool:
    return (
        policy.command == "*"
        and policy.permissive
        and policy.roles == ("PUBLIC",)
        and policy.using == _PREDICATE_SHOWN
        and policy.check == _PREDICATE_SHOWN
    )


def _foreign_key_changes(keys: list[Constraint], snapshot: SchemaSnapshot) -> Iterator[str]:
    touched = {name for key in keys for name in (key.table, key.target)}
    for table in snapshot.tables:
        if table.forced and table.name in touched:
            yield lift_statement(table.name)
    for key in keys:
        yield (
            f"ALTER TABLE {quote_identifier(key.table)} "
            f"ADD CONSTRAINT {_name(key)} {_scoped_foreign_key(key)}"
        )


def _force(snapshot: SchemaSnapshot, changes: tuple[str, ...]) -> Iterator[str]:
    """Force row security everywhere; in the reference nowhere, so that its owner can read it."""
    wanted = snapshot.schema != REFERENCE_SCHEMA
    for table in snapshot.tables:
        lifted = lift_statement(table.name) in changes
        if (table.forced and not lifted) != wanted:
            yield force_statement(table.name) if wanted else lift_statement(table.name)


def _scoped_foreign_key(key: Constraint) -> str:
    parts = [
        f"FOREIGN KEY ({_columns(key.columns)})",
        f"REFERENCES {quote_identifier(key.target or '')} ({_columns(key.target_columns)})",
    ]
    if key.on_update != "a":
        parts.append(f"ON UPDATE {_ACTIONS[key.on_update]}")
    if key.on_delete != "a":
        parts.append(f"ON DELETE {_ACTIONS[key.on_delete]}")
    if key.on_delete in "nd":
        chosen = key.delete_set or key.columns
        parts.append("(" + ", ".join(quote_identifier(name) for name in chosen) + ")")
    if key.deferrable:
        parts.append("DEFERRABLE")
    if key.deferred:
        parts.append("INITIALLY DEFERRED")
    if not key.enforced:
        parts.append("NOT ENFORCED")
    elif not key.validated:
        parts.append("NOT VALID")
    return " ".join(parts)


def _columns(names: tuple[str, ...]) -> str:
    return ", ".join(quote_identifier(name) for name in (TENANT_COLUMN, *names))


def _name(constraint: Constraint) -> str:
    return quote_identifier(constraint.name)


def _leads(constraint: Constraint) -> bool:
    return constraint.columns[:1] == (TENANT_COLUMN,)
