"""A small HTTP/1.1 client for load: a connection for each request in flight, kept alive.

A general client would take more of the two processors than some of what is measured. Requests and
answers of all variants go through the same one. Answers are read by httptools, values by orjson.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import httptools
import orjson

READ = "select bal from users where id = $1"


class StatusError(Exception):
    """The server answered with something else than 200."""


class HttpReader(ABC):
    """The operation over HTTP; subclasses know the paths."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []
        self.host = f"{target['http']['host']}:{target['http']['port']}"

    async def open(self) -> None:
        """Connect as often as there are requests in flight."""
        loop = asyncio.get_running_loop()
        where = self._target["http"]["host"], self._target["http"]["port"]
        for _ in range(self._target["in_flight"]):
            _, connection = await loop.create_connection(_Connection, *where)
            self._all.append(connection)
        self._free = list(self._all)

    async def read(self, tenant: int, row: int) -> int:
        """One operation in a request of its own."""
        return self.one(await self._ask(self.single(tenant, row)))

    async def read_many(self, tenant: int, rows: list[int]) -> list[int]:
        """Several operations in one request."""
        return self.many(await self._ask(self.batch(tenant, rows)))

    async def close(self) -> None:
        """Close the connections."""
        for connection in self._all:
            connection.close()

    @abstractmethod
    def single(self, tenant: int, row: int) -> bytes:
        """The request of one operation."""

    @abstractmethod
    def batch(self, tenant: int, rows: list[int]) -> bytes:
        """The request of several operations."""

    def one(self, answer: Any) -> int:
        """The value in the answer."""
        return int(answer["bal"])

    def many(self, answer: Any) -> list[int]:
        """The values in the answer to a batch."""
        values: list[int] = answer["bals"]
        return values

    async def _ask(self, request: bytes) -> Any:
        connection = self._free.pop()
        try:
            status, body = await connection.ask(request)
        finally:
            self._free.append(connection)
        if status != 200:
            raise StatusError(f"{status} {body[:200]!r}")
        return orjson.loads(body)


class Application(HttpReader):
    """The FastAPI applications of `http_app`, where a header names the tenant."""

    def single(self, tenant: int, row: int) -> bytes:
        """A GET."""
        head = f"Host: {self.host}\r\nX-Tenant-ID: tenant-{tenant}"
        return f"GET /users/{row} HTTP/1.1\r\n{head}\r\n\r\n".encode()

    def batch(self, tenant: int, rows: list[int]) -> bytes:
        """A POST with the keys."""
        head = f"Host: {self.host}\r\nX-Tenant-ID: tenant-{tenant}"
        return _post("/users/batch", head, {"ids": rows})


class Endpoint(HttpReader):
    """The endpoint of this product, with the administrator's key, which reaches every tenant."""

    def __init__(self, target: dict[str, Any]) -> None:
        super().__init__(target)
        self._level = target["level"]
        self._head = f"Host: {self.host}\r\nAuthorization: Bearer {target['key']}"

    def single(self, tenant: int, row: int) -> bytes:
        """`POST /v1/tenants/{id}/query`."""
        return _post(self._path(tenant, "query"), self._head, {"query": READ, "params": [row]})

    def batch(self, tenant: int, rows: list[int]) -> bytes:
        """`POST /v1/tenants/{id}/batch`."""
        operations = [{"query": READ, "params": [row]} for row in rows]
        return _post(self._path(tenant, "batch"), self._head, {"operations": operations})

    def one(self, answer: Any) -> int:
        """The one value of the one row."""
        return int(answer["rows"][0][0])

    def many(self, answer: Any) -> list[int]:
        """The same of each result."""
        return [int(result["rows"][0][0]) for result in answer["results"]]

    def _path(self, tenant: int, what: str) -> str:
        return f"/v1/tenants/{self._level}-{tenant}/{what}"


def _post(path: str, head: str, body: dict[str, Any]) -> bytes:
    text = orjson.dumps(body)
    start = (
        f"POST {path} HTTP/1.1\r\n{head}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    return start.encode() + text


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._lost: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; its status and body."""
        if self._lost is not None:
            raise self._lost
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Let go."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = error or ConnectionError("the server closed the connection")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._lost)

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """httptools: the answer is whole."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
