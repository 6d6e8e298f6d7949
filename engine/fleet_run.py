"""One run over the fleet: bringing namespaces to the newest version, some at a time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import asyncpg

from tenancy.data_isolation.core.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    OverloadedError,
    ServerUnavailableError,
    TenancyError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceRecord, NamespaceState
from tenancy.data_isolation.engine.driver_errors import migration_text
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.namespace_schema import (
    GONE,
    RETRYABLE,
    NamespaceSchema,
    Tenants,
)
from tenancy.data_isolation.engine.schema_script import RegisteredMigration

_ERROR_CHARS_MAX = 2_000
#: How messages from below name a tenant: the catalog alone knows its id.
_NUMBERED = re.compile(r"\btenant number ([0-9]{1,18})\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetProgress:
    """How far a run has come. `current` is the namespace that was just done."""

    done: int
    failed: int
    total: int
    current: Namespace


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceOutcome:
    """What a run did to one namespace."""

    namespace: Namespace
    from_version: int
    to_version: int
    state: NamespaceState
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetReport:
    """What a run came to. `outcomes` has the namespaces that were worked on, in that order.

    `left` counts those that the run did not get to, because too many had failed or because a
    reference or template had.
    """

    version: int
    outcomes: tuple[NamespaceOutcome, ...]
    left: int

    @property
    def failures(self) -> tuple[NamespaceOutcome, ...]:
        """The namespaces that stayed behind."""
        return tuple(item for item in self.outcomes if item.state is NamespaceState.FAILED)

    @property
    def complete(self) -> bool:
        """Whether every namespace is at `version`."""
        return not self.failures and not self.left


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceStatus:
    """Where a namespace stands, and the newest version."""

    namespace: Namespace
    version: int
    newest: int
    state: NamespaceState
    error: str | None


class _SchemaOf(Protocol):
    def __call__(self, connection: asyncpg.Connection, namespace: Namespace) -> NamespaceSchema: ...


class FleetRun:
    """The state of one run. Used by one task; `bring` starts the workers."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        registered: Sequence[RegisteredMigration],
        ready: Callable[[asyncpg.Connection, Namespace], Awaitable[None]],
        schema_of: _SchemaOf,
        tenants_of: Callable[[Namespace], Tenants],
        total: int,
        progress: Callable[[FleetProgress], None],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._registered = registered
        self._ready = ready
        self._schema_of = schema_of
        self._tenants_of = tenants_of
        self._total = total
        self._progress = progress
        self._outcomes: list[NamespaceOutcome] = []
        self._gone = 0
        self.failed = 0

    async def bring(self, records: Sequence[NamespaceRecord], *, at_once: int) -> None:
        """Bring namespaces to the newest version, until too many have failed."""
        pending = iter(records)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(records))):
                    group.create_task(self._work(pending))
        except BaseExceptionGroup as errors:
            # What is no fault of one namespace ends the run: the catalog is away, a callback fails.
            raise errors.exceptions[0] from None

    def report(self) -> FleetReport:
        """What was done so far."""
        return FleetReport(
            version=self._registered[-1].migration.number if self._registered else 0,
            outcomes=tuple(self._outcomes),
            left=self._total - len(self._outcomes) - self._gone,
        )

    async def _work(self, pending: Iterator[NamespaceRecord]) -> None:
        """One worker: one namespace after the other."""
        async with _Lane(self._admin) as lane:
            for record in pending:
                if self.failed >= self._settings.migration_failures_max:
                    return
                await self._catalog.record_namespace(
                    replace(record, state=NamespaceState.MIGRATING)
                )
                outcome = await self._attempts(record, lane)
                if not await self._note(record, outcome):
                    self._gone += 1
                    continue
                self._outcomes.append(outcome)
                self.failed += outcome.state is NamespaceState.FAILED
                self._progress(
                    FleetProgress(
                        done=len(self._outcomes) - self.failed,
                        failed=self.failed,
                        total=self._total - self._gone,
                        current=outcome.namespace,
                    )
                )

    async def _note(self, record: NamespaceRecord, outcome: NamespaceOutcome) -> bool:
        """Tell the catalog; False when the namespace was removed meanwhile."""
        if outcome.state is NamespaceState.FAILED:
            place = (record.server, record.database, record.schema)
            if await self._catalog.namespace(*place) is None:
                return False
        await self._catalog.record_namespace(
            replace(record, version=outcome.to_version, state=outcome.state, error=outcome.error)
        )
        return True

    async def _attempts(self, record: NamespaceRecord, lane: _Lane) -> NamespaceOutcome:
        """Bring one namespace up; what another attempt may overcome is tried again."""
        work = _Work(namespace=Namespace.of_record(record), version=record.version)
        pause_s = self._settings.migration_retry_ms / 1_000
        for attempt in range(1, self._settings.migration_attempts_max + 1):
            reason, again = await self._attempt(work, lane)
            if reason is None:
                return work.outcome(record.version, NamespaceState.CURRENT)
            await lane.leave()
            if not again:
                break
            if attempt < self._settings.migration_attempts_max:
                # Whoever is in the way gets on meanwhile; nothing else waits for this.
                await asyncio.sleep(pause_s)
                pause_s *= 2
        else:
            reason = f"{reason} (after {self._settings.migration_attempts_max} attempts)"
        reason = await self._named(reason or "", work.namespace)
        return work.outcome(record.version, NamespaceState.FAILED, reason)

    async def _named(self, reason: str, namespace: Namespace) -> str:
        """`reason` with the tenants' ids in place of their numbers, as far as they are known."""
        if namespace.tenant_no is not None and _NUMBERED.search(reason) is None:
            reason = f"tenant number {namespace.tenant_no}: {reason}"
        told: dict[str, str] = {}
        for number in {found[1] for found in _NUMBERED.finditer(reason)}:
            with suppress(TenantNotFoundError):
                tenant = await self._catalog.tenant_by_number(TenantNo(int(number)))
                told[number] = f"tenant {tenant.tenant_id}"
        return _NUMBERED.sub(lambda found: told.get(found[1], found[0]), reason)

    async def _attempt(self, work: _Work, lane: _Lane) -> tuple[str | None, bool]:
        """What went wrong, None when nothing did, and whether to try again."""
        try:
            await self._bring_up(work, await lane.connection(work.namespace))
        except RETRYABLE as error:
            return str(error), True
        except TenancyError as error:
            return error.detail, error.retryable
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            return _told(error).detail, False
        return None, False

    async def _bring_up(self, work: _Work, connection: asyncpg.Connection) -> None:
        await self._ready(connection, work.namespace)
        schema = self._schema_of(connection, work.namespace)
        version = await schema.version()
        if version is None:
            raise MigrationFailedError(f"{work.namespace} has no tables; create the tenant again")
        work.version = version
        for item in self._registered:
            if item.migration.number > work.version:
                await schema.upgrade(item, self._tenants_of(work.namespace))
                work.version = item.migration.number


