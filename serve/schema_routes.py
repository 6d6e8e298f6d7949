"""The tenant-neutral schema: its migrations and where its copies stand. For administrators."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    MigrationFailedError,
    TenantNotFoundError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.engine.catalog_records import NamespaceState
from tenancy.data_isolation.engine.fleet_run import FleetReport, NamespaceStatus
from tenancy.data_isolation.engine.migration import Migration
from tenancy.data_isolation.engine.namespace import Namespace
from tenancy.data_isolation.engine.plan_advice import TablePlace
from tenancy.data_isolation.engine.visible_schema import VisibleRelation
from tenancy.data_isolation.serve.advice_answer import advice_answer
from tenancy.data_isolation.serve.models import (
    AnalyzedAnswer,
    MigrationAnswer,
    MigrationAppliedAnswer,
    MigrationBody,
    NamespaceFailure,
    NamespacesAnswer,
    RelationAnswer,
    RelationColumnAnswer,
    SchemaAdviceAnswer,
    SchemaAnswer,
    TableBody,
)
from tenancy.data_isolation.serve.openapi import answers, takes
from tenancy.data_isolation.serve.requests import Requests, json_answer
from tenancy.data_isolation.serve.services import Services

# Digits and an underscore are always meant as the number, however many digits there are.
_NAME = re.compile(r"(?:([0-9]{1,20})_|(?![0-9]+_))([A-Za-z0-9][A-Za-z0-9_-]{0,99}?)(?:\.sql)?")
_FAILURES_MAX = 20
#: Copies that a message names at most.
_PLACES_MAX = 5
#: What `pg_attribute.attidentity` means.
_IDENTITIES: Final[Mapping[str, Literal["always", "by default"]]] = {
    "a": "always",
    "d": "by default",
}


class SchemaRoutes:
    """The routes `/v1/schema` and `/v1/schema/migrations`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._fleet = services.fleet
        self._catalog = services.catalog
        self._relations = services.relations
        self._adviser = services.adviser
        self._requests = requests
        # One migration at a time: the next one has to see what the last one did.
        self._migrating = asyncio.Lock()
        self._work: set[asyncio.Task[MigrationAppliedAnswer]] = set()

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["schema"])
        add = router.add_api_route
        add(
            "/v1/schema",
            self.show,
            methods=["GET"],
            summary="Show the schema and where its copies stand",
            responses=answers(SchemaAnswer),
        )
        add(
            "/v1/schema/advice",
            self.advise,
            methods=["GET"],
            summary="Show which indexes would help, and what would help to better plans",
            description=(
                "From what the servers count of tenants' statements (pg_stat_statements). Nothing "
                "is changed; send a `migration` of the answer to POST /v1/schema/migrations, an "
                "`analyze` to POST /v1/schema/statistics."
            ),
            responses=answers(SchemaAdviceAnswer),
        )
        add(
            "/v1/schema/statistics",
            self.analyze,
            methods=["POST"],
            summary="Have PostgreSQL look at a table again (ANALYZE)",
            description="Tenants go on reading and writing the table meanwhile.",
            responses=answers(AnalyzedAnswer, 404, 409, 504, body=True),
            openapi_extra=takes(TableBody),
        )
        add(
            "/v1/schema/migrations",
            self.migrate,
            methods=["POST"],
            summary="Register a migration and bring it to every copy of the schema",
            description=(
                "The answer comes when every copy has it. When some copy fails, the problem says "
                "why, and sending the migration again goes on where it stopped. The work goes on "
                "when the client leaves."
            ),
            status_code=201,
            responses=answers(MigrationAppliedAnswer, 409, status=201, body=True),
            openapi_extra=takes(MigrationBody),
        )
        return router

    async def show(self, request: Request) -> Response:
        """The schema."""
        await self._requests.admin(request)
        migrations = await self._fleet.migrations()
        status = await self._fleet.status()
        failed = [item for item in status if item.error is not None][:_FAILURES_MAX]
        relations = await self._relations()
        answer = SchemaAnswer(
            version=migrations[-1].number if migrations else 0,
            migrations=[_migration(item) for item in migrations],
            tables=[item.name for item in relations],
            relations=[_relation(item) for item in relations],
            namespaces=_summary(status),
            failures=[
                _failure(item, await self._tenant_id(item.namespace.tenant_no)) for item in failed
            ],
        )
        return json_answer(answer.model_dump())

    async def advise(self, request: Request) -> Response:
        """What would help."""
        await self._requests.admin(request)
        answer = advice_answer(await self._adviser.advice())
        return json_answer(answer.model_dump(by_alias=True))

    async def analyze(self, request: Request) -> Response:
        """Bring the statistics of a table up to date."""
        await self._requests.admin(request)
        body = await self._requests.body(request, TableBody)
        place = TablePlace(
            server=ServerName(body.server),
            database=DatabaseName(body.database),
            schema=SchemaName(body.schema_),
            table=body.table,
        )
        done = await self._adviser.analyze(place)
        answer = AnalyzedAnswer(sql=place.analyze, rows=done.rows, took_s=done.took_s)
        return json_answer(answer.model_dump())

    async def migrate(self, request: Request) -> Response:
        """Register a migration and apply it everywhere."""
        await self._requests.admin(request)
        body = await self._requests.body(request, MigrationBody)
        # A client that leaves must not stop the work half-way through the fleet.
        work = asyncio.create_task(self._migrated(body))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        answer = await asyncio.shield(work)
        return json_answer(answer.model_dump(), status=201)

    async def _migrated(self, body: MigrationBody) -> MigrationAppliedAnswer:
        async with self._migrating:
            migration = await self._numbered(body)
            await self._fleet.register([migration])
            report = await self._fleet.apply()
            if not report.complete:
                raise MigrationFailedError(await self._told(migration, report))
            # From now on this process knows the new tables.
            await self._relations()
            return MigrationAppliedAnswer(
                **_migration(migration).model_dump(),
                version=report.version,
                namespaces=_summary(await self._fleet.status()),
            )

    async def _told(self, sent: Migration, report: FleetReport) -> str:
        """Which migration some copies could not take, where, and the first reason.

        It need not be the one that was sent: an older or newer one brings the fleet up as well.
        """
        failed = report.failures
        reached = min((item.to_version for item in failed), default=report.version)
        registered = await self._fleet.migrations()
        stuck = next((item for item in registered if item.number > reached), sent)
        places = [await self._place(item.namespace) for item in failed[:_PLACES_MAX]]
        if len(failed) > _PLACES_MAX:
            places.append(f"{len(failed) - _PLACES_MAX} more")
        where = f" ({', '.join(places)})" if places else ""
        reason = f": {failed[0].error}".rstrip(".") if failed else ""
        what = (
            f"{stuck.title} is registered, but"
            if stuck.number == sent.number
            else f"the schema is at version {report.version}, but {stuck.title} is stuck:"
        )
        copies = "1 copy" if len(failed) == 1 else f"{len(failed)} copies"
        tried = "1 was" if report.left == 1 else f"{report.left} were"
        return (
            f"{what} {copies} of the schema{where} could not take it and {tried} not tried"
            f"{reason}. Mend the data and send it again"
        )

    async def _place(self, namespace: Namespace) -> str:
        """How a message names a copy of the schema."""
        tenant_id = await self._tenant_id(namespace.tenant_no)
        whose = namespace.kind.value if tenant_id is None else f"tenant {tenant_id}"
        return f"{whose} on {namespace.server}"

    async def _tenant_id(self, tenant_no: TenantNo | None) -> TenantId | None:
        """The id of the tenant of that number; None when there is none (any more)."""
        if tenant_no is None:
            return None
        try:
            return (await self._catalog.tenant_by_number(tenant_no)).tenant_id
        except TenantNotFoundError:
            return None

    async def _numbered(self, body: MigrationBody) -> Migration:
        """The migration with its number: the one it names, or the next."""
        parts = _NAME.fullmatch(body.name)
        if parts is None:
            raise InvalidInputError(
                "the name of a migration is like 0001_users, or like users for the next number"
            )
        name = parts[2]
        if parts[1] is not None:
            return Migration(number=int(parts[1]), name=name, sql=body.sql)
        known = await self._fleet.migrations()
        last = known[-1] if known else None
        if last is not None and (last.name, last.sql) == (name, body.sql):
            # The same request again.
            return last
        return Migration(number=last.number + 1 if last else 1, name=name, sql=body.sql)


