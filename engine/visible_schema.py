"""The tenant-neutral schema as tenants see it: relations without the column that tells them apart.

Rules this module keeps:

* Objects are immutable snapshots; a new version of the schema is a new `VisibleSchema`.
* A snapshot is compared and hashed by identity, so that it can be part of a cache key for nothing.
* Names are as the catalogs hold them (what `relname`, `attname`, `proname`, `typname` say).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tenancy.data_isolation.engine.schema_snapshot import ColumnShape


@dataclass(frozen=True, kw_only=True, slots=True)
class VisibleRelation:
    """A table or view that tenants may name.

    `columns` are the visible ones, in the order of the relation, dropped ones left out.
    `primary_key` names its visible columns; a view has none.
    `hidden` says that the relation has `tenant_id` besides the visible columns.
    `view` says that it is a view: it has no indexes of its own.
    `runs_code` says that reading or changing it can run functions of the schema (triggers, rules,
    defaults, checks, generated columns, the view's own query, or the same in a table that is
    reached by a foreign key's action); a schema without functions has no such relation.
    `shapes` are the same columns with their types; empty where only the names are known.
    `apart` says that hybrid tenants keep it in a schema of their own.
    `acts_on` are the tables that the actions of foreign keys change when its rows are changed.
    """

    name: str
    columns: tuple[str, ...]
    primary_key: tuple[str, ...] = ()
    hidden: bool = True
    view: bool = False
    runs_code: bool = True
    shapes: tuple[ColumnShape, ...] = ()
    apart: bool = False
    acts_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VisibleSchema:
    """Everything of the schema that tenant SQL may name, at one version.

    `functions` must hold no function that is SECURITY DEFINER, and none that takes or returns the
    row type of a table, because that type has `tenant_id`. `types` are enumerations, domains,
    ranges and composite types, not the row types of relations.
    """

    relations: Mapping[str, VisibleRelation] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
