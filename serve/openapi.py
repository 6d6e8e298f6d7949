"""The OpenAPI document: what FastAPI knows of the routes, with bodies, problems and credentials.

Bodies are read by `request_bodies`, more strictly than FastAPI would, so FastAPI does not see their
shapes; routes name them with `takes` and the document gets them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from tenancy.data_isolation.core.identifiers import TENANT_ID_PATTERN, WORD_PATTERN
from tenancy.data_isolation.core.move import MOVE_ID_PATTERN
from tenancy.data_isolation.core.proposal import PROPOSAL_ID_PATTERN
from tenancy.data_isolation.serve import models, problems
from tenancy.data_isolation.serve.media_types import MediaType

_REFERENCE = "#/components/schemas/{model}"
_SECURITY = {
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`tk_...`), with the scope `admin` or `tenant`.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JSON Web Token of the configured issuer that names a tenant.",
    },
}
_PROBLEMS: Mapping[int, str] = {
    400: "PostgreSQL refused the statement.",
    401: "No valid credential.",
    403: "The credential does not reach that far, or the statement is not allowed.",
    404: "There is no such thing, or it is not the caller's.",
    406: "The answer cannot be given in a form that `Accept` allows.",
    408: "The body did not arrive in time.",
    409: "It does not fit the present state.",
    413: "A limit of size was reached.",
    415: "The body is not JSON.",
    422: "A value is not acceptable.",
    429: "Too much at a time; see `Retry-After`.",
    500: "Something went wrong; whether anything was done is not known.",
    503: "Something that is needed does not answer; see `Retry-After`.",
    504: "The statement ran longer than its limit.",
}
_STREAMED = (
    " By `Accept` it is a stream instead. `application/x-ndjson`: for each operation a line "
    "`{operation, columns, row_count}` and a line with an array for each row, or a line "
    "`{operation, error}`; the last line is `{end: {operations, errors}}`. "
    "`application/vnd.apache.arrow.stream`: for each operation an IPC stream with the same in its "
    "schema's metadata (`tenancy.operation`, `tenancy.row_count`, `tenancy.error`), then one "
    "with `tenancy.end`. A body without that end is not whole."
)
_LINES = (
    '{"operation":0,"columns":[{"name":"id","type":"bigint"}],"row_count":2}\n[1]\n[2]\n'
    '{"end":{"operations":1,"errors":0}}\n'
)
#: What FastAPI would answer to a wrong parameter; we do not.
_DEFAULT_SHAPES = ("HTTPValidationError", "ValidationError")
_ALWAYS = (500, 503)
_WITH_BODY = (408, 413, 415, 422)
_WITH_CREDENTIAL = (401, 403, 404, 429)

#: Forms of parameters that `core` checks, with a better word on what is wrong than a pattern has.
_FORMS: Mapping[str, Mapping[str, Any]] = {
    "tenant_id": {"pattern": f"^{TENANT_ID_PATTERN}$"},
    "name": {"pattern": f"^{WORD_PATTERN}$"},
    "key_id": {"pattern": "^[0-9a-f]{16}$"},
    "move_id": {"pattern": f"^{MOVE_ID_PATTERN}$"},
    "proposal_id": {"pattern": f"^{PROPOSAL_ID_PATTERN}$"},
    "limit": {"minimum": 1},
}

#: Of which form the `after` of a listing is.
_LISTED_BY: Mapping[str, str] = {
    "/v1/tenants": "tenant_id",
    "/v1/moves": "move_id",
    "/v1/proposals": "proposal_id",
    "/v1/tenants/{tenant_id}/moves": "move_id",
}

_WAIT = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string", "examples": ["wait=5"]},
    "description": (
        "`wait=<seconds>` (RFC 7240): how long to wait at most. The statement is cancelled then. "
        "The runtime's own limit holds in any case. The answer has `Preference-Applied`."
    ),
}
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {
        "type": "string",
        "maxLength": 200,
        # As it is, or as a string of structured fields (RFC 8941, 3.3.3).
        "pattern": r'^("([ !#-\[\]-~]|\\["\\])+"|[!#-\[\]-~]+)$',
        "examples": ["8e03978e-40d5-43dd-bc93"],
    },
    "description": (
        "With the same key and the same request, a write takes effect once, however often it is "
        "sent; the answer is the first one. The same key with another request is a conflict (409)."
    ),
}


def takes(shape: type[models.Body], *, options: bool = False) -> dict[str, Any]:
    """What a route's `openapi_extra` says about its body and the headers of `RequestOptions`."""
    reference = {"$ref": _REFERENCE.format(model=shape.__name__)}
    found: dict[str, Any] = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }
    return found | (option_headers() if options else {})


