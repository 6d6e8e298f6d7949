"""What `tenancy doctor` asks of servers, and how it mends and accepts what it finds.

It asks the servers of the runtime that runs, or the one that `TENANCY_POSTGRES_DSN` names, or the
embedded one, which it starts for as long as it looks: after a start that was refused there is no
other way to see why, or to mend it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from tenancy.data_isolation.actors.configuration import configuration_path, read_configuration
from tenancy.data_isolation.core import EngineConfig, ServerConfig, Settings, TenancyError
from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import SettingError, SetupError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.core.servers_file import all_servers
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.drift import CHECK as DRIFT
from tenancy.data_isolation.engine.drift import (
    Change,
    DriftFile,
    Fingerprint,
    Record,
    compared,
    completed,
    drift_findings,
)
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.installed_functions import CHECK as FUNCTIONS
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.engine.mending import can_mend, mend
from tenancy.data_isolation.engine.move_rescue import carry_on
from tenancy.data_isolation.engine.move_traces import STRANDED
from tenancy.data_isolation.engine.patch_level import patch_level_told
from tenancy.data_isolation.engine.server_facts import ServerFacts, read_facts
from tenancy.data_isolation.engine.server_look import ServerLook
from tenancy.data_isolation.serve.check import Check, failed, fine, found, warned
from tenancy.data_isolation.serve.replicas_file import replicas
from tenancy.data_isolation.serve.runtime_state import RuntimeDirectory

_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 30.0
_NOT_BOUND: Final = "TN001"
#: What is mended can show what was hidden.
_ROUNDS_MAX: Final = 3

#: Areas of checks in the order in which they are told, the checks of each, and what a sound one
#: says.
_AREAS: Final[Sequence[tuple[str, frozenset[str], str]]] = (
    ("release", frozenset({"patch_level"}), ""),
    (
        "settings",
        frozenset({"settings", "connections", "database_settings"}),
        "none that is dangerous",
    ),
    ("access", frozenset({"access_rules"}), "no line of pg_hba.conf lets in too easily"),
    ("tls", frozenset({"tls"}), "sessions cannot be overheard"),
    (
        "roles",
        frozenset(
            {
                "attributes",
                "memberships",
                "ownership",
                "role_settings",
                "login_limits",
                "passwords",
                "database_rights",
                "parameter_rights",
            }
        ),
        "no role has a right that would let a tenant cross its boundary",
    ),
    (
        "policies",
        frozenset({"policies", "row_security", "exempt_relations", "rules"}),
        "every table of tenants is filtered by its tenant, for its owner as well",
    ),
    (
        "functions",
        frozenset(
            {
                "functions",
                "installation",
                "definer_functions",
                "hidden_rights",
                "own_triggers",
                "move_triggers",
                "own_tables",
            }
        ),
        "the runtime's are as this release made them, and none runs with other rights",
    ),
    (
        "tables",
        frozenset(
            {
                "tenant_columns",
                "tenant_defaults",
                "foreign_keys",
                "keys",
                "inheritance",
                "unlike_reference",
            }
        ),
        "all are scoped, and like their reference",
    ),
    (
        "ways out",
        frozenset(
            {
                "foreign_access",
                "large_objects",
                "extensions",
                "event_triggers",
                "replication",
                "idle_slots",
            }
        ),
        "no extension, replication or foreign server in the databases",
    ),
    (
        "leftovers",
        frozenset(
            {
                "half_way",
                "placements",
                "orphans",
                "fences",
                "reachable",
                "moves",
                "stranded_moves",
            }
        ),
        "every tenant of the catalog is there, and nothing else is but what moves need",
    ),
    ("drift", frozenset({"drift"}), ""),
)
#: Check, server, database, subject and problem of a finding.
_Identity: TypeAlias = tuple[str, str, str, str, str]
#: Everything else is about rights.
_RIGHTS: Final = ("rights", "nobody has a right that he has no use for")


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorOptions:
    """What to do besides looking."""

    #: Take what is there now as the state to compare with from now on.
    accept: bool = False
    #: Carry out the mends that SQL can and no person has to decide; asks with the findings.
    mend: Callable[[Sequence[Finding]], bool] | None = None
    #: Told what is being looked at.
    progress: Callable[[str], None] | None = None


async def check_servers(
    settings: Settings, options: DoctorOptions | None = None
) -> AsyncIterator[Check]:
    """What has to be asked of PostgreSQL."""
    options = options or DoctorOptions()
    async with AsyncExitStack() as stack:
        try:
            config = await _engine_config(settings, options, stack)
            if config is None:
                yield fine("servers", "nothing runs, so they were not looked at")
                return
            config, wrong = _with_replicas(config)
            if wrong is not None:
                yield wrong
            examination = await _Examination.begin(config, options, stack)
            async for check in examination.checks():
                yield check
        except TenancyError as error:
            yield failed("servers", error.detail, "see that the server runs, then `tenancy up`")


async def _engine_config(
    settings: Settings, options: DoctorOptions, stack: AsyncExitStack
) -> EngineConfig | None:
    """What to look at: what the runtime works on, the user's own server, or the embedded one."""
    directory = RuntimeDirectory(settings.home)
    if directory.is_alive():
        path = configuration_path(settings)
        if not path.exists():
            return None
        read = read_configuration(path)
        return EngineConfig(servers=read.servers, settings=read.settings)
    server = settings.postgres_server()
    if server is not None:
        return EngineConfig(servers=all_servers(settings, server), settings=settings)
    if not (settings.home / "postgres" / "data" / "PG_VERSION").exists():
        return None
    # A daemon that starts meanwhile would find its server ended under it.
    directory.prepare()
    if not directory.lock.try_take():
        raise SetupError("another process is starting the runtime; look again in a minute")
    stack.callback(directory.lock.release)
    if options.progress is not None:
        options.progress("starting the embedded PostgreSQL for as long as it is looked at")
    embedded = EmbeddedPostgres(settings)
    stack.push_async_callback(embedded.stop)
    handle = await embedded.start()
    servers = all_servers(settings, handle.server_config())
    return EngineConfig(servers=servers, settings=settings)


