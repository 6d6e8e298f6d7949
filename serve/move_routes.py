"""Moves of tenants: planning, starting and following them, and asking things of them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core.errors import InvalidInputError, MoveNotFoundError
from tenancy.data_isolation.core.identifiers import (
    TENANT_ID_PATTERN,
    Region,
    ServerName,
    TenantId,
    parse_tenant_id,
    parse_word,
)
from tenancy.data_isolation.core.move import MOVE_ID_PATTERN, Move, MoveId, MoveTarget
from tenancy.data_isolation.serve.move_models import (
    MoveAnswer,
    MoveBody,
    MovePlanAnswer,
    MoveReportAnswer,
    MovesAnswer,
    move_answer,
    move_report,
    plan_answer,
)
from tenancy.data_isolation.serve.openapi import answers, takes
from tenancy.data_isolation.serve.requests import Requests, json_answer
from tenancy.data_isolation.serve.services import Services

_PAGE: Final = 100
_MOVE_ID: Final = re.compile(MOVE_ID_PATTERN)
_TENANT_ID: Final = re.compile(TENANT_ID_PATTERN)


class MoveRoutes:
    """The routes `/v1/tenants/{tenant_id}/moves` and `/v1/moves`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._moves = services.moves
        self._retention_s = services.settings.move_retention_s
        self._requests = requests

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["moves"])
        add = router.add_api_route
        of_tenant = "/v1/tenants/{tenant_id}/moves"
        add(
            of_tenant,
            self.start,
            methods=["POST"],
            summary="Move a tenant to another isolation level, server or region while it is in use",
            description=(
                "The answer comes when the move is recorded; it is carried out behind it, and the "
                "tenant goes on working. With `dry_run` nothing is started, and the answer is the "
                "plan, with everything that stands against the move. A move that cannot be is "
                "refused (409) before anything of it is done."
            ),
            status_code=202,
            responses=answers(MoveAnswer, 409, status=202, body=True) | answers(MovePlanAnswer),
            openapi_extra=takes(MoveBody),
        )
        add(
            of_tenant,
            self.of_tenant,
            methods=["GET"],
            summary="List a tenant's moves, the newest first",
            responses=answers(MovesAnswer, 422),
        )
        add(
            "/v1/moves",
            self.list,
            methods=["GET"],
            summary="List moves, the newest first",
            responses=answers(MovesAnswer, 422),
        )
        one = "/v1/moves/{move_id}"
        add(
            one,
            self.show,
            methods=["GET"],
            summary="Show a move: how far it has come, and the proof of it",
            responses=answers(MoveReportAnswer),
        )
        for name, endpoint, status, summary in (
            ("cancel", self.cancel, 202, "Give a move up; the tenant stays where it is"),
            ("confirm", self.confirm, 202, "Let the tenant stay, and clean up its old place"),
            ("rollback", self.roll_back, 202, "Bring the tenant back, with what it has written"),
            (
                "abandon",
                self.abandon,
                202,
                "Settle a move of which a server is lost for good: the one that the tenant is "
                "not at",
            ),
            ("pause", self.pause, 200, "Let a move stand still; the tenant goes on working"),
            ("resume", self.resume, 200, "Let a move that was paused go on"),
        ):
            add(
                f"{one}/{name}",
                endpoint,
                methods=["POST"],
                summary=summary,
                status_code=status,
                responses=answers(MoveAnswer, 409, status=status),
            )
        return router

    async def start(self, request: Request, tenant_id: str) -> Response:
        """Start a move, or only plan it."""
        tenant = await self._requests.tenant_as_admin(request, tenant_id)
        body = await self._requests.body(request, MoveBody)
        body.check()
        target = _target(body)
        if body.dry_run:
            plan = plan_answer(await self._moves.plan(tenant, target))
            return json_answer(plan.model_dump(mode="json"))
        move = await self._moves.start(tenant, target, priority=body.priority)
        return self._told(move, 202, {"Location": f"/v1/moves/{move.move_id}"})

    async def of_tenant(
        self,
        request: Request,
        tenant_id: str,
        after: str | None = None,
        limit: int = _PAGE,
        unsettled: bool = False,
    ) -> Response:
        """One page of a tenant's moves."""
        caller, tenant = await self._requests.caller_of(request, tenant_id)
        for_admin = caller.tenant_id is None
        return await self._page(tenant, after, limit, unsettled, for_admin=for_admin)

    async def list(
        self,
        request: Request,
        tenant_id: str | None = None,
        after: str | None = None,
        limit: int = _PAGE,
        unsettled: bool = False,
    ) -> Response:
        """One page of moves."""
        await self._requests.admin(request)
        tenant = None if tenant_id is None else parse_tenant_id(tenant_id)
        return await self._page(tenant, after, limit, unsettled, for_admin=True)

    async def show(self, request: Request, move_id: str) -> Response:
        """One move, for administrators and for the tenant that it moves."""
        caller = await self._requests.caller(request)
        move = await self._moves.move(_checked(move_id))
        if caller.tenant_id not in (None, move.tenant_id):
            # In the words for a move that does not exist.
            raise _no_move(move_id)
        answer = move_report(move, self._retention_s, for_admin=caller.tenant_id is None)
        return json_answer(answer.model_dump(mode="json"))

    async def cancel(self, request: Request, move_id: str) -> Response:
        """Give the move up."""
        return await self._asked(request, move_id, self._moves.cancel)

    async def confirm(self, request: Request, move_id: str) -> Response:
        """Let the tenant stay."""
        return await self._asked(request, move_id, self._moves.confirm)

    async def roll_back(self, request: Request, move_id: str) -> Response:
        """Bring the tenant back."""
        return await self._asked(request, move_id, self._moves.roll_back)

    async def abandon(self, request: Request, move_id: str) -> Response:
        """Wait no more for the server of the other side."""
        return await self._asked(request, move_id, self._moves.abandon)

    async def pause(self, request: Request, move_id: str) -> Response:
        """Let the move stand still."""
        return await self._asked(request, move_id, self._moves.pause, status=200)

    async def resume(self, request: Request, move_id: str) -> Response:
        """Let the move go on."""
        return await self._asked(request, move_id, self._moves.resume, status=200)

    async def _asked(
        self,
        request: Request,
        move_id: str,
        ask: Callable[[str], Awaitable[Move]],
        *,
        status: int = 202,
    ) -> Response:
        await self._requests.admin(request)
        return self._told(await ask(_checked(move_id)), status)

    async def _page(
        self,
        tenant_id: TenantId | None,
        after: str | None,
        limit: int,
        unsettled: bool,
        *,
        for_admin: bool,
    ) -> Response:
        before = None if after is None else await self._before(tenant_id, after)
        page = await self._moves.moves(
            before=before, tenant_id=tenant_id, unsettled=unsettled, limit=limit
        )
        answer = MovesAnswer(
            moves=[move_answer(move, self._retention_s, for_admin=for_admin) for move in page],
            next=page[-1].move_id if len(page) == limit else None,
        )
        return json_answer(answer.model_dump(mode="json"))

    async def _before(self, tenant_id: TenantId | None, after: str) -> MoveId:
        """The move that a page begins behind; it has to be one that can be listed there."""
        try:
            move = await self._moves.move(_checked(after))
            if tenant_id not in (None, move.tenant_id):
                raise _no_move(after)
        except MoveNotFoundError as error:
            raise InvalidInputError(f"after: {error.detail}") from None
        return move.move_id

    def _told(self, move: Move, status: int, headers: dict[str, str] | None = None) -> Response:
        # Only administrators start moves, and ask things of them.
        answer = move_answer(move, self._retention_s, for_admin=True)
        return json_answer(answer.model_dump(mode="json"), status=status, headers=headers)


def _target(body: MoveBody) -> MoveTarget:
    return MoveTarget(
        level=body.isolation_level,
        server=None if body.server is None else ServerName(parse_word(body.server, "server")),
        region=None if body.region is None else Region(parse_word(body.region, "region")),
    )


def _checked(move_id: str) -> MoveId:
    """The id, when there can be a move of it."""
    if not _MOVE_ID.fullmatch(move_id):
        # Often it is the tenant's.
        tenant = move_id if _TENANT_ID.fullmatch(move_id) else "TENANT"
        raise MoveNotFoundError(
            f"there is no move {move_id[:80]}: a move's id is m_ and 20 hexadecimal digits; "
            f"`tenancy move list --tenant {tenant}` lists the moves of a tenant"
        )
    return MoveId(move_id)


def _no_move(move_id: str) -> MoveNotFoundError:
    return MoveNotFoundError(f"there is no move {move_id[:80]}")
