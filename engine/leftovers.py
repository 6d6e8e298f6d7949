"""What the catalog says, held against what is there.

Objects that no tenant has any more, tenants whose objects are gone, fences that do not fit, and
tenants that were never quite made or removed. Pure: rows in, findings out.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenancy.data_isolation.core.identifiers import quote_literal
from tenancy.data_isolation.core.types import IsolationLevel, TenantStatus
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.move_traces import KnownMoves
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("leftovers.sql")

#: A row of a query of `sql/leftovers.sql`.
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerContents:
    """What there is on one server."""

    server: str
    #: The shared database, which has the own schemas; the first server's has the catalog.
    shared: str
    #: The first server and its shared database, which has the catalog.
    catalog_server: str
    catalog: str
    databases: Collection[str]
    logins: Iterable[Row]
    schemas: Collection[str]
    overlays: Iterable[Row]
    #: Schemas that the catalog has as some tenant's own, and no tenant works in.
    unused: Iterable[tuple[str, str]] = ()
    #: By database; of databases that were not entered there is no entry.
    fences: Mapping[str, Iterable[Row]] = field(default_factory=dict)


def leftover_findings(
    contents: ServerContents, placements: Iterable[Row], moves: KnownMoves, *, patience_s: float
) -> Iterator[Finding]:
    """Everything that does not fit. What changed within `patience_s` may still be at work.

    What `moves` have on their other side is nobody's orphan, and their tenants' fences are theirs.
    """
    placed = list(placements)
    settled = [row for row in placed if row["age_s"] > patience_s]
    yield from _half_way(contents, settled)
    yield from _missing(contents, [row for row in settled if _is_whole(row)])
    yield from _orphans(contents, placed, moves)
    yield from _fences(contents, placed, moves, patience_s)


def unplaced_findings(
    server: str, catalog: str, rows: Iterable[Row], *, patience_s: float
) -> Iterator[Finding]:
    """Tenants without a place for longer than `patience_s`."""
    for row in rows:
        if row["age_s"] > patience_s:
            yield _half(server, catalog, row)


def create_command(row: Row) -> str:
    """The command that finishes making a tenant."""
    words = ["tenancy", "tenant", "create", row["tenant_id"], "--type", row["tenant_type"]]
    # A hybrid tenant is chosen by the rules, from what its metadata say.
    if row.get("level") and not row.get("sensitive_schema"):
        words += ["--level", row["level"]]
    if row["region"]:
        words += ["--region", row["region"]]
    for regime in row["compliance"]:
        words += ["--compliance", regime]
    if row["metadata"] != "{}":
        words += ["--metadata", row["metadata"]]
    return shlex.join(words)


def _is_whole(row: Row) -> bool:
    return row["status"] in (TenantStatus.ACTIVE, TenantStatus.SUSPENDED)


def _half_way(contents: ServerContents, rows: Iterable[Row]) -> Iterator[Finding]:
    for row in rows:
        if not _is_whole(row):
            yield _half(contents.catalog_server, contents.catalog, row)


def _half(server: str, catalog: str, row: Row) -> Finding:
    making = row["status"] == TenantStatus.CREATING
    erase = f"tenancy tenant erase {row['tenant_id']} --yes"
    return Finding(
        check="half_way",
        severity=Severity.BROKEN,
        server=server,
        database=catalog,
        subject=f"tenant {row['tenant_id']}",
        problem=f"has been {row['status']} for {row['age_s'] / 60:.0f} minutes",
        advice=f"{create_command(row)}; or {erase}" if making else erase,
        by_hand=True,
    )


def _missing(contents: ServerContents, rows: Iterable[Row]) -> Iterator[Finding]:
    logins = {row["name"]: row for row in contents.logins}
    overlays = {row["tenant_no"]: row["schema"] for row in contents.overlays}
    for row in rows:
        own_login = row["level"] != IsolationLevel.ROW or row["sensitive_schema"]
        if own_login and row["role"] not in logins:
            yield _gone(contents, row, f"role {row['role']}")
        elif own_login:
            yield from _kept_out(contents, row, logins[row["role"]])
        if row["database"] not in contents.databases:
            yield _gone(contents, row, f"database {row['database']}", data=True)
        own = row["sensitive_schema"] or (
            row["schema"] if row["level"] == IsolationLevel.SCHEMA else None
        )
        if own is not None and own not in contents.schemas:
            yield _gone(contents, row, f"schema {own}", data=True)
        elif row["sensitive_schema"] and overlays.get(row["tenant_no"]) != own:
            yield _gone(contents, row, f"entry for schema {own} in tenancy.overlay")


def _kept_out(contents: ServerContents, row: Row, login: Row) -> Iterator[Finding]:
    """A tenant's own login that is there and does not get in."""
    role, database = row["role"], row["database"]

    def finding(problem: str, statement: str) -> Finding:
        return Finding(
            check="placements",
            severity=Severity.BROKEN,
            server=contents.server,
            database=contents.shared,
            subject=f"tenant {row['tenant_id']}",
            problem=f"has the role {role}, which may not {problem}",
            statements=(statement,),
        )

    if not login["may_log_in"]:
        yield finding("log in", _named("allow_login", role=role))
    # Those of hybrid tenants have the right by their group.
    hybrid = row["sensitive_schema"] is not None
    if not hybrid and database in contents.databases and database not in login["connects_to"]:
        text = _named("allow_connect", database=database, role=role)
        yield finding(f"connect to database {database}", text)


