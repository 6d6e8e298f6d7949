"""Looks at a whole installation: is everything as it must be?

`audit` is what every start does: what could let a tenant cross its boundary, on every server, in
the databases that all tenants share, by queries over all tenants at once.
`look` takes longer: it also enters the databases of single tenants, holds tables against the
reference and the catalog against what is there, checks passwords, and takes a fingerprint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import ServerUnavailableError, SetupError
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog_record import NOTHING, CatalogRecord, read_record
from tenancy.data_isolation.engine.drift import Fingerprint, Trait
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.installation import STEPS, installed_version, version_findings
from tenancy.data_isolation.engine.installed_functions import (
    CHECK as FUNCTIONS,
)
from tenancy.data_isolation.engine.installed_functions import (
    InstalledFunction,
    function_findings,
    release_functions,
    release_triggers,
)
from tenancy.data_isolation.engine.layout import (
    APP_SCHEMA,
    BINDING_SCHEMA,
    CATALOG_SCHEMA,
    HYBRID_ROLE,
    OWNER_ROLE,
    REFERENCE_SCHEMA,
    ROWS_ROLE,
    shared_database,
    template_database,
)
from tenancy.data_isolation.engine.leftovers import (
    Row,
    ServerContents,
    leftover_findings,
    unplaced_findings,
)
from tenancy.data_isolation.engine.login_limits import limit_texts
from tenancy.data_isolation.engine.move_traces import (
    KnownMoves,
    MoveTraces,
    move_findings,
    read_moves,
    read_traces,
    trace_findings,
)
from tenancy.data_isolation.engine.own_tables import own_table_findings
from tenancy.data_isolation.engine.password_audit import password_findings
from tenancy.data_isolation.engine.patch_level import patch_findings
from tenancy.data_isolation.engine.roles import audit_database, audit_server, runtime_roles
from tenancy.data_isolation.engine.server_audit import audit_access, audit_session, audit_settings
from tenancy.data_isolation.engine.server_look import ServerLook, not_reached
from tenancy.data_isolation.engine.shape_audit import audit_defaults, audit_shape
from tenancy.data_isolation.engine.shape_comparison import (
    Loss,
    Reference,
    compare_overlays,
    compare_with_reference,
    read_reference,
    schema_version,
    with_remedies,
)
from tenancy.data_isolation.engine.sql_files import SqlFile

_ROLES_SQL = SqlFile("roles.sql")
_LEFT_SQL = SqlFile("leftovers.sql")
_PRINT_SQL = SqlFile("fingerprint.sql")
#: What says whose an object is. Where an earlier release has set things up it is another's, and the
#: steps of this one change that.
_OWNERSHIP: Final = frozenset({FUNCTIONS, "relation_owners", "schema_owners"})
#: Databases of single tenants that are looked at at the same time.
_DATABASES_AT_ONCE = 4


class Inspection:
    """Reads, and changes nothing. Raises what the admin connections raise."""

    def __init__(
        self,
        *,
        settings: Settings,
        admin: AdminConnections,
    ) -> None:
        self._settings = settings
        self._admin = admin
        binding_steps, catalog_steps = (
            tuple((step.file.filename, step.statement) for step in STEPS[component])
            for component in (BINDING_SCHEMA, CATALOG_SCHEMA)
        )
        # What made the functions that must be there.
        self._binding = tuple(release_functions(binding_steps).values())
        self._catalog = tuple(release_functions(catalog_steps).values())
        self._triggers = release_triggers((*binding_steps, *catalog_steps))

    async def audit(self) -> list[Finding]:
        """Everything that could let a tenant cross its boundary, and what else is seen on the way.

        Raises `ServerUnavailableError`, and `SetupError` when a server refuses to be looked at.
        """
        findings: list[Finding] = []
        traces: list[MoveTraces] = []
        shared, begun_s = shared_database(self._settings), time.monotonic()
        for index, config in enumerate(self._admin.servers):
            server = ServerName(config.name)
            with _our_errors(server):
                findings += await self.audit_server(config)
                reference: Reference | None = None
                for name in (shared, template_database(self._settings)):
                    catalog = index == 0 and name == shared
                    start = _Start(is_shared=name == shared, reference=reference)
                    inside = await self._inside(server, name, catalog=catalog, start=start)
                    findings += inside.findings
                    reference = inside.reference
                    findings += await self._with_remedies(server, inside.losses)
                    traces += inside.traces
        if known := await self._moves(traces, begun_s):
            findings += trace_findings(traces, known, self._settings)
        return findings

    async def look(
        self, key: MasterKey, *, progress: Callable[[str], None] | None = None
    ) -> list[ServerLook]:
        """Everything about every server. Raises as `audit` does.

        That a server does not answer is a finding, unless it is the one that has the catalog.
        """
        looks = []
        for index, config in enumerate(self._admin.servers):
            server = ServerName(config.name)
            try:
                with _our_errors(server):
                    looks.append(await self._look(config, key, index == 0, progress or _silent))
            except ServerUnavailableError as error:
                if index == 0:
                    raise
                looks.append(not_reached(server, error))
        return looks

    async def audit_server(self, config: ServerConfig) -> list[Finding]:
        """What is wrong with one server and its roles."""
        server = ServerName(config.name)
        async with self._admin.session(server) as connection:
            return [
                *server_findings(connection, config, self._settings),
                *await audit_server(connection, settings=self._settings, server=server),
                *await audit_settings(connection, config=config, settings=self._settings),
                *await audit_session(connection, config=config),
                *await _access(connection, config),
            ]

    async def _look(
        self, config: ServerConfig, key: MasterKey, control: bool, progress: Callable[[str], None]
    ) -> ServerLook:
        server = ServerName(config.name)
        shared = shared_database(self._settings)
        progress(f"{server}: roles, settings and access")
        begun_s = time.monotonic()
        findings = await self.audit_server(config)
        databases = await self._databases(server)
        record = await self._recorded(server, control)
        known = record or NOTHING
        reference = await self._reference(server, known.newest)
        insides = await self._enter(server, databases, control, known, reference, progress)
        inside_findings = [item for inside in insides.values() for item in inside.findings]
        losses = [loss for inside in insides.values() for loss in inside.losses]
        inside_findings += await self._with_remedies(server, losses)
        if record is None or not all(inside.readable for inside in insides.values()):
            # What is in the tables is part of all that follows.
            findings += inside_findings
            return ServerLook(
                server=server, findings=tuple(findings), fingerprint=None, not_compared=0
            )
        progress(f"{server}: passwords and leftovers")
        async with self._admin.session(server, shared) as connection:
            logins = await runtime_roles(connection, databases)
            findings += await _passwords(connection, key, server, logins)
            contents = ServerContents(
                server=server,
                shared=shared,
                catalog_server=self._admin.servers[0].name,
                catalog=shared,
                databases=databases,
                logins=await _rows(connection, _LEFT_SQL, "logins", databases),
                schemas=[row["name"] for row in await _rows(connection, _LEFT_SQL, "schemas")],
                overlays=await _rows(connection, _LEFT_SQL, "overlays"),
                unused=record.unused,
                fences={
                    name: inside.fences
                    for name, inside in insides.items()
                    if inside.fences is not None
                },
            )
            traits = await _server_traits(connection, databases, logins)
        findings += inside_findings
        traces = [item for inside in insides.values() for item in inside.traces]
        # After all that they may have made; the record says that it is there to be read.
        moves = await self._moves(traces, begun_s) or KnownMoves()
        findings += trace_findings(traces, moves, self._settings)
        places = {(str(server), str(name)): rows for name, rows in contents.fences.items()}
        findings += move_findings(moves, places, self._settings)
        patience_s = self._settings.control_timeout_s
        findings += leftover_findings(contents, record.placements, moves, patience_s=patience_s)
        findings += unplaced_findings(server, shared, record.unplaced, patience_s=patience_s)
        return ServerLook(
            server=server,
            findings=tuple(findings),
            not_compared=sum(not inside.compared for inside in insides.values()),
            fingerprint=self._fingerprint(server, record, moves, insides, traits),
        )

    def _fingerprint(
        self,
        server: ServerName,
        record: CatalogRecord,
        moves: KnownMoves,
        insides: Mapping[DatabaseName, _Inside],
        traits: Mapping[str, Trait],
    ) -> Fingerprint:
        """What it looks like now; `traits` are those of the server itself."""
        traits, versions = dict(traits), dict(record.versions)
        for inside in insides.values():
            traits |= inside.traits
            versions |= inside.versions
        return Fingerprint(
            traits=traits,
            versions=versions,
            unseen=frozenset(name for name, inside in insides.items() if inside.fences is None),
            tenants=record.names,
            moving=moves.names(server) - self._fixed_names(),
            taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
            limits=self._limits(record.placements),
        )

    async def _enter(
        self,
        server: ServerName,
        databases: Sequence[DatabaseName],
        control: bool,
        record: CatalogRecord,
        reference: Reference | None,
        progress: Callable[[str], None],
    ) -> dict[DatabaseName, _Inside]:
        turns = asyncio.Semaphore(_DATABASES_AT_ONCE)
        done = 0

        async def one(name: DatabaseName) -> _Inside:
            nonlocal done
            catalog = control and name == shared_database(self._settings)
            async with turns:
                try:
                    inside = await self._inside(
                        server,
                        name,
                        catalog=catalog,
                        whole=_Whole(
                            schemas=record.current.get(name, ()),
                            reference=reference,
                            tenants=record.tenants,
                        ),
                    )
                except ServerUnavailableError as error:
                    if name in self._fixed():
                        raise
                    inside = _closed(server, name, error)
            done += 1
            progress(f"{server}: {done} of {len(databases)} databases")
            return inside

        outcomes = await asyncio.gather(*map(one, databases), return_exceptions=True)
        found: dict[DatabaseName, _Inside] = {}
        for name, outcome in zip(databases, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            found[name] = outcome
        return found

    async def _inside(
        self,
        server: ServerName,
        database: DatabaseName,
        *,
        catalog: bool,
        start: _Start | None = None,
        whole: _Whole | None = None,
    ) -> _Inside:
        """One database, as every start looks at it or as a whole look does."""
        async with self._admin.session(server, database) as connection:
            replaced = await own_table_findings(connection, server=server)
            findings = [
                *replaced,
                # First to be mended, because mends are run by one of them.
                *await function_findings(
                    connection,
                    server=server,
                    database=database,
                    expected=self._functions(catalog),
                ),
                *await audit_database(connection, server=server),
                *await audit_shape(connection, triggers=self._triggers, server=server),
            ]
            if not replaced:
                behind = await version_findings(
                    connection,
                    server=server,
                    database=database,
                    components=(BINDING_SCHEMA, *([CATALOG_SCHEMA] if catalog else [])),
                    # The start that finds one of these brings it there; single tenants' wait.
                    severity=Severity.UNSAFE if database in self._fixed() else Severity.BROKEN,
                )
                if behind:
                    findings = [item for item in findings if item.check not in _OWNERSHIP]
                findings = [*behind, *findings]
            if replaced:
                return _Inside(findings=findings, readable=False)
            traces = await read_traces(connection, server=server, database=database)
            if start is not None:
                return await self._compared_at_start(connection, server, findings, start, traces)
            if whole is None:
                return _Inside(findings=findings, traces=(traces,))
            findings += await audit_defaults(connection, server=server)
            findings += await compare_overlays(
                connection, server=server, database=database, tenants=whole.tenants
            )
            unlike, losses = await _compared(connection, server, whole.schemas, whole.reference)
            findings += unlike
            rows = await _rows(connection, _PRINT_SQL, "database_traits")
            versions = {
                f"{database}/{component}": await installed_version(connection, component)
                for component in (BINDING_SCHEMA, *([CATALOG_SCHEMA] if catalog else []))
            }
            fences = await _rows(connection, _LEFT_SQL, "fences")
        return _Inside(
            findings=findings,
            losses=losses,
            fences=fences,
            traits=_traits(rows, database),
            versions=versions,
            traces=(traces,),
            compared=not whole.schemas or whole.reference is not None,
        )

    async def _compared_at_start(
        self,
        connection: asyncpg.Connection,
        server: ServerName,
        findings: Sequence[Finding],
        start: _Start,
        traces: MoveTraces,
    ) -> _Inside:
        """With the comparison of what all tenants share and of what new ones are made from.

        However many tenants there are, it takes the same time. A schema at another version is about
        to be brought to the reference's.
        """
        reference, schemas = start.reference, [APP_SCHEMA, REFERENCE_SCHEMA]
        if start.is_shared:
            reference, schemas = await read_reference(connection), [APP_SCHEMA]
        if reference is None:
            return _Inside(findings=findings, traces=(traces,))
        same = [
            schema
            for schema in schemas
            if await schema_version(connection, schema) == reference.version
        ]
        unlike, losses = await _compared(connection, server, same, reference)
        return _Inside(
            findings=[*findings, *unlike], losses=losses, reference=reference, traces=(traces,)
        )

    async def _reference(self, server: ServerName, newest: int) -> Reference | None:
        """The server's reference; None when it is at another version, or is not to be read."""
        async with self._admin.session(server, shared_database(self._settings)) as connection:
            if await own_table_findings(connection, server=server):
                return None
            found = await read_reference(connection)
        return found if found is not None and found.version == newest else None

    async def _with_remedies(self, server: ServerName, losses: Sequence[Loss]) -> list[Finding]:
        if not losses:
            return []
        async with self._admin.session(server, shared_database(self._settings)) as connection:
            return await with_remedies(connection, losses)

    async def _databases(self, server: ServerName) -> list[DatabaseName]:
        """The databases of ours on a server: the shared one, the template, and tenants' own."""
        fixed = self._fixed()
        async with self._admin.session(server) as connection:
            rows = await connection.fetch(
                _ROLES_SQL.statement("databases_of_ours"), fixed, OWNER_ROLE
            )
        own = [DatabaseName(row["datname"]) for row in rows if row["datname"] not in fixed]
        return [*fixed, *own]

    async def _recorded(self, server: ServerName, control: bool) -> CatalogRecord | None:
        """What the catalog says of a server; None when it is not to be read."""
        first = ServerName(self._admin.servers[0].name)
        async with self._admin.session(first, shared_database(self._settings)) as connection:
            if await own_table_findings(connection, server=first):
                return None
            return await read_record(connection, server, first=control, shared=self._fixed_names())

    async def _moves(self, traces: Sequence[MoveTraces], begun_s: float) -> KnownMoves | None:
        """What the catalog says of moves after the traces were read; None: it is not to be read."""
        first = ServerName(self._admin.servers[0].name)
        async with self._admin.session(first, shared_database(self._settings)) as connection:
            if await own_table_findings(connection, server=first):
                return None
            # What changed during the look may have been otherwise when it was looked at.
            patience_s = self._settings.control_timeout_s + time.monotonic() - begun_s
            return await read_moves(connection, traces, patience_s=patience_s)

    def _limits(self, placements: Sequence[Row]) -> dict[str, frozenset[str]]:
        """What limits logins have by the settings; the shared one has the widest."""
        tiers = self._settings.tier_limits
        of_types = {kind.value: limit_texts(tiers.of(kind)) for kind in TenantType}
        found = {row["role"]: of_types[row["tenant_type"]] for row in placements}
        return found | {ROWS_ROLE: limit_texts(tiers.widest)}

    def _fixed(self) -> list[DatabaseName]:
        return [shared_database(self._settings), template_database(self._settings)]

    def _fixed_names(self) -> frozenset[str]:
        return frozenset({shared_database(self._settings), APP_SCHEMA, ROWS_ROLE})

    def _functions(self, catalog: bool) -> tuple[InstalledFunction, ...]:
        return (*self._binding, *self._catalog) if catalog else self._binding


