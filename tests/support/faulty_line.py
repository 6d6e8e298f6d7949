"""The network between a client and a PostgreSQL server, which loses what we choose of one session.

What is lost is a request, so that the server never hears of it, or its answer, so that the client
never hears that it was done. Then the line is cut; or nobody is told anything and nothing passes
any more, as when a firewall forgets a connection, and then the server does not see either that its
client has gone away. A request is a simple query or the execution of a prepared statement (Bind;
manual, 55.7), since a statement that is only prepared has done nothing yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

_PIECE_BYTES: Final = 64 * 1024
#: First bytes of messages that ask for something to be done.
_ASKING: Final = (b"Q", b"B")


class Loss(StrEnum):
    """What is lost of the next request on a line."""

    #: The request, and the line.
    REQUEST = "request"
    #: The answer, and the line.
    ANSWER = "answer"
    #: The request and all that follows, in silence.
    REQUEST_SILENTLY = "request silently"
    #: The answer and all that follows, in silence.
    ANSWER_SILENTLY = "answer silently"

    @property
    def is_silent(self) -> bool:
        return self in (Loss.REQUEST_SILENTLY, Loss.ANSWER_SILENTLY)


class Wire:
    """One session that passes through."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)
        self._loss: Loss | None = None
        #: Whether the next answer is lost, or everything is.
        self._deaf = False
        self._dead = False
        self.lost = asyncio.Event()

    def lose(self, loss: Loss) -> None:
        """Lose something of the next request."""
        self._loss = loss

    def passes_request(self, piece: bytes) -> bool:
        """Whether the server gets to see a piece of what its client sends."""
        if self._loss is not None and piece[:1] in _ASKING:
            loss, self._loss = self._loss, None
            self.lost.set()
            match loss:
                case Loss.REQUEST:
                    self.cut()
                case Loss.REQUEST_SILENTLY:
                    self._dead = True
                case Loss.ANSWER:
                    self._deaf = True
                case Loss.ANSWER_SILENTLY:
                    # The request still passes.
                    self._dead = True
                    return True
        return not self._dead

    def passes_answer(self) -> bool:
        """Whether the client gets to see a piece of what the server sends."""
        if self._deaf:
            self.cut()
        return not (self._deaf or self._dead)

    @property
    def is_dead(self) -> bool:
        """Whether nothing passes any more, and nobody knows."""
        return self._dead

    def cut(self) -> None:
        """End it on both sides."""
        self._deaf = True
        for end in self._ends:
            end.transport.abort()


class FaultyLine:
    """What sessions to one server pass through."""

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self._upstream = upstream
        self._wires: dict[int, Wire] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def dsn(self, dsn: str) -> str:
        """A DSN of the server, by this way."""
        parts = urlsplit(dsn)
        userinfo, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{userinfo}@127.0.0.1:{self.port}"))

    def wire(self, connection: asyncpg.Connection) -> Wire | None:
        """The wire of a connection, if it passes through here."""
        transport = connection._transport
        if transport.get_extra_info("peername")[1] != self.port:
            return None
        return self._wires[transport.get_extra_info("sockname")[1]]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._joined(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        wire = Wire(writer, far_writer)
        self._wires[writer.get_extra_info("peername")[1]] = wire
        ways = [
            asyncio.create_task(_requests(wire, reader, far_writer)),
            asyncio.create_task(_answers(wire, far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if wire.is_dead:
                # That one end is gone does not get to the other one either.
                await asyncio.Event().wait()
        finally:
            far_writer.close()
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)


@asynccontextmanager
async def faulty_line(upstream: int) -> AsyncIterator[FaultyLine]:
    """A line to the server on a port, on loopback."""
    line = FaultyLine(upstream)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        await line.close()


async def _requests(wire: Wire, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            if wire.passes_request(piece):
                server.write(piece)
                await server.drain()


async def _answers(wire: Wire, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            if wire.passes_answer():
                client.write(piece)
                await client.drain()
