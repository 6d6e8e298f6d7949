"""What the catalog says of one server, as an inspection holds it against what is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.leftovers import Row
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("leftovers.sql")


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogRecord:
    """What the catalog says of one server."""

    placements: Sequence[Row]
    unplaced: Sequence[Row]
    #: Schemas that are recorded as a tenant's own, and are no tenant's place: (database, schema).
    unused: Sequence[tuple[str, str]]
    #: Database → its schemas that are at the newest version.
    current: Mapping[str, Sequence[str]]
    newest: int
    versions: Mapping[str, int]
    names: frozenset[str]

    @property
    def tenants(self) -> Mapping[int, str]:
        """The names of hybrid tenants, by their number."""
        return {
            row["tenant_no"]: row["tenant_id"] for row in self.placements if row["sensitive_schema"]
        }


NOTHING: Final = CatalogRecord(
    placements=(),
    unplaced=(),
    unused=(),
    current={},
    newest=0,
    versions={},
    names=frozenset(),
)


async def read_record(
    control: asyncpg.Connection, server: ServerName, *, first: bool, shared: Collection[str]
) -> CatalogRecord:
    """What the catalog, whose tables the caller knows to be plain ones, says of a server.

    With the tenants that have no place, of the `first` one; names that all tenants share are no
    tenant's.
    """
    placements = await _rows(control, "placements", server)
    unplaced = await _rows(control, "unplaced") if first else []
    namespaces = await _rows(control, "namespaces", server)
    current: dict[str, list[str]] = {}
    for row in namespaces:
        if row["current"]:
            current.setdefault(row["database"], []).append(row["schema"])
    return CatalogRecord(
        placements=placements,
        unplaced=unplaced,
        unused=[
            (row["database"], row["schema"])
            for row in namespaces
            if row["kind"] == "own" and not row["placed"]
        ],
        current=current,
        newest=max((row["newest"] for row in namespaces), default=0),
        versions={f"{row['database']}/{row['schema']}": row["version"] for row in namespaces},
        names=frozenset(
            name
            for row in placements
            for name in (row["role"], row["schema"], row["database"], row["sensitive_schema"])
            if name is not None and name not in shared
        ),
    )


async def _rows(control: asyncpg.Connection, name: str, *values: object) -> list[Row]:
    return [dict(row) for row in await control.fetch(_SQL.statement(name), *values)]
