"""Compares schemas of tenants with what they should look like.

All schemas of a server are held against one reference, `tenancy_reference` in the shared database:
migrations go there first. The references in the databases of single tenants are copies of that
which migrations leave alone, so they may be older; nothing is held against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from tenancy.data_isolation.core.identifiers import RoleName, SchemaName, ServerName
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.layout import APP_SCHEMA, REFERENCE_SCHEMA
from tenancy.data_isolation.engine.lost_relations import Source, missing_keys, schema_roles
from tenancy.data_isolation.engine.roles import finding_of
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("shape_comparison.sql")
_OVERLAY_SQL = SqlFile("overlay.sql")
_CHECK: Final = "unlike_reference"
#: Of whom rows are gone.
_LOST_CHECK: Final = "placements"
_BACKUP: Final = "first look for a backup: the rows are lost"
_ANEW: Final = f"{_BACKUP}; where there is none, this makes it anew without rows"
_KEYS: Final = "then: tenancy doctor --mend, which puts back the keys that led to it"
#: Views, and what the runtime itself can put back without a loss.
_KINDS: Final = {"r": "table", "v": "view"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What the schemas of one server should look like."""

    #: The last migration that is in it.
    version: int
    #: Its traits, as `of_reference` gives them.
    traits: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A relation that a schema has lost, and the finding about that, without what mends it."""

    finding: Finding
    schema: SchemaName
    name: str
    #: Who works in the schema.
    roles: Sequence[RoleName]


async def read_reference(connection: asyncpg.Connection) -> Reference | None:
    """The reference of the server; `connection` is to its shared database. None: there is none yet.

    The caller knows that the tables of the runtime's own are plain ones (`own_tables`).
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        if not await connection.fetchval(_SQL.statement("has_reference")):
            return None
        return Reference(
            version=await schema_version(connection, REFERENCE_SCHEMA),
            traits=await connection.fetchval(
                _SQL.statement("traits") + _SQL.statement("of_reference"), [REFERENCE_SCHEMA]
            ),
        )


async def schema_version(connection: asyncpg.Connection, schema: SchemaName) -> int:
    """The last migration that is in a schema; 0 for none."""
    found: int = await connection.fetchval(_SQL.statement("version", schema=schema))
    return found


async def compare_with_reference(
    connection: asyncpg.Connection,
    schemas: Sequence[str],
    *,
    reference: Reference,
    server: ServerName,
) -> tuple[list[Finding], list[Loss]]:
    """In what `schemas`, which are at the reference's version, differ from it.

    Losses want their mends, which `with_remedies` has.
    """
    query = _SQL.statement("traits") + _SQL.statement("unlike_reference")
    rows = await connection.fetch(query, list(schemas), reference.traits)
    database = str(await connection.fetchval("select current_database()")) if rows else ""
    findings: list[Finding] = []
    losses: list[Loss] = []
    roles: dict[str, list[RoleName]] = {}
    for row in rows:
        finding = finding_of(row, check=_CHECK, server=server, database=database)
        if row["lost"] is None:
            findings.append(finding)
            continue
        schema = SchemaName(row["schema"])
        if schema not in roles:
            roles[schema] = await schema_roles(connection, schema)
        losses.append(Loss(finding=finding, schema=schema, name=row["lost"], roles=roles[schema]))
    return findings, losses


async def with_remedies(shared: asyncpg.Connection, losses: Sequence[Loss]) -> list[Finding]:
    """The findings of losses with what makes anew what was lost.

    `shared` is to the shared database of the server.
    """
    findings: list[Finding] = []
    if not losses:
        return findings
    lost = {(it.schema, it.name) for it in losses}
    async with shared.transaction(isolation="repeatable_read", readonly=True):
        source = await Source.read(shared, REFERENCE_SCHEMA)
        for loss in losses:
            relation = source.snapshot.relation(loss.name)
            if relation is not None and (loss.schema, relation.belongs_to) in lost:
                continue  # It comes with its table.
            remade = await source.remade(loss.name)
            if remade is None:
                findings.append(dataclasses.replace(loss.finding, advice=_BACKUP, by_hand=True))
                continue
            view = remade.relation.kind == "v"
            findings.append(
                dataclasses.replace(
                    loss.finding,
                    statements=remade.statements(loss.schema, loss.roles),
                    advice="" if view else _advice(remade.relation.kind),
                    by_hand=not view,
                )
            )
    return findings


