"""The body of a request: read within its limits, parsed strictly, checked against its shape."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import InvalidInputError, RequestTooLargeError
from tenancy.data_isolation.serve.admission import Admitted
from tenancy.data_isolation.serve.json_documents import parse_json
from tenancy.data_isolation.serve.models import Body
from tenancy.data_isolation.serve.problems import (
    InvalidFieldsError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)

_Shape = TypeVar("_Shape", bound=Body)


async def read_body(request: Request, settings: Settings, admitted: Admitted) -> bytes:
    """The whole body, or the error that says which limit it goes beyond.

    The limit holds while reading: neither a wrong `Content-Length` nor none at all gets more bytes
    into memory than it allows.
    """
    declared = request.headers.get("content-length")
    limit = settings.request_bytes_max
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.request_read_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                admitted.take_bytes(len(part))
                parts.append(part)
    except TimeoutError:
        raise RequestTimeoutError() from None
    except ClientDisconnect:
        # Nobody reads the answer; the request just ends.
        raise asyncio.CancelledError from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_json(request: Request, settings: Settings, admitted: Admitted) -> Any:
    """The JSON document that the body is."""
    text = await read_text(request, settings, admitted)
    return parse_json(text, depth_max=settings.request_depth_max)


async def read_text(request: Request, settings: Settings, admitted: Admitted) -> bytes:
    """The body of a request that says that it is JSON."""
    body = await read_body(request, settings, admitted)
    if not body:
        raise InvalidInputError("the request has no body; send a JSON object")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        raise UnsupportedMediaTypeError()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError("the body must not be compressed; send it as it is")
    return body


async def read_shape(
    request: Request, shape: type[_Shape], settings: Settings, admitted: Admitted
) -> _Shape:
    """The body as an object of that shape; `InvalidFieldsError` lists what is wrong with it."""
    return checked(await read_json(request, settings, admitted), shape)


def checked(value: Any, shape: type[_Shape]) -> _Shape:
    """`value` as an object of that shape; `InvalidFieldsError`."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise InvalidFieldsError.of(error, shape) from None


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"the body is larger than {limit} bytes (TENANCY_REQUEST_BYTES_MAX); send less at a time"
    )
