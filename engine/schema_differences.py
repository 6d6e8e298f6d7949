"""In what two schemas differ, by the names of their objects."""

from __future__ import annotations

from dataclasses import replace

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot


def differences(snapshot: SchemaSnapshot, reference: SchemaSnapshot) -> list[str]:
    """The names of what differs between a namespace and the reference, rights apart."""
    here, there = _shapes(snapshot), _shapes(reference)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def check_like(namespace: Namespace, snapshot: SchemaSnapshot, reference: SchemaSnapshot) -> None:
    """Raise `SchemaError` when a namespace does not have the reference's tables."""
    found = differences(snapshot, reference)
    if found:
        names = ", ".join(found[:10]) + (" and more" if len(found) > 10 else "")
        raise SchemaError(f"{namespace} differs from the reference in {names}")


def _shapes(snapshot: SchemaSnapshot) -> dict[str, object]:
    """Everything in a schema by name, without what may differ between namespaces."""
    shapes: dict[str, object] = {}
    for relation in snapshot.relations:
        shapes[f"relation {relation.name}"] = replace(
            relation, grants=(), column_grants=(), forced=False
        )
    for constraint in snapshot.constraints:
        shapes[f"constraint {constraint.name} of {constraint.table}"] = constraint
    for index in snapshot.indexes:
        shapes[f"index {index.name}"] = index
    for policy in snapshot.policies:
        shapes[f"policy {policy.name} of {policy.table}"] = policy
    for trigger in snapshot.triggers:
        shapes[f"trigger {trigger.name} of {trigger.table}"] = trigger
    for routine in snapshot.routines:
        shapes[f"function {routine.name}({routine.arguments})"] = replace(routine, grants=())
    for item in snapshot.types:
        shapes[f"type {item.name}"] = item
    return shapes
