"""Which rights the roles of a namespace have on its objects, and the statements to get there.

The roles of a namespace are those that may use its schema; the reference has none. The role of
hybrid tenants gets nothing on what these keep in a schema of their own. Whatever else an object's
access list holds is taken away: rights of other roles and of PUBLIC, rights with grant option,
rights on single columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.engine.layout import HYBRID_ROLE
from tenancy.data_isolation.engine.schema_snapshot import Grant, SchemaSnapshot
from tenancy.data_isolation.engine.sensitive_tables import sensitive_tables, views_of
from tenancy.data_isolation.engine.tenant_column import IDEMPOTENCY_TABLE, VERSION_TABLE

PUBLIC: Final = "PUBLIC"
_ROWS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Object:
    """An object with an access list: how GRANT names it, and what it should and does have.

    `apart`: hybrid tenants have one of their own.
    """

    sort: str
    name: str
    wanted: tuple[str, ...]
    grants: tuple[Grant, ...]
    column_grants: tuple[str, ...] = ()
    apart: bool = False

    def due(self, role: str) -> tuple[str, ...]:
        """What a role of the namespace should have."""
        return () if self.apart and role == HYBRID_ROLE else self.wanted


def namespace_roles(snapshot: SchemaSnapshot) -> tuple[str, ...]:
    """The roles that work in the schema, from its own access list."""
    roles = {grant.role for grant in snapshot.grants if grant.privilege == "USAGE"}
    return tuple(sorted(roles - {PUBLIC}))


def grant_statements(snapshot: SchemaSnapshot, roles: Sequence[str] | None = None) -> Iterator[str]:
    """The revocations and grants that are missing for exactly `roles` to work in the schema.

    By default these are the ones that may use it now.
    """
    roles = namespace_roles(snapshot) if roles is None else roles
    given: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for item in _objects(snapshot):
        held = _held(item)
        for role in sorted(held):
            wanted = frozenset(item.due(role)) if role in roles else frozenset()
            if held[role] - wanted:
                yield f"REVOKE ALL ON {item.sort} {item.name} FROM {_role(role)}"
                held[role] = frozenset()
        for role in roles:
            missing = tuple(name for name in item.due(role) if name not in held.get(role, ()))
            if missing:
                given[item.sort, role, missing].append(item.name)
    for (sort, role, privileges), names in given.items():
        yield f"GRANT {', '.join(privileges)} ON {sort} {', '.join(names)} TO {_role(role)}"


def _held(item: _Object) -> dict[str, frozenset[str]]:
    """What each role holds; something that nobody should hold counts as an extra privilege."""
    held: dict[str, frozenset[str]] = defaultdict(frozenset)
    for grant in item.grants:
        held[grant.role] |= {grant.privilege, *(["grant option"] if grant.grantable else [])}
    for role in item.column_grants:
        held[role] |= {"columns"}
    return held


def _objects(snapshot: SchemaSnapshot) -> Iterator[_Object]:
    yield _Object(
        sort="SCHEMA",
        name=quote_identifier(snapshot.schema),
        wanted=("USAGE",),
        grants=snapshot.grants,
    )
    tables = sensitive_tables(snapshot)
    apart = {IDEMPOTENCY_TABLE, *tables, *views_of(snapshot, tables)}
    for relation in snapshot.relations:
        if relation.kind not in "rvS":
            continue
        wanted = ("USAGE",) if relation.kind == "S" else _ROWS
        yield _Object(
            sort="SEQUENCE" if relation.kind == "S" else "TABLE",
            name=quote_identifier(relation.name),
            wanted=() if relation.name == VERSION_TABLE else wanted,
            grants=relation.grants,
            column_grants=relation.column_grants,
            apart=relation.name in apart or relation.belongs_to in apart,
        )
    for routine in snapshot.routines:
        yield _Object(
            sort="PROCEDURE" if routine.kind == "p" else "FUNCTION",
            name=f"{quote_identifier(routine.name)}({routine.arguments})",
            wanted=("EXECUTE",),
            grants=routine.grants,
        )


def _role(name: str) -> str:
    return name if name == PUBLIC else quote_identifier(name)
