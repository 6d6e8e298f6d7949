"""Named operations: registering, listing and removing them. For administrators."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core.errors import OperationNotFoundError
from tenancy.data_isolation.serve.models import (
    NamedOperationAnswer,
    NamedOperationBody,
    NamedOperationsAnswer,
)
from tenancy.data_isolation.serve.openapi import answers, takes
from tenancy.data_isolation.serve.requests import Requests, json_answer, no_content
from tenancy.data_isolation.serve.services import Services


class OperationRoutes:
    """The routes `/v1/operations` and `/v1/operations/{name}`."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._operations = services.named_operations
        self._requests = requests

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["named operations"])
        add = router.add_api_route
        add(
            "/v1/operations",
            self.list,
            methods=["GET"],
            summary="List named operations",
            responses=answers(NamedOperationsAnswer),
        )
        add(
            "/v1/operations/{name}",
            self.show,
            methods=["GET"],
            summary="Show a named operation",
            responses=answers(NamedOperationAnswer),
        )
        add(
            "/v1/operations/{name}",
            self.put,
            methods=["PUT"],
            summary="Register a named operation, or give it another text",
            description="The status is 201 when the name is new, else 200.",
            responses=answers(NamedOperationAnswer, 400, body=True)
            | {201: answers(NamedOperationAnswer)[200]},
            openapi_extra=takes(NamedOperationBody),
        )
        add(
            "/v1/operations/{name}",
            self.remove,
            methods=["DELETE"],
            summary="Remove a named operation",
            status_code=204,
            responses=answers(None, status=204),
        )
        return router

    async def list(self, request: Request) -> Response:
        """Every named operation; their number is limited where they are registered."""
        await self._requests.admin(request)
        found = await self._operations.list()
        answer = NamedOperationsAnswer(
            operations=[NamedOperationAnswer(name=item.name, sql=item.sql) for item in found]
        )
        return json_answer(answer.model_dump())

    async def show(self, request: Request, name: str) -> Response:
        """One named operation."""
        await self._requests.admin(request)
        known = {item.name: item for item in await self._operations.list()}
        if name not in known:
            raise OperationNotFoundError("there is no named operation of that name")
        found = known[name]
        return json_answer(NamedOperationAnswer(name=found.name, sql=found.sql).model_dump())

    async def put(self, request: Request, name: str) -> Response:
        """Register an operation."""
        await self._requests.admin(request)
        body = await self._requests.body(request, NamedOperationBody)
        known = {item.name for item in await self._operations.list()}
        found = await self._operations.register(name, body.sql, replace=True)
        answer = NamedOperationAnswer(name=found.name, sql=found.sql)
        return json_answer(answer.model_dump(), status=200 if name in known else 201)

    async def remove(self, request: Request, name: str) -> Response:
        """Forget an operation."""
        await self._requests.admin(request)
        await self._operations.remove(name)
        return no_content()