def server_findings(
    connection: asyncpg.Connection, config: ServerConfig, settings: Settings
) -> list[Finding]:
    """What is wrong with the release of the server that `connection` is to."""
    version = connection.get_server_version()
    return list(
        patch_findings(
            server=config.name,
            version_num=version.major * 10_000 + version.micro,
            today=datetime.now(UTC).date(),
            settings=settings,
        )
    )


def unsafe(findings: Sequence[Finding]) -> list[Finding]:
    """Those that nothing may be started on."""
    return [finding for finding in findings if finding.severity is Severity.UNSAFE]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """How a start looks at a database."""

    is_shared: bool
    #: The server's; it is in the shared database, and read there.
    reference: Reference | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Whole:
    """How a whole look looks at a database."""

    #: Schemas that are at the reference's version.
    schemas: Sequence[str]
    reference: Reference | None
    tenants: Mapping[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inside:
    """One database."""

    findings: Sequence[Finding]
    #: What schemas have lost; they become findings with what the shared database knows.
    losses: Sequence[Loss] = ()
    reference: Reference | None = None
    #: None when nobody has looked.
    fences: Sequence[Row] | None = ()
    traits: Mapping[str, Trait] = field(default_factory=dict)
    #: `database/schema` → the version of the runtime's own schema.
    versions: Mapping[str, int] = field(default_factory=dict)
    #: Whether its tables were held against a reference.
    compared: bool = True
    #: Whether the tables of the runtime's own are plain ones, so that they were read.
    readable: bool = True
    #: What there is of moves, where it was looked at.
    traces: Sequence[MoveTraces] = ()


async def _compared(
    connection: asyncpg.Connection,
    server: ServerName,
    schemas: Sequence[str],
    reference: Reference | None,
) -> tuple[list[Finding], list[Loss]]:
    if reference is None or not schemas:
        return [], []
    return await compare_with_reference(connection, schemas, reference=reference, server=server)


def _closed(server: ServerName, database: DatabaseName, error: ServerUnavailableError) -> _Inside:
    """A database of a single tenant that lets nobody in."""
    finding = Finding(
        check="reachable",
        severity=Severity.BROKEN,
        server=server,
        database=database,
        subject=f"database {database}",
        problem=f"cannot be entered: {error.detail}",
        advice="let the admin in again, then look again: what is in it was not looked at",
        by_hand=True,
    )
    return _Inside(findings=[finding], fences=None, compared=False)


async def _rows(
    connection: asyncpg.Connection, file: SqlFile, name: str, *values: object
) -> list[Row]:
    return [dict(row) for row in await connection.fetch(file.statement(name), *values)]


async def _server_traits(
    connection: asyncpg.Connection, databases: Sequence[str], logins: Sequence[str]
) -> dict[str, Trait]:
    rows = await _rows(connection, _PRINT_SQL, "server_traits", databases, logins)
    with suppress(asyncpg.InsufficientPrivilegeError):
        rows += await _rows(connection, _PRINT_SQL, "access_traits")
    return _traits(rows, "")


def _traits(rows: Sequence[Row], database: str) -> dict[str, Trait]:
    place = f"{database}: " if database else ""
    return {
        f"{place}{row['kind']} {row['name']}": Trait(
            value=row["value"] or "", database=database, space=row["space"]
        )
        for row in rows
    }


async def _passwords(
    connection: asyncpg.Connection, key: MasterKey, server: ServerName, logins: Sequence[str]
) -> list[Finding]:
    able = [role for role in logins if role != HYBRID_ROLE]
    try:
        return await password_findings(connection, key=key, server=server, roles=able)
    except asyncpg.InsufficientPrivilegeError:
        return []  # For superusers alone to see.


@contextmanager
def _our_errors(server: ServerName) -> Iterator[None]:
    """Let no error of the driver out."""
    try:
        yield
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise ServerUnavailableError(
            f"server {server!r} went away while it was looked at"
        ) from error
    except asyncpg.PostgresError as error:
        text = f"server {server!r} cannot be looked at: {error}"
        raise SetupError(text, error.sqlstate) from error


def _silent(_: str) -> None:
    pass


async def _access(connection: asyncpg.Connection, config: ServerConfig) -> list[Finding]:
    try:
        return await audit_access(connection, config=config)
    except asyncpg.InsufficientPrivilegeError:
        return []  # The file is its administrator's to look at.