@dataclass(kw_only=True, slots=True)
class _Work:
    """A namespace, and the version that it has reached."""

    namespace: Namespace
    version: int

    def outcome(
        self, from_version: int, state: NamespaceState, error: str | None = None
    ) -> NamespaceOutcome:
        return NamespaceOutcome(
            namespace=self.namespace,
            from_version=from_version,
            to_version=self.version,
            state=state,
            error=None if error is None else error[:_ERROR_CHARS_MAX],
        )


class _Lane:
    """A worker's connection, kept as long as its namespaces are in one database."""

    def __init__(self, admin: AdminConnections) -> None:
        self._admin = admin
        self._stack = AsyncExitStack()
        self._open: tuple[ServerName, DatabaseName, asyncpg.Connection] | None = None

    async def __aenter__(self) -> _Lane:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def connection(self, namespace: Namespace) -> asyncpg.Connection:
        """A connection to the namespace's database."""
        place = (namespace.server, namespace.database)
        if self._open is not None:
            server, database, known = self._open
            if (server, database) == place and not known.is_closed():
                return known
            await self.leave()
        found = await self._stack.enter_async_context(self._admin.session(*place))
        self._open = (*place, found)
        return found

    async def leave(self) -> None:
        """Close the connection: after a failure nobody knows what state it is in."""
        self._open = None
        await self._stack.aclose()


@contextmanager
def translated(*, changing: bool) -> Iterator[None]:
    """Let no error of the driver out. `changing` says that something may have been changed."""
    try:
        yield
    except RETRYABLE as error:
        raise OverloadedError(
            "another change of the schema is under way; nothing was done, try again", error.sqlstate
        ) from error
    except GONE as error:
        raise _lost(changing) from error
    except asyncpg.PostgresError as error:
        raise _told(error) from error
    except (asyncpg.InterfaceError, OSError) as error:
        raise _lost(changing) from error


def _lost(changing: bool) -> TenancyError:
    if changing:
        return OutcomeUnknownError(
            "the connection broke during a change of the schema; run it again: what was done is "
            "recognised and skipped"
        )
    return ServerUnavailableError()


def _told(error: Exception) -> TenancyError:
    if isinstance(error, asyncpg.PostgresError):
        return MigrationFailedError(migration_text(error), error.sqlstate)
    return ServerUnavailableError("the server went away; run it again")
