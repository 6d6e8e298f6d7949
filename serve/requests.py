"""What every route does first and last: who asks, what for, and the answer as JSON."""

from __future__ import annotations

from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.serve.admission import Admitted
from tenancy.data_isolation.serve.authentication import Authenticator, Caller
from tenancy.data_isolation.serve.edge import admitted
from tenancy.data_isolation.serve.json_documents import dump_json, parse_json
from tenancy.data_isolation.serve.models import Body
from tenancy.data_isolation.serve.problems import note_tenant
from tenancy.data_isolation.serve.request_bodies import checked, read_json, read_shape, read_text
from tenancy.data_isolation.serve.request_trace import authenticated
from tenancy.data_isolation.serve.services import Services

_JSON = "application/json"
_Shape = TypeVar("_Shape", bound=Body)


class Requests:
    """Reads requests on behalf of the routes. Belongs to one event loop."""

    def __init__(self, services: Services, authenticator: Authenticator) -> None:
        self._settings = services.settings
        self._authenticator = authenticator

    async def admin(self, request: Request) -> None:
        """Let administrators pass; `UnauthenticatedError`, `AccessDeniedError`."""
        check_parameters(request)
        (await self._known(request)).require_admin()
        note_tenant(request, request.query_params.get("tenant_id"))

    async def tenant(self, request: Request, name: str) -> TenantId:
        """The tenant that the path names, when the caller reaches it.

        The request counts as one of the tenant's from now on (`RateLimitedError`).
        """
        return (await self.caller_of(request, name))[1]

    async def tenant_as_admin(self, request: Request, name: str) -> TenantId:
        """The tenant that the path names, for what only administrators may do to it.

        A tenant's credential gets 404 for another tenant, and 403 for its own.
        """
        caller, tenant_id = await self.caller_of(request, name)
        caller.require_admin()
        return tenant_id

    async def caller(self, request: Request) -> Caller:
        """The caller, for a path that names no tenant.

        The request counts as one of the caller's, when that is a tenant (`RateLimitedError`).
        """
        check_parameters(request)
        caller = await self._known(request)
        if caller.tenant_id is not None:
            admitted(request).take_tenant(caller.tenant_id)
        return caller

    async def caller_of(self, request: Request, name: str) -> tuple[Caller, TenantId]:
        """The caller, and the tenant that the path names."""
        check_parameters(request)
        caller = await self._known(request)
        if caller.tenant_id is None:
            note_tenant(request, name)
        tenant_id = caller.reach(name)
        admitted(request).take_tenant(tenant_id)
        return caller, tenant_id

    async def _known(self, request: Request) -> Caller:
        """Who sends the request; `UnauthenticatedError`."""
        caller = await self._authenticator.caller(request.headers)
        authenticated(request.scope)
        return caller

    async def body(self, request: Request, shape: type[_Shape]) -> _Shape:
        """The body as an object of that shape."""
        return await read_shape(request, shape, self._settings, admitted(request))

    async def text(self, request: Request) -> bytes:
        """The body, which says that it is JSON and has not been read as such."""
        return await read_text(request, self._settings, admitted(request))

    def shaped(self, text: bytes, shape: type[_Shape]) -> _Shape:
        """The body `text` as an object of that shape."""
        return checked(parse_json(text, depth_max=self._settings.request_depth_max), shape)

    async def json(self, request: Request) -> Any:
        """The body as a JSON value."""
        return await read_json(request, self._settings, admitted(request))

    def admitted(self, request: Request) -> Admitted:
        """What the request was given when it was let in."""
        return admitted(request)


def check_parameters(request: Request) -> None:
    """Refuse parameters behind `?` that the route does not have: they would have no effect."""
    if not request.scope.get("query_string"):
        return
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = [item.alias for item in dependant.query_params] if dependant is not None else []
    for name in request.query_params:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InvalidInputError(
                f"there is no parameter {name[:60]!r} here; this address takes {listed}"
            )


def json_answer(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`value` as the answer."""
    return json_text(dump_json(value), status=status, headers=headers)


def json_text(text: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that is written already as the answer."""
    return Response(text, status_code=status, headers=headers, media_type=_JSON)


def no_content() -> Response:
    """The answer when there is nothing to tell."""
    return Response(status_code=204)
