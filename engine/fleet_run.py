"""One run over the fleet: bringing namespaces to the newest version, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import asyncpg

from tenancy.data_isolation.core.errors import (
    MigrationFailedError,
    OutcomeUnknownError,
    OverloadedError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import NamespaceRecord, NamespaceState
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.namespace_schema import (
    GONE,
    RETRYABLE,
    NamespaceSchema,
    Tenants,
)
from tenancy.data_isolation.engine.schema_script import RegisteredMigration

_ERROR_CHARS_MAX = 2_000


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
        schema_of: _SchemaOf,
        tenants_of: Callable[[Namespace], Tenants],
        total: int,
        progress: Callable[[FleetProgress], None],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._registered = registered
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
        """One worker: namespaces of one database one after the other share a connection."""
        for record in pending:
            if self.failed >= self._settings.migration_failures_max:
                return
            await self._catalog.record_namespace(replace(record, state=NamespaceState.MIGRATING))
            outcome = await self._attempts(record)
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

    async def _attempts(self, record: NamespaceRecord) -> NamespaceOutcome:
        """Bring one namespace up; a lock that does not come is tried again."""
        namespace = Namespace.of_record(record)
        outcome = NamespaceOutcome(
            namespace=namespace,
            from_version=record.version,
            to_version=record.version,
            state=NamespaceState.CURRENT,
        )
        pause_s = self._settings.migration_retry_ms / 1_000
        for attempt in range(1, self._settings.migration_attempts_max + 1):
            try:
                return await self._bring_up(outcome)
            except RETRYABLE as error:
                if attempt == self._settings.migration_attempts_max:
                    reason = f"{error} (after {attempt} attempts)"
                    return _failed(outcome, reason)
            except TenancyError as error:
                return _failed(outcome, error.detail)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                return _failed(outcome, _told(error).detail)
            # A pause between attempts, so that whoever holds the lock gets on; nothing waits on it.
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("migration_attempts_max is at least 1")

    async def _bring_up(self, outcome: NamespaceOutcome) -> NamespaceOutcome:
        namespace = outcome.namespace
        async with self._admin.session(namespace.server, namespace.database) as connection:
            schema = self._schema_of(connection, namespace)
            version = await schema.version()
            if version is None:
                raise MigrationFailedError(f"{namespace} has no tables; create the tenant again")
            for item in self._registered:
                number = item.migration.number
                if number <= version:
                    continue
                try:
                    await schema.upgrade(item, self._tenants_of(namespace))
                except TenancyError as error:
                    return _failed(replace(outcome, to_version=version), error.detail)
                version = number
            return replace(outcome, to_version=version)


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
        hint = f" {error.hint}" if error.hint else ""
        return MigrationFailedError(f"{error.args[0]}.{hint}", error.sqlstate)
    return ServerUnavailableError("the server went away; run it again")


def _failed(outcome: NamespaceOutcome, reason: str) -> NamespaceOutcome:
    return replace(outcome, state=NamespaceState.FAILED, error=reason[:_ERROR_CHARS_MAX])