def _gone(contents: ServerContents, row: Row, what: str, *, data: bool = False) -> Finding:
    """Something of a tenant is not there; making the tenant once more makes it."""
    command = create_command(row)
    return Finding(
        check="placements",
        severity=Severity.BROKEN,
        server=contents.catalog_server,
        database=contents.catalog,
        subject=f"tenant {row['tenant_id']}",
        problem=f"has lost its {what}{', and the rows in it' if data else ''}",
        statements=(_text("make_again", row["tenant_no"]),),
        advice=f"then: {command}, which makes it{' empty' if data else ''} anew"
        + ("; first look for a backup" if data else ""),
        by_hand=True,
    )


def _orphans(
    contents: ServerContents, placed: Iterable[Row], moves: KnownMoves
) -> Iterator[Finding]:
    """Objects with names of ours that no tenant has."""
    rows = list(placed)
    moving = moves.names(contents.server)
    known = {*moving, *(row["role"] for row in rows)}
    databases = {contents.shared, f"{contents.shared}_template", *moving}
    databases |= {row["database"] for row in rows}
    schemas = {name for row in rows for name in (row["schema"], row["sensitive_schema"])}

    def orphan(subject: str, *statements: str, by_hand: bool = True) -> Finding:
        return Finding(
            check="orphans",
            severity=Severity.WARNING,
            server=contents.server,
            database=contents.shared,
            subject=subject,
            problem="belongs to no tenant of this installation",
            statements=statements,
            by_hand=by_hand,
        )

    for login in contents.logins:
        if login["has_rights"] and login["name"] not in known:
            role = login["name"]
            statements = (_named("drop_owned", role=role), _named("drop_role", role=role))
            yield orphan(f"role {role}", *statements)
    for name in sorted(set(contents.schemas) - schemas - moving - {"app"}):
        yield orphan(f"schema {name}", _named("drop_schema", schema=name))
    for name in sorted(set(contents.databases) - databases):
        yield orphan(f"database {name}", _named("drop_database", database=name))
    for database, schema in contents.unused:
        there = database in contents.databases and (
            database != contents.shared or schema in contents.schemas
        )
        if not there and schema not in moving:
            yield _unused(contents, database, schema)
    hybrid = {row["tenant_no"]: row["sensitive_schema"] for row in rows}
    for overlay in contents.overlays:
        number = overlay["tenant_no"]
        if hybrid.get(number) != overlay["schema"]:
            text = _text("forget_overlay", number)
            yield orphan(f"overlay of tenant number {number}", text)


