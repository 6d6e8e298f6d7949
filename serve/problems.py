"""Errors as problem details (RFC 9457).

Rules this module keeps:

* every answer that is not a success is `application/problem+json`, those of the framework too;
* `type` is stable: a URN made of the error's slug;
* a tenant that does not exist and one that is not the caller's get the same words; only
  administrators, who may know every name, are told which one it was;
* what was not foreseen is logged under an id, and the answer holds the id and nothing else of it;
* in what an installation is not safe is for operators: the answer names the command that says it.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    NotFoundError,
    TenancyError,
    TenantNotFoundError,
    UnauthenticatedError,
    UnsafeRoleError,
    UnsafeServerError,
)
from tenancy.data_isolation.serve.json_documents import dump_json

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:tenancy:problem:"
_TENANT = "tenancy.tenant_of_admin"
_NAME_CHARACTERS_MAX = 80
_RETRY_AFTER_S = 1.0
#: What pydantic puts in front of an error of ours; it says nothing to a client.
VALIDATORS_WORDS: Final = "Value error, "
_INVALID_FIELDS_MAX = 20
#: Of these, what the text of the error names.
_SHOWN_MAX = 3
#: What JSON has to be there, by pydantic's types of errors: its own words are those of Python.
_KINDS: Final = {
    "model_type": "a JSON object",
    "model_attributes_type": "a JSON object",
    "dict_type": "a JSON object",
    "list_type": "a list",
}
_MUST_BE: Final = "must be "
_FIELD_DETAIL_CHARACTERS_MAX = 200
_RETRY_STATUSES = frozenset({429, 503})
_UNSAFE = "the installation is not safe, so a part of it was not started; run `tenancy doctor`"


class ResourceNotFoundError(NotFoundError):
    """There is nothing at this address; `/openapi.json` lists what there is."""

    slug = "resource-not-found"


class NamedTenantNotFoundError(NotFoundError):
    """There is no tenant of that name: what administrators are told."""

    slug = TenantNotFoundError.slug


class MethodNotAllowedError(InvalidInputError):
    """This address does not take that method; see the `Allow` header."""

    slug, status = "method-not-allowed", 405


class UnsupportedMediaTypeError(InvalidInputError):
    """The body must be JSON; send `Content-Type: application/json`."""

    slug, status = "unsupported-media-type", 415


class RequestTimeoutError(TenancyError):
    """The body of the request did not arrive in time; nothing was done. Send it again."""

    slug, status, retryable = "request-timeout", 408, True


class InvalidFieldsError(InvalidInputError):
    """The body does not have the shape that is needed; `errors` lists what to correct."""

    slug = "invalid-fields"

    def __init__(
        self,
        fields: Sequence[tuple[str, str]],
        *,
        what: str = "the body does not have the shape that is needed",
    ) -> None:
        super().__init__(f"{what}: {_shown(fields)}")
        self._what = what
        #: Names and what is wrong with each, in the order of the body.
        self.fields = tuple(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), what=self._what), (self.fields,)

    @classmethod
    def of(cls, error: ValidationError, shape: type[BaseModel]) -> InvalidFieldsError:
        """What `shape` found wrong, without the values."""
        found = error.errors(include_url=False, include_context=False, include_input=False)
        wrong: dict[str, list[str]] = {}
        for item in found:
            name = ".".join(str(part) for part in _place(item, shape))
            told = wrong.setdefault(name, [])
            detail = _wrong(item, shape)
            if detail not in told:
                told.append(detail)
            if len(wrong) > _INVALID_FIELDS_MAX:
                del wrong[name]
                break
        return cls([(name, _either(told)) for name, told in wrong.items()])


def _shown(fields: Sequence[tuple[str, str]]) -> str:
    """The first things that are wrong, each once, with the names of the first that have it."""
    names: dict[str, list[str]] = {}
    for name, detail in fields:
        names.setdefault(detail, []).append(name or "body")
    return "; ".join(
        ", ".join(several[:_SHOWN_MAX])
        + (" and others" if len(several) > _SHOWN_MAX else "")
        + f": {detail}"
        for detail, several in list(names.items())[:_SHOWN_MAX]
    )


def _place(item: ErrorDetails, shape: type[BaseModel]) -> Sequence[str | int]:
    """Where something is wrong. Pydantic ends it with the kind, where a value may be of several."""
    place = item["loc"]
    if item["type"] in _KINDS and len(place) > 1 and isinstance(place[-1], str):
        above = _shape_at(shape, place[:-2]) if isinstance(place[-2], str) else None
        if above is not None and place[-1] not in above.model_fields:
            return place[:-1] if place[-2] in above.model_fields else place
    return place


def _either(told: Sequence[str]) -> str:
    return " or ".join([told[0], *(detail.removeprefix(_MUST_BE) for detail in told[1:])])


def _wrong(item: ErrorDetails, shape: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        known = ", ".join(_shape_at(shape, item["loc"][:-1]).model_fields)
        return f"there is no such field; the fields are {known}"
    if item["type"] in _KINDS:
        return _MUST_BE + _KINDS[item["type"]]
    return item["msg"].removeprefix(VALIDATORS_WORDS)[:_FIELD_DETAIL_CHARACTERS_MAX]


def _shape_at(shape: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel]:
    """The model of the object at `place` in one of `shape`; places in lists are numbers."""
    for part in place:
        if isinstance(part, str):
            shape = next(_models(shape.model_fields[part].annotation))
    return shape


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def note_tenant(request: Request, name: str | None) -> None:
    """Note which tenant a request is about. Only for an administrator's: it will be told."""
    request.scope[_TENANT] = name


