"""Processor time of the parts of a request that were chosen between, in this process.

The same requests through FastAPI as most write it, through plain Starlette, through a bare ASGI
function and through the endpoint of this product, with a way to tenants behind them that answers at
once; and JSON by the libraries that there are.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
from fastapi import FastAPI
from report import Figure, figure
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tenancy.data_isolation.core import Operation, QueryResult, Settings
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.types import Column
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.serve.api import create_api
from tenancy.data_isolation.serve.json_documents import dump_json, parse_json
from tenancy.data_isolation.serve.models import BatchBody, QueryBody
from tenancy.data_isolation.serve.plain_bodies import plain_batch, plain_statement
from tenancy.data_isolation.serve.request_bodies import checked
from tenancy.data_isolation.serve.result_json import batch_json
from tenancy.data_isolation.serve.services import Services

_BATCH = 50
#: The least of so many rounds: what else runs only ever adds to one.
_ROUNDS = 9
_TIMES = 300
_SQL = "select bal from users where id = $1"
_PATHS = ("/v1/tenants/acme/query", "/v1/tenants/acme/batch")
_COLUMNS = (Column(name="bal", type="bigint"),)
_TEXTS = (
    orjson.dumps({"query": _SQL, "params": [7]}),
    orjson.dumps({"operations": [{"query": _SQL, "params": [i]} for i in range(_BATCH)]}),
)
_SIZES = ("one statement", f"batch of {_BATCH}")


def parts() -> list[Figure]:
    """The figures."""
    return [*_json(), *asyncio.run(_frameworks())]


class _AtOnce:
    """A way to tenants that has the answers already."""

    def __init__(self) -> None:
        self._results = [_result(row) for row in range(_BATCH)]

    async def execute(self, _: str, operation: Operation) -> QueryResult:
        return self._results[0]

    async def execute_batch(
        self, _: str, operations: list[Operation], *, atomic: bool = False
    ) -> list[QueryResult]:
        return list(self._results[: len(operations)])


def _result(row: int) -> QueryResult:
    return QueryResult(columns=_COLUMNS, rows=[[row * 1_000]], row_count=1)


# JSON


class _Statement(msgspec.Struct, forbid_unknown_fields=True):
    query: str
    params: list[Any] = []


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    operations: list[_Statement]
    atomic: bool = False


def _json() -> Iterator[Figure]:
    depth = 64
    one, many = _TEXTS
    read_one, read_many = msgspec.json.Decoder(_Statement), msgspec.json.Decoder(_Batch)
    write = msgspec.json.Encoder().encode
    result, results = _result(1), [_result(row) for row in range(_BATCH)]
    ways: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (
            "read and check: json, strict, and pydantic",
            lambda: checked(parse_json(one, depth_max=depth), QueryBody),
            lambda: checked(parse_json(many, depth_max=depth), BatchBody),
        ),
        (
            "read and check: orjson and pydantic",
            lambda: checked(orjson.loads(one), QueryBody),
            lambda: checked(orjson.loads(many), BatchBody),
        ),
        (
            "read and check: msgspec structs",
            lambda: read_one.decode(one),
            lambda: read_many.decode(many),
        ),
        (
            "read and check: orjson, strict, if plain",
            lambda: plain_statement(one, depth_max=depth),
            lambda: plain_batch(many, depth_max=depth),
        ),
        (
            "write: json",
            lambda: json.dumps(_plain([result])[0]),
            lambda: json.dumps({"results": _plain(results)}),
        ),
        ("write: orjson", lambda: dump_json(result), lambda: dump_json({"results": results})),
        ("write: msgspec", lambda: write(result), lambda: write({"results": results})),
        ("write: orjson, columns once", lambda: batch_json([result]), lambda: batch_json(results)),
    ]
    for name, single, batch in ways:
        for size, work in zip(_SIZES, (single, batch), strict=True):
            yield figure(f"{name}: {size}", _least(work), "us")


def _plain(results: list[QueryResult]) -> list[Any]:
    return [
        {
            "columns": [{"name": item.name, "type": item.type} for item in result.columns],
            "rows": result.rows,
            "row_count": result.row_count,
        }
        for result in results
    ]


def _least(work: Callable[[], Any]) -> float:
    """Microseconds of processor time."""
    found = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_TIMES):
            work()
        found.append((time.process_time() - began) / _TIMES)
    return min(found) * 1e6


# Frameworks


async def _frameworks() -> list[Figure]:
    gateway = _AtOnce()
    ways = (
        ("FastAPI, models, its own JSON", _fastapi(gateway)),
        ("Starlette, orjson and pydantic", _starlette(gateway)),
        ("bare ASGI, msgspec", _bare(gateway)),
        ("the endpoint: all checks, limits and figures", _endpoint(gateway)),
    )
    found = []
    for name, app in ways:
        for size, path, text in zip(_SIZES, _PATHS, _TEXTS, strict=True):
            found.append(figure(f"{name}: {size}", await _cost(app, path, text), "us"))
    return found


async def _cost(app: Any, path: str, text: bytes) -> float:
    least = float("inf")
    for _ in range(_ROUNDS):
        gc.collect()
        began = time.process_time()
        for _ in range(_TIMES):
            await _ask(app, path, text)
        least = min(least, (time.process_time() - began) / _TIMES)
    return least * 1e6


async def _ask(app: Any, path: str, text: bytes) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"authorization", b"Bearer tk_0123456789abcdef_0123456789abcdef0123456789abcdef"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(text)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    status = 0

    async def receive() -> Any:
        return {"type": "http.request", "body": text, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    if status != 200:
        raise SystemExit(f"{path}: {status}")


def _fastapi(gateway: _AtOnce) -> Any:
    app = FastAPI()

    @app.post("/v1/tenants/{tenant_id}/query")
    async def query(tenant_id: str, body: QueryBody) -> Any:
        operation = Operation(query=body.query, params=body.params)
        return await gateway.execute(tenant_id, operation)

    @app.post("/v1/tenants/{tenant_id}/batch")
    async def batch(tenant_id: str, body: BatchBody) -> Any:
        operations = [Operation(query=item.query, params=item.params) for item in body.operations]
        return {"results": await gateway.execute_batch(tenant_id, operations)}

    # What annotations name is of this function, where FastAPI does not look.
    return app


def _starlette(gateway: _AtOnce) -> Any:
    async def query(request: Request) -> Response:
        body = checked(orjson.loads(await request.body()), QueryBody)
        operation = Operation(query=body.query, params=body.params)
        found = await gateway.execute(request.path_params["tenant_id"], operation)
        return Response(orjson.dumps(found), media_type="application/json")

    async def batch(request: Request) -> Response:
        body = checked(orjson.loads(await request.body()), BatchBody)
        operations = [Operation(query=item.query, params=item.params) for item in body.operations]
        found = await gateway.execute_batch(request.path_params["tenant_id"], operations)
        return Response(orjson.dumps({"results": found}), media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/tenants/{tenant_id}/query", query, methods=["POST"]),
            Route("/v1/tenants/{tenant_id}/batch", batch, methods=["POST"]),
        ]
    )


def _bare(gateway: _AtOnce) -> Any:
    read_one, read_many = msgspec.json.Decoder(_Statement), msgspec.json.Decoder(_Batch)
    write = msgspec.json.Encoder().encode

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tenant, _, name = scope["path"].removeprefix("/v1/tenants/").partition("/")
        text = (await receive())["body"]
        if name == "query":
            one = read_one.decode(text)
            operation = Operation(query=one.query, params=one.params)
            found: Any = await gateway.execute(tenant, operation)
        else:
            many = read_many.decode(text).operations
            operations = [Operation(query=item.query, params=item.params) for item in many]
            found = {"results": await gateway.execute_batch(tenant, operations)}
        answer = write(found)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


class _Key:
    """Every credential is the administrator's."""

    async def verify(self, _: str) -> Any:
        return SimpleNamespace(scope=CredentialScope.ADMIN, tenant_id=None)


def _endpoint(gateway: _AtOnce) -> Any:
    nothing: Any = SimpleNamespace()
    services: dict[str, Any] = dict.fromkeys(
        (
            *("catalog", "orchestrator", "named_operations", "fleet", "relations", "adviser"),
            *("moves", "proposals"),
        ),
        nothing,
    )
    return create_api(
        Services(
            settings=Settings(home=Path("unused")),
            gateway=gateway,  # type: ignore[arg-type]
            credentials=_Key(),  # type: ignore[arg-type]
            clock=SystemClock(),
            **services,
        )
    )
