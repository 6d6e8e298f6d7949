"""Tenants: making, listing, suspending and erasing them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core import Settings, TenancyError, Tenant, TenantContext
from tenancy.data_isolation.core.errors import IdempotencyConflictError, RequestTooLargeError
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id, parse_word
from tenancy.data_isolation.core.rules import placed_by
from tenancy.data_isolation.serve.models import (
    MadeTenantAnswer,
    NewTenantAnswer,
    PlacementAnswer,
    TenantAnswer,
    TenantBatchAnswer,
    TenantBatchBody,
    TenantBatchEnvelope,
    TenantBody,
    TenantsAnswer,
)
from tenancy.data_isolation.serve.openapi import answers, option_headers, takes
from tenancy.data_isolation.serve.problems import problem
from tenancy.data_isolation.serve.request_bodies import checked
from tenancy.data_isolation.serve.request_options import RequestOptions
from tenancy.data_isolation.serve.requests import Requests, json_answer, no_content
from tenancy.data_isolation.serve.services import Services
from tenancy.data_isolation.serve.tenant_creation import MadeTenant, TenantCreation

_PAGE = 100


class TenantRoutes:
    """The routes `/v1/tenants` and `/v1/tenants/{tenant_id}`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._settings = services.settings
        self._catalog = services.catalog
        self._orchestrator = services.orchestrator
        self._creation = TenantCreation(services)
        self._requests = requests
        self._answers = _RememberedAnswers(services.settings)

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["tenants"])
        add = router.add_api_route
        add(
            "/v1/tenants",
            self.create,
            methods=["POST"],
            summary="Make a tenant",
            description=(
                "Without `isolation_level` the runtime chooses one by its rules and tells why. "
                "A tenant of that id that exists is a conflict (409), unless the request carries "
                "an idempotency key and asks for the same."
            ),
            status_code=201,
            responses=answers(NewTenantAnswer, 409, status=201, body=True),
            openapi_extra=takes(TenantBody) | option_headers(wait=False),
        )
        add(
            "/v1/tenant-batches",
            self.create_many,
            methods=["POST"],
            summary="Make many tenants",
            description=(
                "Each gets what it would get by itself, or an error in its place, whatever is "
                "wrong with it: only what is no list of `tenants` is refused as a whole. One that "
                "is there already and is the same is no error, so that a batch can be sent again. "
                "Tenants of level row are made together, hundreds in a second."
            ),
            responses=answers(TenantBatchAnswer, body=True),
            openapi_extra=takes(TenantBatchBody),
        )
        add(
            "/v1/tenants",
            self.list,
            methods=["GET"],
            summary="List tenants",
            responses=answers(TenantsAnswer, 422),
        )
        one = "/v1/tenants/{tenant_id}"
        add(
            one,
            self.show,
            methods=["GET"],
            summary="Show a tenant",
            responses=answers(TenantAnswer),
        )
        add(
            one,
            self.delete,
            methods=["DELETE"],
            summary="Erase a tenant and all its data",
            status_code=204,
            responses=answers(None, 409, status=204),
        )
        for name, endpoint, summary in (
            ("suspend", self.suspend, "Refuse a tenant's operations from now on"),
            ("resume", self.resume, "Take a suspended tenant's operations again"),
        ):
            add(
                f"{one}/{name}",
                endpoint,
                methods=["POST"],
                summary=summary,
                responses=answers(TenantAnswer, 409),
            )
        return router

    async def create(self, request: Request) -> Response:
        """Make a tenant where the rules put it."""
        await self._requests.admin(request)
        key = RequestOptions.of(request.headers, self._settings).idempotency_key
        body = await self._requests.body(request, TenantBody)
        remembered = self._answers.find(key, body)
        if remembered is None:
            made = await self._creation.one(_context(body), repeatable=bool(key))
            remembered = NewTenantAnswer(
                **_answer(made.tenant).model_dump(), reasons=list(made.reasons)
            )
            self._answers.remember(key, body, remembered)
        return json_answer(
            remembered.model_dump(mode="json"),
            status=201,
            headers={"Location": f"/v1/tenants/{remembered.tenant_id}"},
        )

    async def create_many(self, request: Request) -> Response:
        """Make many tenants where the rules put them."""
        await self._requests.admin(request)
        body = await self._requests.body(request, TenantBatchEnvelope)
        limit = self._settings.batch_operations_max
        if len(body.tenants) > limit:
            raise RequestTooLargeError(
                f"the batch has {len(body.tenants)} tenants; {limit} is the limit "
                "(TENANCY_BATCH_OPERATIONS_MAX)"
            )
        contexts: dict[int, TenantContext] = {}
        refused: dict[int, TenancyError] = {}
        for position, item in enumerate(body.tenants):
            try:
                contexts[position] = _context(checked(item, TenantBody))
            except TenancyError as error:
                refused[position] = error
        made = await self._creation.many([*contexts.values()])
        found = dict(zip(contexts, made, strict=True)) | refused
        return json_answer(
            {"results": [_outcome(found[position]) for position in range(len(body.tenants))]}
        )

    async def list(
        self, request: Request, after: str | None = None, limit: int = _PAGE
    ) -> Response:
        """One page of tenants."""
        await self._requests.admin(request)
        start = None if after is None else parse_tenant_id(after)
        page = await self._catalog.tenants(after=start, limit=limit)
        answer = TenantsAnswer(
            tenants=[_answer(tenant) for tenant in page],
            next=page[-1].tenant_id if len(page) == limit else None,
        )
        return json_answer(answer.model_dump(mode="json"))

    async def show(self, request: Request, tenant_id: str) -> Response:
        """One tenant."""
        tenant = await self._requests.tenant(request, tenant_id)
        return _answered(await self._catalog.tenant(tenant))

    async def suspend(self, request: Request, tenant_id: str) -> Response:
        """Refuse the tenant's operations."""
        tenant = await self._requests.tenant_as_admin(request, tenant_id)
        return _answered(await self._orchestrator.suspend_tenant(tenant))

    async def resume(self, request: Request, tenant_id: str) -> Response:
        """Take the tenant's operations again."""
        tenant = await self._requests.tenant_as_admin(request, tenant_id)
        return _answered(await self._orchestrator.resume_tenant(tenant))

    async def delete(self, request: Request, tenant_id: str) -> Response:
        """Erase the tenant."""
        tenant = await self._requests.tenant_as_admin(request, tenant_id)
        await self._orchestrator.delete_tenant(tenant)
        self._answers.forget(tenant)
        return no_content()