async def compare_overlays(
    connection: asyncpg.Connection,
    *,
    server: ServerName,
    database: str,
    tenants: Mapping[int, str],
) -> list[Finding]:
    """What the schemas of hybrid tenants lack, and in what they differ from the shared one.

    `tenants` are the names of those that have one, by their number.
    """
    overlays = await connection.fetch(_OVERLAY_SQL.statement("overlays"))
    if not overlays:
        return []
    schemas = [SchemaName(row["schema"]) for row in overlays]
    names = {
        SchemaName(row["schema"]): tenants.get(row["tenant_no"], f"number {row['tenant_no']}")
        for row in overlays
    }
    unlike = await connection.fetch(_OVERLAY_SQL.statement("unlike"), APP_SCHEMA, schemas)
    found = await connection.fetch(_SQL.statement("relations"), schemas)
    there = {
        schema: {row["name"] for row in found if row["schema"] == schema} for schema in schemas
    }
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        source = await Source.read(connection, APP_SCHEMA)
        findings = []
        for schema in schemas:
            if there[schema]:  # Else the whole schema is gone, which is told elsewhere.
                findings += await _lost(source, schema, names[schema], there[schema])
        of_schema = {row["overlay"] for row in unlike}
        keys: dict[str, tuple[str, ...]] = {}
        for schema in schemas:
            if schema in of_schema:
                keys |= await missing_keys(source, schema)
    findings += [_different(row["overlay"], row["what"], keys) for row in unlike]
    return [dataclasses.replace(item, server=server, database=database) for item in findings]


async def _lost(source: Source, schema: SchemaName, tenant: str, there: set[str]) -> list[Finding]:
    """What every hybrid tenant has apart and this one has not, tables first."""
    findings = []
    for name in (*sorted(source.tables), *source.views):
        if name in there:
            continue
        remade = await source.remade(name, overlay=True)
        if remade is None:
            continue
        kind = remade.relation.kind
        rows = ", and the rows in it" if kind == "r" else ""
        roles = await schema_roles(source.connection, schema)
        findings.append(
            Finding(
                check=_LOST_CHECK,
                severity=Severity.BROKEN,
                server="",
                database="",
                subject=f"tenant {tenant}",
                problem=f"has lost its {_KINDS[kind]} {schema}.{name}{rows}: statements on it are "
                "refused",
                statements=remade.statements(schema, roles, behind=APP_SCHEMA),
                advice=_advice(kind) if kind == "r" else "",
                by_hand=kind == "r",
            )
        )
    return findings


def _different(schema: str, what: str, keys: Mapping[str, tuple[str, ...]]) -> Finding:
    kind, _, rest = what.partition(" ")
    constraint, _, table = rest.rpartition(" of ")
    statements: tuple[str, ...] = ()
    if kind == "constraint":
        statements = keys.get(f"{constraint} of table {schema}.{table}", ())
    return Finding(
        check=_CHECK,
        severity=Severity.BROKEN,
        server="",
        database="",
        subject=f"{what} in schema {schema}",
        problem=f"is not as in schema {APP_SCHEMA}",
        statements=statements,
        advice="" if statements else f"make it as it is in schema {APP_SCHEMA}",
        by_hand=not statements,
    )


def _advice(kind: str) -> str:
    if kind == "S":
        return (
            "first look for a backup; where there is none, this makes it anew, and its numbers "
            "begin anew: let it go on after the highest one that is used"
        )
    return f"{_ANEW}; {_KEYS}"
