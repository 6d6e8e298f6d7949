"""The HTTP interface as one application, over objects that it is given.

It opens nothing and closes nothing, and needs no Ray, so that it runs in a test as it runs in
service.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from tenancy.data_isolation.core import TenancyError
from tenancy.data_isolation.serve.admission import Admission
from tenancy.data_isolation.serve.authentication import Authenticator
from tenancy.data_isolation.serve.edge import Edge
from tenancy.data_isolation.serve.health_routes import HealthRoutes
from tenancy.data_isolation.serve.http_metrics import HttpMetrics
from tenancy.data_isolation.serve.key_routes import KeyRoutes
from tenancy.data_isolation.serve.move_routes import MoveRoutes
from tenancy.data_isolation.serve.openapi import document
from tenancy.data_isolation.serve.operation_routes import OperationRoutes
from tenancy.data_isolation.serve.problems import (
    VALIDATORS_WORDS,
    InvalidFieldsError,
    for_caller,
    framework_response,
    problem_response,
    unexpected_response,
)
from tenancy.data_isolation.serve.proposal_routes import ProposalRoutes
from tenancy.data_isolation.serve.query_routes import QueryRoutes
from tenancy.data_isolation.serve.request_trace import RequestTraces
from tenancy.data_isolation.serve.requests import Requests
from tenancy.data_isolation.serve.schema_routes import SchemaRoutes
from tenancy.data_isolation.serve.services import Services
from tenancy.data_isolation.serve.tenant_routes import TenantRoutes
from tenancy.data_isolation.serve.watchdog_report import report_path

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DISTRIBUTION = "tenancy-data-isolation"
_DESCRIPTION = """\
Keeps the data of many tenants apart on PostgreSQL. Every answer that is not a success is problem
details (RFC 9457). A tenant's credential reaches that tenant alone: another tenant's name is
answered as one that does not exist."""


def create_api(services: Services, lifespan: Lifespan | None = None) -> Edge:
    """The ASGI application, for one event loop: FastAPI behind our `Edge`.

    `lifespan` is entered before it serves and left last.
    """
    app = _Api(
        title="Tenant data isolation",
        version=version(_DISTRIBUTION),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    admission = Admission(services.settings)
    settings = services.settings
    metrics = HttpMetrics(admission, report_path(settings.home), settings.metrics_top_tenants_max)
    requests = Requests(
        services,
        Authenticator(services.settings, services.credentials, services.clock, services.tokens),
    )
    queries = QueryRoutes(services, requests)
    # FastAPI keeps an included router as one route; its parts are needed to tell of methods.
    app.state.routes = list(app.routes)
    for routes in (
        TenantRoutes(services, requests),
        queries,
        SchemaRoutes(services, requests),
        OperationRoutes(services, requests),
        MoveRoutes(services, requests),
        ProposalRoutes(services, requests),
        KeyRoutes(services, requests),
        HealthRoutes(services, metrics),
    ):
        router = routes.router()
        app.include_router(router)
        app.state.routes += router.routes
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(TenancyError, _known)
    app.add_exception_handler(Exception, _unforeseen)
    return Edge(
        app,
        admission=admission,
        metrics=metrics,
        express=queries.express(),
        traces=None
        if services.tracing is None
        else RequestTraces(services.tracing, settings.traces_per_s_max),
    )


class _Api(FastAPI):
    """FastAPI with our document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made when it is first asked for."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


async def _invalid(request: Request, error: Exception) -> Response:
    """A parameter of the path or behind `?` is not what it must be."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class.
    found = [
        (str(item["loc"][-1]), str(item["msg"]).removeprefix(VALIDATORS_WORDS))
        for item in error.errors()
    ]
    what = "a parameter of the address is not what it must be"
    return problem_response(InvalidFieldsError(found, what=what))


async def _known(request: Request, error: Exception) -> Response:
    """An error of ours."""
    assert isinstance(error, TenancyError)  # noqa: S101 - registered for this class.
    return problem_response(for_caller(error, request.scope))


async def _unforeseen(request: Request, error: Exception) -> Response:
    """An error that no one of ours has thought of."""
    return unexpected_response(error)


async def _refused(request: Request, error: Exception) -> Response:
    """Starlette found no route, or none for this method."""
    response = framework_response(request, error)
    if response.status_code == 405:
        response.headers["Allow"] = ", ".join(_methods(request))
    return response


def _methods(request: Request) -> list[str]:
    """Every method that some route takes at this address (RFC 9110, 15.5.6)."""
    found: set[str] = set()
    for route in request.app.state.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)