def option_headers(*, wait: bool = True) -> dict[str, Any]:
    """The headers of `RequestOptions`, for `openapi_extra`."""
    return {"parameters": [_WAIT, _IDEMPOTENCY] if wait else [_IDEMPOTENCY]}


def answers(
    shape: type[models.Answer] | None,
    *problem_statuses: int,
    status: int = 200,
    body: bool = False,
    credential: bool = True,
) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: what it gives, and the problems that there can be."""
    statuses = {*problem_statuses, *_ALWAYS}
    statuses |= {*_WITH_BODY} if body else set()
    statuses |= {*_WITH_CREDENTIAL} if credential else set()
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": shape, "description": (shape.__doc__ or "").partition("\n")[0]}
        if shape is not None
        else {"description": "Done."}
    }
    for code in sorted(statuses):
        found[code] = _problem(code)
    return found


def streams(found: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route whose results can be had as streams as well."""
    lines = {"schema": {"type": "string"}, "examples": {"rows": {"value": _LINES}}}
    frames = {"schema": {"type": "string", "format": "binary"}}
    found[200]["description"] += _STREAMED
    found[200]["content"] = {MediaType.NDJSON: lines, MediaType.ARROW: frames}
    found[406] = _problem(406)
    return found


def _problem(status: int) -> dict[str, Any]:
    """A response that is problem details."""
    reference = {"$ref": _REFERENCE.format(model=models.ProblemAnswer.__name__)}
    return {
        "description": _PROBLEMS[status],
        "content": {problems.MEDIA_TYPE: {"schema": reference}},
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document. Made once per application."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
    )
    components = found.setdefault("components", {})
    components["securitySchemes"] = _SECURITY
    _, shapes = models_json_schema(
        [(shape, "validation") for shape in _named_shapes()], ref_template=_REFERENCE
    )
    components["schemas"] = components.get("schemas", {}) | shapes["$defs"]
    _drop_defaults(found)
    for path, item in found["paths"].items():
        for operation in item.values():
            operation["security"] = (
                [{name: []} for name in _SECURITY] if path.startswith("/v1/") else []
            )
            _tell_forms(path, operation)
    return found


def _tell_forms(path: str, operation: dict[str, Any]) -> None:
    """Say which form parameters have."""
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if name == "after":
            name = _LISTED_BY.get(path, name)
        form = _FORMS.get(name, {})
        schema = parameter["schema"]
        for shape in schema.get("anyOf", [schema]):
            if shape.get("type") != "null":
                shape |= form


def _drop_defaults(found: dict[str, Any]) -> None:
    """Put our problem in place of what FastAPI says of a wrong parameter.

    It adds a 422 of its own to every route that has parameters and names none itself; `_invalid` of
    the application answers these, as problem details.
    """
    for name in _DEFAULT_SHAPES:
        found["components"]["schemas"].pop(name, None)
    for item in found["paths"].values():
        for operation in item.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = _problem(422)


def _named_shapes() -> Iterable[type[models.Body] | type[models.Answer]]:
    """Every body, and the problem details."""
    yield from models.Body.__subclasses__()
    yield models.ProblemAnswer