def _with_replicas(config: EngineConfig) -> tuple[EngineConfig, Check | None]:
    """The configuration with as many processes that answer HTTP as there can be.

    Each has connections of its own. What is wrong with the file that says it is told as well.
    """
    settings = config.resolved_settings()
    try:
        most = replicas(settings).most
    except SettingError as error:
        return config, failed("replicas", error.detail, "correct the file, then `tenancy up`")
    counted = dataclasses.replace(settings, http_replicas=most)
    return dataclasses.replace(config, settings=counted), None


class _Examination:
    """One run over all servers."""

    def __init__(
        self,
        config: EngineConfig,
        settings: Settings,
        admin: AdminConnections,
        key: MasterKey,
        options: DoctorOptions,
    ) -> None:
        self._config = config
        self._settings = settings
        self._admin = admin
        self._key = key
        self._options = options
        self._inspection = inspection_of(settings, admin)

    @classmethod
    async def begin(
        cls, config: EngineConfig, options: DoctorOptions, stack: AsyncExitStack
    ) -> _Examination:
        settings = config.resolved_settings()
        servers = tuple(item for item in config.servers if isinstance(item, ServerConfig))
        admin = AdminConnections(settings=settings, servers=servers, keep_warm=True)
        stack.push_async_callback(admin.close)
        return cls(config, settings, admin, await master_key(settings), options)

    async def checks(self) -> AsyncIterator[Check]:
        looks = await self._inspection.look(self._key, progress=self._options.progress)
        if self._options.mend is not None:
            async for check in self._mended(looks):
                yield check
            looks = await self._inspection.look(self._key, progress=self._options.progress)
        for look in looks:
            if not look.reached:
                for finding in look.findings:
                    yield found(f"servers {look.server}", finding)
                continue
            facts = await self._facts(look.server)
            for check in self._of_server(look, facts, alone=len(looks) == 1):
                yield check
        for clock in [await self._clock(look.server) for look in looks if look.reached]:
            yield clock
        if all(map(_is_ours, looks)):
            async for check in self._of_engine():
                yield check

    # What was found

    def _of_server(self, look: ServerLook, facts: ServerFacts, *, alone: bool) -> Iterator[Check]:
        suffix = "" if alone else f" {look.server}"
        drift, told = self._drift(look)
        findings = [*look.findings, *drift]
        areas = {name: area for area, names, _ in _AREAS for name in names}
        by_area: dict[str, list[Finding]] = {}
        for finding in findings:
            by_area.setdefault(areas.get(finding.check, _RIGHTS[0]), []).append(finding)
        sound = {area: text for area, _, text in _AREAS} | dict([_RIGHTS])
        sound["release"] = patch_level_told(facts.version_num)
        sound["drift"] = told
        if not facts.superuser:
            sound["access"] = "pg_hba.conf is for superusers to read, and was not looked at"
            sound["roles"] += "; passwords are for superusers to read, and were not looked at"
        if look.not_compared:
            sound["tables"] += (
                f"; {look.not_compared} databases were not compared: the reference is behind"
            )
        for area, text in sound.items():
            of_area = by_area.get(area, [])
            yield from (found(f"{area}{suffix}", finding) for finding in of_area)
            if not of_area:
                yield fine(f"{area}{suffix}", text)

    def _drift(self, look: ServerLook) -> tuple[list[Finding], str]:
        """What changed since the last time, and what to say when nothing did."""
        file = DriftFile(self._settings.home, look.server, self._key)
        now = look.fingerprint
        if now is None:
            return [], "not looked at, because tables of the runtime's own cannot be read"
        fresh = Record(accepted=now, looked_at=now.taken_at)
        try:
            record = file.read()
        except SetupError as error:
            if not self._options.accept:
                return [_spoilt(look.server, error)], ""
            record = None
        if record is None:
            file.write(fresh)
            return [], f"the first look: {len(now.traits)} objects noted to compare with"
        kept, changes = compared(record, now)
        if self._options.accept:
            everything = completed(now, record.accepted)
            file.write(Record(accepted=everything, looked_at=now.taken_at))
            return [], _accepted(changes, now)
        file.write(kept)
        return (
            list(drift_findings(look.server, changes)),
            f"nothing changed since {record.looked_at}",
        )

    async def _mended(self, looks: Sequence[ServerLook]) -> AsyncIterator[Check]:
        """Mend what can be mended, and again what that brought to light.

        Whether something is mended is seen by looking again: one mend may mend several findings, so
        that those of the others fail, and one that failed may work after others.
        """
        left: dict[_Identity, tuple[Finding, str | None]] = {}
        for number in range(_ROUNDS_MAX):
            todo = [item for look in looks for item in look.findings if can_mend(item)]
            if not todo or (number == 0 and not _agreed(self._options, todo)):
                break
            tried = {_identity(item): (item, await self._mend(item)) for item in todo}
            looks = await self._inspection.look(self._key, progress=self._options.progress)
            there = {_identity(item) for look in looks for item in look.findings}
            before, left = left, {key: told for key, told in tried.items() if key in there}
            for key in tried.keys() - there:
                finding, _ = tried[key]
                yield fine("mended", f"{finding.subject} {finding.problem}")
            if left.keys() == tried.keys() == before.keys():
                break  # Neither did this round help.
        for finding, matter in left.values():
            told = matter or "its SQL was carried out, and it is as it was"
            problem = f"{finding.subject} {finding.problem}: {told}"
            yield warned("not mended", problem, finding.remedy)

    async def _mend(self, finding: Finding) -> str | None:
        if finding.check == STRANDED:
            return await carry_on(self._config, MoveId(finding.subject.removeprefix("move ")))
        return await mend(self._admin, finding, key=self._key)

    # What is asked besides

    async def _facts(self, server: ServerName) -> ServerFacts:
        async with self._admin.session(server) as connection:
            return await read_facts(connection, server)

    async def _clock(self, server: ServerName) -> Check:
        name = f"clock of {server}"
        async with self._admin.session(server) as connection:
            before = datetime.now(UTC)
            there: datetime = await connection.fetchval("select clock_timestamp()")
            after = datetime.now(UTC)
        apart_s = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
        told = f"{apart_s:.1f} s from ours"
        remedy = "let NTP set the clocks of both machines"
        if apart_s > _CLOCK_FAIL_S:
            return failed(name, told, remedy)
        return warned(name, told, remedy) if apart_s > _CLOCK_WARN_S else fine(name, told)

    async def _of_engine(self) -> AsyncIterator[Check]:
        try:
            engine = await Engine.attach(self._config, checked=False)
        except TenancyError as error:
            yield failed("catalog", error.detail, "mend what is told above, then `tenancy up`")
            return
        try:
            yield await _binding(engine)
            yield await _schema(engine)
        except TenancyError as error:
            yield failed("catalog", error.detail, "see that the server runs, then try again")
        finally:
            await engine.close()


