"""Connections of clients to an HTTP endpoint: one request at a time on each, kept alive.

As many are opened as there are requests in flight, up to a limit. What the server closes is
replaced. Answers are read by httptools: a general client would take more of the two processors than
some of what is measured.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A status, what `Retry-After` says (None = nothing), and the body."""

    status: int
    retry_after: str | None
    body: bytes


class NoLineError(Exception):
    """Every connection that may be open has a request under way."""


class HttpLines:
    """Connections to one endpoint. Used from one event loop."""

    def __init__(self, host: str, port: int, lines_max: int) -> None:
        self._where = (host, port)
        self._lines_max = lines_max
        self._free: list[_Line] = []
        self._all: set[_Line] = set()
        self._opening = 0
        #: The most that were open at the same time.
        self.most = 0

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer. Cancelled, it closes the connection.

        Raises `NoLineError`, and `OSError` when the connection breaks or does not come about.
        """
        line = await self._line()
        try:
            answer = await line.ask(request)
        except BaseException:
            line.close()
            raise
        if not line.is_closed:
            self._free.append(line)
        return answer

    async def close(self) -> None:
        """Close all of them."""
        for line in list(self._all):
            line.close()
        await asyncio.sleep(0)

    async def _line(self) -> _Line:
        while self._free:
            line = self._free.pop()
            if not line.is_closed:
                return line
        if len(self._all) + self._opening >= self._lines_max:
            raise NoLineError
        self._opening += 1
        try:
            _, made = await asyncio.get_running_loop().create_connection(
                lambda: _Line(self._all), *self._where
            )
        finally:
            self._opening -= 1
        self.most = max(self.most, len(self._all))
        return made


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, register: set[_Line]) -> None:
        self._register = register
        self._answer: asyncio.Future[Answer] | None = None
        self._retry_after: str | None = None
        self._transport: Any = None
        self.is_closed = False

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._retry_after = None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.is_closed = True
        self._transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._register.add(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._register.discard(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed it"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_closed = True
            self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(
                Answer(
                    status=self._parser.get_status_code(),
                    retry_after=self._retry_after,
                    body=b"".join(self._body),
                )
            )
