"""The tables of one namespace: making them, and taking them from version to version.

Rules this module keeps:

* One migration in one namespace is one transaction of the admin, working as the owner, with time
  limits (`Settings.migration_lock_timeout_ms`, `migration_statement_timeout_ms`). It ends with the
  namespace scoped and the migration noted in `tenancy_schema_version`, or with nothing changed.
* Users' code works as the owner, inside `tenancy.run`, and a transaction in which it has altered
  that function ends with nothing changed.
* The namespace's lock is exclusive meanwhile; whoever needs the tables to stay as they are takes
  `lock_shared` (sql/namespace.sql).
* What is applied is read from the namespace itself, never from the catalog.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeAlias

import asyncpg

from tenancy.data_isolation.core.errors import (
    MigrationConflictError,
    MigrationFailedError,
    SchemaError,
    SchemaRefusedError,
)
from tenancy.data_isolation.core.identifiers import RoleName, SchemaName, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog_records import NamespaceKind
from tenancy.data_isolation.engine.driver_errors import migration_text
from tenancy.data_isolation.engine.layout import HYBRID_ROLE, ROWS_ROLE
from tenancy.data_isolation.engine.migration import (
    Migration,
    StatementSort,
    parse_migration,
    refusal,
)
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.overlay import Overlays
from tenancy.data_isolation.engine.runner import ask, check_runner
from tenancy.data_isolation.engine.schema_differences import check_like
from tenancy.data_isolation.engine.schema_grants import grant_statements
from tenancy.data_isolation.engine.schema_script import (
    RegisteredMigration,
    Script,
    Step,
    StepSort,
)
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scope_plan import plan_scope
from tenancy.data_isolation.engine.scoped_definitions import scoped_steps
from tenancy.data_isolation.engine.scoping import (
    enter_schema,
    read_snapshot,
    run_all,
    scope_snapshot,
)
from tenancy.data_isolation.engine.seeding import check_copy_order
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.tenant_rows import PlacedTenant, TenantRows

_SQL = SqlFile("namespace.sql")

#: Errors that another attempt may overcome.
RETRYABLE: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
#: Errors after which the server has to be asked again what it has done.
GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)

#: Asks for the tenants whose rows are in a namespace, once nothing can change any more.
Tenants: TypeAlias = Callable[[], Awaitable[Sequence[PlacedTenant]]]


class NamespaceSchema:
    """One namespace, over an admin connection to its database that nobody else uses meanwhile.

    Errors of PostgreSQL pass through, but for those of a migration's own statements, which are
    `MigrationFailedError` with the line of the statement; lock timeouts and deadlocks always pass,
    so that the caller may try again.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        namespace: Namespace,
        *,
        settings: Settings,
        keys: BindingKeys,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._settings = settings
        self._rows = TenantRows(connection, namespace, settings=settings, keys=keys)
        self._overlays = Overlays(connection, namespace, self._rows)

    async def version(self) -> int | None:
        """The number of the last applied migration; 0 for none, None when there is no namespace."""
        if not await self._exists():
            return None
        async with self._changing(lock="lock_shared"):
            return max(await self._applied(), default=0)

    async def make(
        self,
        registered: Sequence[RegisteredMigration],
        *,
        like: SchemaSnapshot | None = None,
    ) -> bool:
        """Make the schema with all tables, without rows; False when it has tables already.

        It takes one round trip for all definitions together. Raises `SchemaError` when the tables
        are not those of the reference `like`, and then makes nothing.
        """
        if await self._exists():
            return False
        async with self._changing(lock="lock_exclusive", create=True):
            if await self._exists():
                return False
            await self._connection.execute(_SQL.statement("runtime_tables"))
            definitions = "".join(item.script.definitions() for item in registered)
            if definitions:
                await self._run(definitions)
            await self._record([item.migration for item in registered])
            snapshot = await self._scope()
            if like is not None:
                check_like(self._namespace, snapshot, like)
        return True

    async def protect(self, *, like: SchemaSnapshot | None = None) -> None:
        """Give the namespace's role, and nobody else, its rights; force row security.

        Raises `SchemaError` when the tables are not those of the reference `like`.
        """
        async with self._changing(lock="lock_exclusive"):
            snapshot = await self._scope()
            if like is not None:
                check_like(self._namespace, snapshot, like)

    async def lacks_rights(self) -> bool:
        """Whether `protect` has rights to give or to take."""
        async with self._changing(lock="lock_shared"):
            return any(grant_statements(await self._snapshot(), self._roles()))

    async def upgrade(self, registered: RegisteredMigration, tenants: Tenants) -> bool:
        """Apply one migration; False when it was applied already.

        Raises `MigrationFailedError`, `SchemaRefusedError`, `UnavailableError`.
        """
        async with self._changing(lock="lock_exclusive"):
            applied = await self._applied()
            migration = registered.migration
            if migration.number in applied:
                _check_same(self._namespace, migration, applied[migration.number])
                return False
            here = await tenants()
            if self._namespace.kind is NamespaceKind.SHARED:
                await self._overlays.read()
            for data, steps in registered.script.groups():
                if data:
                    await self._protect()
                    await self._change_rows(migration, steps, here)
                else:
                    for step in steps:
                        with _blamed(migration, step.line):
                            await self._overlays.precede(step)
                            await self._take(step.text)
                            await self._overlays.follow()
            await self._protect()
            await self._record([migration])
        return True

    async def add_overlay(self, tenant_no: TenantNo, schema: SchemaName, role: RoleName) -> None:
        """Make a schema of a hybrid tenant's own with the sensitive tables, without rows.

        Repeated, it mends the rights. Raises `SchemaError` when the tables are not the shared ones.
        """
        async with self._changing(lock="lock_shared"):
            await self._overlays.add(tenant_no, schema, role)

    async def remove_overlay(self, tenant_no: TenantNo, schema: SchemaName) -> None:
        """Drop a hybrid tenant's own schema with all its rows. Repeated, it changes nothing."""
        async with self._changing(lock="lock_shared"):
            await self._overlays.remove(tenant_no, schema)

    async def work_out(
        self, migration: Migration, record: Callable[[Script], Awaitable[None]]
    ) -> None:
        """Apply a migration to the reference, and find out what it comes to on scoped tables.

        `record` gets the script before the transaction ends, so that it can be part of it. Raises
        `SchemaRefusedError` and `MigrationFailedError`, and then nothing was changed.
        """
        statements = parse_migration(migration)
        async with self._changing(lock="lock_exclusive"):
            await self._overlays.read_trial()
            steps: list[Step] = []
            protected = True
            for statement in statements:
                snapshot = await self._snapshot()
                with _blamed(migration, statement.line):
                    scoped = scoped_steps(statement, snapshot)
                steps += scoped
                if statement.sort is StatementSort.DATA:
                    if not protected:
                        await self._settle(migration)
                    await self._change_rows(migration, scoped, ())
                else:
                    await self._define(migration, scoped)
                    steps += await self._follow(migration, statement.line)
                protected = statement.sort is StatementSort.DATA
            await self._settle(migration)
            await check_copy_order(self._connection, await self._snapshot(), migration)
            await self._record([migration])
            await record(Script(steps=tuple(steps)))

    async def snapshot(self) -> SchemaSnapshot:
        """What the namespace looks like now."""
        async with self._changing(lock="lock_shared"):
            return await self._snapshot()

    # Parts of a change

    @asynccontextmanager
    async def _changing(self, *, lock: str, create: bool = False) -> AsyncIterator[None]:
        """A transaction in the schema, as the owner, with limits and the namespace's lock."""
        connection, schema = self._connection, self._namespace.schema
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(
                _SQL.statement("limits"),
                str(self._settings.migration_lock_timeout_ms),
                str(self._settings.migration_statement_timeout_ms),
            )
            await enter_schema(connection, schema)
            await connection.execute(_SQL.statement(lock), schema)
            if create:
                await connection.execute(_SQL.statement("create_schema", schema=schema))
            yield
            await check_runner(connection)

    async def _run(self, text: str) -> None:
        """Run SQL of a migration."""
        await self._connection.execute(_SQL.statement("run"), text)

    async def _take(self, text: str) -> None:
        """Run a definition where there are rows; when they do not allow it, the error has the key.

        Forced row security keeps the key back from the owner too, so the definition is tried once
        more without it. That comes to nothing in any case: the error undoes the whole transaction.
        """
        try:
            async with self._connection.transaction():
                await self._run(text)
        except asyncpg.IntegrityConstraintViolationError as error:
            if error.schema_name != self._namespace.schema or error.table_name is None:
                raise
            try:
                await self._connection.execute(_SQL.statement("unforce", table=error.table_name))
                await self._run(text)
            except asyncpg.IntegrityConstraintViolationError:
                raise
            except asyncpg.PostgresError:
                raise error from None
            raise

    async def _exists(self) -> bool:
        found: bool = await self._connection.fetchval(
            _SQL.statement("has_runtime_tables"), self._namespace.schema
        )
        return found

    async def _applied(self) -> dict[int, str]:
        rows = await ask(self._connection, _SQL.statement("applied"))
        return {row["number"]: row["checksum"] for row in rows}

    async def _record(self, migrations: Sequence[Migration]) -> None:
        if migrations:
            pairs = [(item.number, item.checksum.hex()) for item in migrations]
            await ask(self._connection, _SQL.statement("record_migrations"), *pairs)

    async def _snapshot(self) -> SchemaSnapshot:
        return await read_snapshot(self._connection, self._namespace.schema)

    async def _scope(self) -> SchemaSnapshot:
        """Scope the namespace; what it looked like just before, which was scoped but for rights."""
        snapshot = await self._snapshot()
        plan = await scope_snapshot(self._connection, snapshot, roles=self._roles())
        return await self._snapshot() if plan.changes else snapshot

    async def _protect(self) -> None:
        """Scope the namespace and its overlays."""
        await self._scope()
        await self._overlays.protect()

    def _roles(self) -> tuple[RoleName, ...] | None:
        """Who works in the namespace; None when its own access list says so."""
        match self._namespace.kind:
            case NamespaceKind.SHARED:
                return (ROWS_ROLE, HYBRID_ROLE)
            case NamespaceKind.TEMPLATE | NamespaceKind.REFERENCE:
                return ()
            case NamespaceKind.OWN:
                return None if self._namespace.role is None else (self._namespace.role,)

    async def _change_rows(
        self, migration: Migration, steps: Sequence[Step], tenants: Sequence[PlacedTenant]
    ) -> None:
        texts = [step.text for step in steps]
        with _blamed(migration, steps[0].line):
            if self._namespace.kind is NamespaceKind.REFERENCE:
                await self._rows.run_for_reference(texts)
            else:
                await self._rows.run(texts, tenants, self._overlays.schemas)

    # Working a migration out

    async def _define(self, migration: Migration, steps: Sequence[Step]) -> None:
        """Run statements, each of which must be one statement for the server too."""
        for step in steps:
            with _blamed(migration, step.line):
                await self._overlays.precede(step)
                await self._connection.prepare(step.text)
                await self._run(step.text)
                await self._overlays.follow()

    async def _follow(self, migration: Migration, line: int) -> list[Step]:
        """Scope what a statement made. What is refused may be mended by the next statement."""
        plan = plan_scope(await self._snapshot(), roles=())
        steps = [Step(sort=StepSort.DEFINITION, text=text, line=line) for text in plan.changes]
        with _blamed(migration, line):
            for step in steps:
                await self._overlays.precede(step)
                await run_all(self._connection, [step.text])
                await self._overlays.follow()
        return steps

    async def _settle(self, migration: Migration) -> None:
        """Scope the reference for good; now a refusal counts."""
        plan = plan_scope(await self._snapshot(), roles=())
        if plan.refusals:
            raise refusal(migration, [str(found) for found in plan.refusals])
        await run_all(self._connection, plan.statements)
        try:
            await self._overlays.protect()
        except SchemaError as error:
            raise refusal(
                migration,
                [
                    f"hybrid tenants could not follow: {error.detail}; give constraints, indexes "
                    "and sequences names of their own, and a sequence to one table"
                ],
            ) from None


def _check_same(namespace: Namespace, migration: Migration, checksum: str) -> None:
    if checksum != migration.checksum.hex():
        raise MigrationConflictError(
            f"{namespace} has another text of {migration.title}; it was changed by other means"
        )


@contextmanager
def _blamed(migration: Migration, line: int) -> Iterator[None]:
    """Name the migration and the line in the errors of its statements.

    What another attempt may overcome, and what says that the server is gone, passes as it is.
    """
    place = f"{migration.title}, line {line}"
    try:
        yield
    except SchemaRefusedError as error:
        raise SchemaRefusedError(f"{place}: {error.detail}", error.sqlstate) from None
    except (*RETRYABLE, *GONE):
        raise
    except asyncpg.PostgresError as error:
        raise MigrationFailedError(f"{place}: {migration_text(error)}", error.sqlstate) from None