class _RememberedAnswers:
    """Answers by idempotency key, so that a repeated request gets the first one again.

    Bounded, and of this process only: what makes a repetition harmless is that making the same
    tenant again changes nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._entries_max = settings.idempotency_answers_max
        self._found: OrderedDict[str, tuple[bytes, NewTenantAnswer]] = OrderedDict()

    def find(self, key: str | None, body: TenantBody) -> NewTenantAnswer | None:
        """The answer to the same request; `IdempotencyConflictError` when it was another one."""
        entry = None if key is None else self._found.get(key)
        if entry is None:
            return None
        if entry[0] != _digest(body):
            raise IdempotencyConflictError()
        return entry[1]

    def remember(self, key: str | None, body: TenantBody, answer: NewTenantAnswer) -> None:
        """Keep an answer."""
        if key is None:
            return
        self._found[key] = (_digest(body), answer)
        while len(self._found) > self._entries_max:
            self._found.popitem(last=False)

    def forget(self, tenant_id: TenantId) -> None:
        """The tenant is gone, so that making it again is another matter."""
        for key, (_, answer) in list(self._found.items()):
            if answer.tenant_id == tenant_id:
                del self._found[key]


def _digest(body: TenantBody) -> bytes:
    return hashlib.sha256(repr(body).encode()).digest()


def _context(body: TenantBody) -> TenantContext:
    return TenantContext(
        tenant_id=body.tenant_id,
        tenant_type=body.tenant_type,
        isolation_level=body.isolation_level,
        region=None if body.region is None else parse_word(body.region, "region"),
        compliance=body.compliance,
        metadata=body.metadata,
    )


def _outcome(made: MadeTenant | TenancyError) -> dict[str, Any]:
    if isinstance(made, TenancyError):
        return {"error": problem(made)}
    return MadeTenantAnswer(tenant=_answer(made.tenant), created=made.created).model_dump(
        mode="json"
    )


def _answer(tenant: Tenant) -> TenantAnswer:
    placement, cache = tenant.placement, tenant.cache
    return TenantAnswer(
        tenant_id=tenant.tenant_id,
        tenant_type=tenant.tenant_type,
        status=tenant.status,
        isolation_level=placement.level if placement else None,
        strategy=placed_by(placement) if placement else None,
        region=tenant.region,
        compliance=list(tenant.compliance),
        placement=PlacementAnswer(
            level=placement.level, server=placement.server, epoch=placement.epoch
        )
        if placement
        else None,
        results_kept=cache is not None and cache.wanted,
        pinned=cache is not None and cache.pinned,
    )


def _answered(tenant: Tenant) -> Response:
    return json_answer(_answer(tenant).model_dump(mode="json"))
