"""Proposals to move tenants: listing them, and deciding about them. For administrators."""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core.errors import InvalidInputError, ProposalNotFoundError
from tenancy.data_isolation.core.identifiers import parse_tenant_id
from tenancy.data_isolation.core.proposal import PROPOSAL_ID_PATTERN, ProposalId, ProposalState
from tenancy.data_isolation.serve.move_models import MoveAnswer, move_answer
from tenancy.data_isolation.serve.openapi import answers, takes
from tenancy.data_isolation.serve.proposal_models import (
    AcceptBody,
    DismissBody,
    ProposalAnswer,
    ProposalsAnswer,
    orchestration_answer,
    proposal_answer,
)
from tenancy.data_isolation.serve.requests import Requests, json_answer
from tenancy.data_isolation.serve.services import Services

_PAGE: Final = 100
_PROPOSAL_ID: Final = re.compile(PROPOSAL_ID_PATTERN)


class ProposalRoutes:
    """The routes `/v1/proposals`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._proposals = services.proposals
        self._retention_s = services.settings.move_retention_s
        self._requests = requests

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["proposals"])
        add = router.add_api_route
        add(
            "/v1/proposals",
            self.list,
            methods=["GET"],
            summary="List proposals to move tenants, the newest first",
            description=(
                "What tenants do is measured, whoever sends their operations. One that belongs at "
                "another level, or into another region, is proposed to be moved, and moved when "
                "TENANCY_ORCHESTRATION is automatic."
            ),
            responses=answers(ProposalsAnswer, 422),
        )
        one = "/v1/proposals/{proposal_id}"
        add(
            one,
            self.show,
            methods=["GET"],
            summary="Show a proposal, with everything that was done about it",
            responses=answers(ProposalAnswer),
        )
        add(
            f"{one}/accept",
            self.accept,
            methods=["POST"],
            summary="Start the move that is proposed",
            description="It is planned first. One that cannot be is refused (409).",
            status_code=202,
            responses=answers(MoveAnswer, 409, status=202, body=True),
            openapi_extra=takes(AcceptBody),
        )
        add(
            f"{one}/dismiss",
            self.dismiss,
            methods=["POST"],
            summary="Turn a proposal down; the tenant gets no other for a while",
            responses=answers(ProposalAnswer, 409, body=True),
            openapi_extra=takes(DismissBody),
        )
        return router

    async def list(
        self,
        request: Request,
        tenant_id: str | None = None,
        state: ProposalState | None = None,
        after: str | None = None,
        limit: int = _PAGE,
    ) -> Response:
        """One page of proposals."""
        await self._requests.admin(request)
        tenant = None if tenant_id is None else parse_tenant_id(tenant_id)
        before = None if after is None else await self._before(after)
        page = await self._proposals.proposals(
            before=before, tenant_id=tenant, state=state, limit=limit
        )
        answer = ProposalsAnswer(
            proposals=[proposal_answer(item) for item in page],
            next=page[-1].proposal_id if len(page) == limit else None,
            orchestration=orchestration_answer(await self._proposals.orchestrator()),
        )
        return json_answer(answer.model_dump(mode="json"))

    async def show(self, request: Request, proposal_id: str) -> Response:
        """One proposal."""
        await self._requests.admin(request)
        proposal = await self._proposals.proposal(_checked(proposal_id))
        return json_answer(proposal_answer(proposal).model_dump(mode="json"))

    async def accept(self, request: Request, proposal_id: str) -> Response:
        """Start the move that is proposed."""
        await self._requests.admin(request)
        body = await self._requests.body(request, AcceptBody)
        move = await self._proposals.accept(_checked(proposal_id), priority=body.priority)
        answer = move_answer(move, self._retention_s, for_admin=True)
        return json_answer(
            answer.model_dump(mode="json"),
            status=202,
            headers={"Location": f"/v1/moves/{move.move_id}"},
        )

    async def dismiss(self, request: Request, proposal_id: str) -> Response:
        """Turn a proposal down."""
        await self._requests.admin(request)
        body = await self._requests.body(request, DismissBody)
        proposal = await self._proposals.dismiss(_checked(proposal_id), reason=body.reason)
        return json_answer(proposal_answer(proposal).model_dump(mode="json"))

    async def _before(self, after: str) -> ProposalId:
        """The proposal that a page begins behind."""
        try:
            return (await self._proposals.proposal(_checked(after))).proposal_id
        except ProposalNotFoundError as error:
            raise InvalidInputError(f"after: {error.detail}") from None


def _checked(proposal_id: str) -> ProposalId:
    """The id, when there can be a proposal of it."""
    if not _PROPOSAL_ID.fullmatch(proposal_id):
        raise ProposalNotFoundError(f"there is no proposal {proposal_id[:80]}")
    return ProposalId(proposal_id)