def for_caller(error: TenancyError, scope: Scope) -> TenancyError:
    """`error` as whoever has sent the request may be told of it."""
    name = scope.get(_TENANT)
    if name is None or not isinstance(error, TenantNotFoundError):
        return error
    return NamedTenantNotFoundError(f"There is no tenant {name[:_NAME_CHARACTERS_MAX]!a}.")


def problem(error: TenancyError) -> dict[str, Any]:
    """The problem details of `error`."""
    detail = public_detail(error)
    found: dict[str, Any] = {
        "type": _TYPE_PREFIX + error.slug,
        "title": error.slug.replace("-", " ").capitalize(),
        "status": error.status,
        "detail": detail,
        "retryable": error.retryable,
    }
    if error.sqlstate is not None:
        found["sqlstate"] = error.sqlstate
    if isinstance(error, InvalidFieldsError):
        found["errors"] = [{"field": name, "detail": detail} for name, detail in error.fields]
    return found


def public_detail(error: TenancyError) -> str:
    """What may be told of an error to anybody who can reach the port."""
    match error:
        case TenantNotFoundError():
            # The customer's name must not make two answers differ that have to be the same.
            return TenantNotFoundError().detail
        case UnsafeRoleError() | UnsafeServerError():
            return _UNSAFE
        case _:
            return error.detail


def problem_response(
    error: TenancyError, headers: Mapping[str, str] | None = None, instance: str | None = None
) -> Response:
    """The answer to a request that ended in `error`."""
    body = problem(error)
    if instance is not None:
        body["instance"] = instance
    return Response(
        dump_json(body),
        status_code=error.status,
        headers=dict(headers or {}) | _headers(error),
        media_type=MEDIA_TYPE,
    )


def unexpected_response(error: BaseException) -> Response:
    """The answer to a request that ended in an error nobody foresaw. Logs it."""
    instance = uuid.uuid4().urn
    _log.error("request failed unexpectedly (%s)", instance, exc_info=error)
    return problem_response(
        TenancyError(
            "something went wrong inside the runtime, and whether anything was done is not known; "
            f"its log has the details under {instance}"
        ),
        instance=instance,
    )


def framework_response(request: Request, error: Exception) -> Response:
    """The answer to what Starlette refuses by itself: no such route, no such method, bad form."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone.
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return problem_response(ResourceNotFoundError(), headers)
        case 405:
            return problem_response(MethodNotAllowedError(), headers)
        case 401:
            return problem_response(UnauthenticatedError(), headers)
        case _:
            return problem_response(_unnamed(error), headers)


def _unnamed(error: HTTPException) -> TenancyError:
    """An error of the framework that has no class here, with its status kept."""
    found = TenancyError(str(error.detail))
    # Instance attributes hide the class's: this one status has no class of its own.
    found.status = error.status_code  # type: ignore[misc]
    found.slug = f"http-{error.status_code}"  # type: ignore[misc]
    return found


def _headers(error: TenancyError) -> dict[str, str]:
    found: dict[str, str] = {}
    again = error.retryable and error.status in _RETRY_STATUSES
    if again or error.retry_after_s is not None:
        # Whole seconds (RFC 9110, 10.2.3), never zero.
        found["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or _RETRY_AFTER_S)))
    if error.status == UnauthenticatedError.status:
        found["WWW-Authenticate"] = 'Bearer realm="tenancy"'
    return found