def _unused(contents: ServerContents, database: str, schema: str) -> Finding:
    """The catalog's record of a schema that is not there and that nobody wants."""
    names = (contents.server, database, schema)
    return Finding(
        check="orphans",
        severity=Severity.WARNING,
        server=contents.catalog_server,
        database=contents.catalog,
        subject=f"entry for schema {schema} of database {database} in catalog.namespace",
        problem=f"is of no tenant, and server {contents.server} has no such schema",
        statements=(_text("forget_namespace", *(quote_literal(name) for name in names)),),
    )


def _fences(
    contents: ServerContents, placed: Iterable[Row], moves: KnownMoves, patience_s: float
) -> Iterator[Finding]:
    unsure = moves.unsure()
    homes: dict[str, dict[int, Row]] = {database: {} for database in contents.fences}
    for row in placed:
        if row["database"] in homes:
            homes[row["database"]][row["tenant_no"]] = row
    for database, rows in contents.fences.items():
        fences = {row["tenant_no"]: row for row in rows}
        tenants = homes[database]
        for number, row in tenants.items():
            if number not in unsure and _is_whole(row) and row["age_s"] > patience_s:
                yield from _fence(contents, database, row, fences.get(number))
        moving = {move.tenant_no for move in moves.at_work if move.is_at(contents.server, database)}
        for number in sorted(set(fences) - set(tenants) - moving):
            yield _fence_finding(
                contents,
                database,
                f"fence of tenant number {number}",
                "belongs to no tenant that is here",
                _text("remove_fence", number),
                severity=Severity.WARNING,
            )


def _fence(
    contents: ServerContents, database: str, row: Row, fence: Row | None
) -> Iterator[Finding]:
    number, epoch = row["tenant_no"], row["epoch"]
    subject = f"fence of tenant {row['tenant_id']}"
    active = row["status"] == TenantStatus.ACTIVE
    if fence is None:
        text = _text("add_fence", number, epoch, active)
        yield _fence_finding(contents, database, subject, "is missing", text)
    elif active and fence["epoch"] < epoch:
        text = _text("raise_fence", number, epoch)
        yield _fence_finding(contents, database, subject, "is behind the tenant's epoch", text)
    elif active and fence["epoch"] > epoch:
        text = _text("raise_placement", number, fence["epoch"])
        problem = "is ahead of the tenant's epoch"
        finding = _fence_finding(contents, contents.catalog, subject, problem, text)
        yield dataclasses.replace(finding, server=contents.catalog_server)
    elif active and not fence["open"]:
        text = _text("open_fence", number)
        problem = "is closed, and the tenant is active"
        yield _fence_finding(contents, database, subject, problem, text, by_hand=True)
    elif not active and fence["open"]:
        text = _text("close_fence", number)
        yield _fence_finding(contents, database, subject, "is open, though it is suspended", text)


def _fence_finding(
    contents: ServerContents,
    database: str,
    subject: str,
    problem: str,
    statement: str,
    *,
    severity: Severity = Severity.BROKEN,
    by_hand: bool = False,
) -> Finding:
    return Finding(
        check="fences",
        severity=severity,
        server=contents.server,
        database=database,
        subject=subject,
        problem=problem,
        statements=(statement,),
        by_hand=by_hand,
    )


def _text(name: str, *numbers: int | bool | str) -> str:
    """A mend of a table of the keeper's, with its numbers and literals in their places."""
    text: str = _SQL.statement(name)
    for place, number in enumerate(numbers, start=1):
        literal = number if isinstance(number, str) else str(number).lower()
        text = text.replace(f"${place}", literal)
    return text.rstrip(";")


def _named(name: str, **identifiers: str) -> str:
    """A mend with its names in their places, quoted."""
    return _SQL.statement(name, **identifiers).rstrip(";")
