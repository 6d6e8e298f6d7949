"""Statements of tenants: one, several, or a named operation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core import Operation, TenantContext
from tenancy.data_isolation.core.errors import InvalidInputError, RequestTooLargeError
from tenancy.data_isolation.serve.edge import Express
from tenancy.data_isolation.serve.media_types import MediaType, chosen
from tenancy.data_isolation.serve.models import (
    BatchAnswer,
    BatchBody,
    OperationAnswer,
    Params,
    QueryAnswer,
    QueryBody,
)
from tenancy.data_isolation.serve.openapi import answers, option_headers, streams, takes
from tenancy.data_isolation.serve.operation_gateway import following
from tenancy.data_isolation.serve.plain_bodies import plain_batch, plain_statement
from tenancy.data_isolation.serve.request_options import RequestOptions
from tenancy.data_isolation.serve.requests import Requests, json_answer, json_text
from tenancy.data_isolation.serve.result_json import batch_json
from tenancy.data_isolation.serve.result_stream import NdjsonStream, Outcomes, ResultStream
from tenancy.data_isolation.serve.services import Services
from tenancy.data_isolation.serve.streamed_answer import StreamedAnswer

_STATEMENT_PROBLEMS = (400, 409, 413, 504)
#: UTF-8 takes so many bytes for a character at most.
_CHARACTER_BYTES_MAX = 4
_ACCEPT = "accept"


class QueryRoutes:
    """The routes below `/v1/tenants/{tenant_id}/` that work on the tenant's data."""

    def __init__(self, services: Services, requests: Requests) -> None:
        self._settings = services.settings
        self._gateway = services.gateway
        self._orchestrator = services.orchestrator
        self._requests = requests

    def express(self) -> Express:
        """The endpoints that the edge calls without FastAPI in between."""
        return {"query": self.query, "batch": self.batch}

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["data"])
        add = router.add_api_route
        add(
            "/v1/tenants/{tenant_id}/query",
            self.query,
            methods=["POST"],
            summary="Run one statement",
            responses=streams(answers(QueryAnswer, *_STATEMENT_PROBLEMS, body=True)),
            openapi_extra=takes(QueryBody, options=True),
        )
        add(
            "/v1/tenants/{tenant_id}/batch",
            self.batch,
            methods=["POST"],
            summary="Run several statements",
            description=(
                "Each has its own result or error, unless `atomic` is true. With an idempotency "
                "key each of the statements takes effect once."
            ),
            responses=streams(answers(BatchAnswer, *_STATEMENT_PROBLEMS, body=True)),
            openapi_extra=takes(BatchBody, options=True),
        )
        add(
            "/v1/tenants/{tenant_id}/operations/{name}",
            self.operation,
            methods=["POST"],
            summary="Run a named operation",
            description=(
                "A registered name runs its SQL. Otherwise `query` in the body is the SQL. "
                "Otherwise `<verb>_<table>` (create, get, list, update, delete, upsert) acts on "
                "the tenant's table. The body's other fields are the values."
            ),
            responses=answers(OperationAnswer, *_STATEMENT_PROBLEMS, body=True),
            openapi_extra=option_headers() | _ANY_OBJECT,
        )
        return router

    async def query(self, request: Request, tenant_id: str) -> Response:
        """Run one statement."""
        tenant = await self._requests.tenant(request, tenant_id)
        form = chosen(request.headers.getlist(_ACCEPT))
        options = RequestOptions.of(request.headers, self._settings)
        text = await self._requests.text(request)
        statement = plain_statement(text, depth_max=self._settings.request_depth_max)
        if statement is None:
            body = self._requests.shaped(text, QueryBody)
            statement = body.query, body.params
        operation = self._operation(*statement, options, options.idempotency_key)
        if form is not MediaType.JSON:
            self._requests.admitted(request).take_stream(tenant)
        result = await self._gateway.execute(tenant, operation)
        if form is not MediaType.JSON:
            return await self._streamed([result], form, options)
        return json_answer(result, headers=options.answer_headers())

    async def batch(self, request: Request, tenant_id: str) -> Response:
        """Run several statements."""
        tenant = await self._requests.tenant(request, tenant_id)
        form = chosen(request.headers.getlist(_ACCEPT))
        options = RequestOptions.of(request.headers, self._settings)
        statements, atomic = await self._statements(request)
        limit = self._settings.batch_operations_max
        if len(statements) > limit:
            raise RequestTooLargeError(
                f"the batch has {len(statements)} operations; {limit} is the limit "
                "(TENANCY_BATCH_OPERATIONS_MAX)"
            )
        key = options.idempotency_key
        # What happens together has one key; what happens apart has one for each.
        operations = [
            self._operation(
                query, params, options, key if key is None or atomic else f"{key}/{position}"
            )
            for position, (query, params) in enumerate(statements)
        ]
        if form is not MediaType.JSON:
            self._requests.admitted(request).take_stream(tenant)
        results: Outcomes = []
        if operations:
            results = await self._gateway.execute_batch(tenant, operations, atomic=atomic)
        if form is not MediaType.JSON:
            return await self._streamed(results, form, options)
        return json_text(batch_json(results), headers=options.answer_headers())

    async def operation(self, request: Request, tenant_id: str, name: str) -> Response:
        """Run a named operation through the orchestrator."""
        tenant = await self._requests.tenant(request, tenant_id)
        options = RequestOptions.of(request.headers, self._settings)
        data = await self._requests.json(request)
        if not isinstance(data, dict):
            raise InvalidInputError("the body must be a JSON object with the operation's values")
        self._check_data(data)
        with following(options):
            result = await self._orchestrator.isolate_data(
                TenantContext(tenant_id=tenant), name, data
            )
        return json_answer(result, headers=options.answer_headers())

    async def _streamed(
        self, outcomes: Outcomes, form: MediaType, options: RequestOptions
    ) -> Response:
        stream = NdjsonStream() if form is MediaType.NDJSON else await asyncio.to_thread(_arrow)
        return await StreamedAnswer.begun(
            outcomes, stream, self._settings, options.answer_headers()
        )

    async def _statements(self, request: Request) -> tuple[list[tuple[str, Params]], bool]:
        """The statements of a batch, and whether they are one transaction."""
        text = await self._requests.text(request)
        plain = plain_batch(text, depth_max=self._settings.request_depth_max)
        if plain is not None:
            return plain
        body = self._requests.shaped(text, BatchBody)
        return [(item.query, item.params) for item in body.operations], body.atomic

    def _operation(
        self, query: str, params: Params, options: RequestOptions, key: str | None
    ) -> Operation:
        self._check_sizes(query, params)
        return Operation(
            query=query,
            params=params,
            deadline_s=options.deadline_s,
            idempotency_key=key,
        )

    def _check_data(self, data: dict[str, Any]) -> None:
        query, params = data.get("query"), data.get("params")
        values: Any = params if isinstance(params, list | dict) else ()
        self._check_sizes(query if isinstance(query, str) else "", values)
        self._check_sizes("", data)

    def _check_sizes(self, query: str, params: Sequence[Any] | dict[str, Any]) -> None:
        """Raise `RequestTooLargeError` for what is longer than a limit."""
        limit = self._settings.statement_bytes_max
        if len(query) * _CHARACTER_BYTES_MAX > limit and len(query.encode()) > limit:
            raise RequestTooLargeError(
                f"the statement is longer than {limit} bytes (TENANCY_STATEMENT_BYTES_MAX)"
            )
        most = self._settings.statement_params_max
        if len(params) > most:
            raise RequestTooLargeError(
                f"the statement has {len(params)} parameters; {most} is the limit "
                "(TENANCY_STATEMENT_PARAMS_MAX)"
            )


_ANY_OBJECT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "additionalProperties": True},
                "examples": {
                    "values": {"value": {"id": 123, "email": "a@example.com"}},
                    "sql": {"value": {"query": "SELECT * FROM users WHERE id = $1", "params": [1]}},
                },
            }
        },
    }
}


def _arrow() -> ResultStream:
    # Imported late: pyarrow takes half a second and 50 MB, and most processes never need it.
    from tenancy.data_isolation.serve.arrow_stream import ArrowStream

    return ArrowStream()
