"""API keys: making, listing, rotating and revoking them. For administrators."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core import Tenant
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.identifiers import parse_tenant_id
from tenancy.data_isolation.engine.catalog_records import ApiKeyRecord, CredentialScope
from tenancy.data_isolation.serve.models import (
    KeyAnswer,
    KeyBody,
    KeyRotationBody,
    KeysAnswer,
    NewKeyAnswer,
    RotatedKeyAnswer,
)
from tenancy.data_isolation.serve.openapi import answers, takes
from tenancy.data_isolation.serve.problems import note_tenant
from tenancy.data_isolation.serve.request_options import IDEMPOTENCY_KEY
from tenancy.data_isolation.serve.requests import Requests, json_answer, no_content
from tenancy.data_isolation.serve.services import Services

_PAGE = 100


class KeyRoutes:
    """The routes `/v1/keys`, `/v1/keys/{key_id}` and `/v1/keys/{key_id}/rotate`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._gateway = services.gateway
        self._credentials = services.credentials
        self._requests = requests

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["keys"])
        add = router.add_api_route
        add(
            "/v1/keys",
            self.create,
            methods=["POST"],
            summary="Make an API key",
            description="The answer is the only place where the key is ever shown.",
            status_code=201,
            responses=answers(NewKeyAnswer, status=201, body=True),
            openapi_extra=takes(KeyBody),
        )
        add(
            "/v1/keys",
            self.list,
            methods=["GET"],
            summary="List API keys",
            responses=answers(KeysAnswer, 422),
        )
        add(
            "/v1/keys/{key_id}",
            self.show,
            methods=["GET"],
            summary="Show an API key, without its secret",
            responses=answers(KeyAnswer),
        )
        add(
            "/v1/keys/{key_id}/rotate",
            self.rotate,
            methods=["POST"],
            summary="Give an API key another secret",
            description=(
                "The key keeps its id, label, tenant and expiry. The answer is the only place "
                "where the new secret is ever shown. A key that is revoked or has expired is a "
                "conflict (409)."
            ),
            responses=answers(RotatedKeyAnswer, 409, body=True),
            openapi_extra=takes(KeyRotationBody),
        )
        add(
            "/v1/keys/{key_id}",
            self.revoke,
            methods=["DELETE"],
            summary="Revoke an API key",
            status_code=204,
            responses=answers(None, status=204),
        )
        return router

    async def create(self, request: Request) -> Response:
        """Make a key."""
        await self._requests.admin(request)
        _refuse_repetition(request)
        body = await self._requests.body(request, KeyBody)
        scope = CredentialScope(body.scope)
        note_tenant(request, body.tenant_id)
        tenant = await self._tenant_of(body, scope)
        key = await self._credentials.create(
            scope,
            tenant_no=tenant.tenant_no if tenant else None,
            label=body.label,
            expires_at=body.expires_at,
        )
        answer = NewKeyAnswer(
            key_id=key.key_id,
            key=key.text,
            scope=scope.value,
            tenant_id=tenant.tenant_id if tenant else None,
            label=body.label,
            expires_at=body.expires_at,
        )
        return json_answer(answer.model_dump(mode="json"), status=201)

    async def list(
        self,
        request: Request,
        tenant_id: str | None = None,
        after: str | None = None,
        limit: int = _PAGE,
    ) -> Response:
        """One page of keys."""
        await self._requests.admin(request)
        tenant = None
        if tenant_id is not None:
            tenant = await self._gateway.tenant(parse_tenant_id(tenant_id))
        page = await self._credentials.list(
            tenant_no=tenant.tenant_no if tenant else None, after=after, limit=limit
        )
        answer = KeysAnswer(
            keys=[_answer(record) for record in page],
            next=page[-1].key_id if len(page) == limit else None,
        )
        return json_answer(answer.model_dump(mode="json"))

    async def show(self, request: Request, key_id: str) -> Response:
        """One key."""
        await self._requests.admin(request)
        answer = _answer(await self._credentials.show(key_id))
        return json_answer(answer.model_dump(mode="json"))

    async def rotate(self, request: Request, key_id: str) -> Response:
        """Give a key another secret."""
        await self._requests.admin(request)
        _refuse_repetition(request)
        body = await self._requests.body(request, KeyRotationBody)
        key, record = await self._credentials.rotate(key_id, overlap_s=body.overlap_s)
        answer = RotatedKeyAnswer(**_answer(record).model_dump(), key=key.text)
        return json_answer(answer.model_dump(mode="json"))

    async def revoke(self, request: Request, key_id: str) -> Response:
        """Let a key be good no more."""
        await self._requests.admin(request)
        await self._credentials.revoke(key_id)
        return no_content()

    async def _tenant_of(self, body: KeyBody, scope: CredentialScope) -> Tenant | None:
        if (scope is CredentialScope.TENANT) != (body.tenant_id is not None):
            raise InvalidInputError(
                "a key with the scope tenant needs tenant_id, one with the scope admin takes none"
            )
        if body.tenant_id is None:
            return None
        return await self._gateway.tenant(parse_tenant_id(body.tenant_id))


def _refuse_repetition(request: Request) -> None:
    """Refuse an idempotency key: the answer, which holds a secret, is not kept to be repeated."""
    if IDEMPOTENCY_KEY in request.headers:
        raise InvalidInputError(
            f"a key is shown once, so making it cannot be repeated; leave {IDEMPOTENCY_KEY} "
            "out, and revoke the key whose answer was lost"
        )


def _answer(record: ApiKeyRecord) -> KeyAnswer:
    return KeyAnswer(
        key_id=record.key_id,
        scope=record.scope.value,
        tenant_id=record.tenant_id,
        label=record.label,
        created_at=record.created_at,
        expires_at=record.expires_at,
        revoked_at=record.revoked_at,
        rotated_at=record.rotated_at,
        previous_until=record.previous_until,
        last_used_at=record.last_used_at,
    )