def _identity(finding: Finding) -> _Identity:
    """What stays the same of a finding while others are mended."""
    return (finding.check, finding.server, finding.database, finding.subject, finding.problem)


def _is_ours(look: ServerLook) -> bool:
    """Whether tables and functions of the runtime are its own: the admin uses them from here on."""
    replaced = any(
        finding.check == FUNCTIONS and finding.severity is Severity.UNSAFE
        for finding in look.findings
    )
    return look.fingerprint is not None and not replaced


async def _binding(engine: Engine) -> Check:
    """A session that is not bound must get an error, and nothing else."""
    database = shared_database(engine.settings)
    for server in engine.servers:
        said: Any = None
        async with engine.admin.session(ServerName(server.name), database) as connection:
            try:
                await connection.fetchval("select tenancy.tenant()")
            except Exception as error:
                said = getattr(error, "sqlstate", type(error).__name__)
        if said != _NOT_BOUND:
            return failed(
                f"binding on {server.name}",
                f"a session that is not bound got {said or 'an answer'} in place of {_NOT_BOUND}",
                "tenancy doctor --mend, which puts the runtime's functions back",
            )
    return fine("binding", "a session that is not bound is refused")


async def _schema(engine: Engine) -> Check:
    status = await engine.fleet.status()
    late = [item for item in status if item.version != item.newest or item.error]
    if not late:
        newest = status[0].newest if status else 0
        return fine("schema", f"{len(status)} copies, all at version {newest}")
    first = late[0]
    return failed(
        "schema",
        f"{len(late)} of {len(status)} copies are not at version {first.newest}"
        f"{f'; the first says: {first.error}' if first.error else ''}",
        "mend the data, then run `tenancy schema apply DIR` again",
    )


def _agreed(options: DoctorOptions, todo: Sequence[Finding]) -> bool:
    return options.mend is not None and options.mend(todo)


def _accepted(changes: Sequence[Change], now: Fingerprint) -> str:
    told = f"{len(changes)} change{'' if len(changes) == 1 else 's'} accepted"
    return f"{told}; {len(now.traits)} objects noted to compare with"


def _spoilt(server: ServerName, error: SetupError) -> Finding:
    return Finding(
        check=DRIFT,
        severity=Severity.WARNING,
        server=server,
        database="",
        subject="the record of the last look",
        problem=f"cannot be believed: {error.detail}",
        advice="find out who wrote it; then begin anew: tenancy doctor --accept",
        by_hand=True,
    )