def _migration(migration: Migration) -> MigrationAnswer:
    return MigrationAnswer(
        number=migration.number,
        name=f"{migration.number:04d}_{migration.name}",
        checksum=migration.checksum.hex(),
    )


def _relation(relation: VisibleRelation) -> RelationAnswer:
    return RelationAnswer(
        name=relation.name,
        kind="view" if relation.view else "table",
        columns=[
            RelationColumnAnswer(
                name=shape.name,
                type=shape.type,
                not_null=shape.not_null,
                generated=bool(shape.generated),
                identity=_IDENTITIES.get(shape.identity),
            )
            for shape in relation.shapes
        ],
        primary_key=list(relation.primary_key),
        sensitive=relation.apart,
    )


def _summary(status: Sequence[NamespaceStatus]) -> NamespacesAnswer:
    versions = Counter(item.version for item in status)
    return NamespacesAnswer(
        total=len(status),
        current=sum(item.version == item.newest for item in status),
        behind=sum(item.version < item.newest for item in status),
        failed=sum(item.state is NamespaceState.FAILED for item in status),
        versions={str(version): versions[version] for version in sorted(versions)},
    )


def _failure(status: NamespaceStatus, tenant_id: TenantId | None) -> NamespaceFailure:
    namespace = status.namespace
    return NamespaceFailure(
        server=namespace.server,
        kind=namespace.kind.value,
        tenant_no=namespace.tenant_no,
        tenant_id=tenant_id,
        version=status.version,
        error=status.error,
    )
