"""A session in which everything that the server sends is kept, whatever it is part of.

A driver reads some messages and drops others, and asks the server questions of its own. Here rows,
errors, notices, notifications and copied data are all the same: bytes that may hold a secret.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attacks.answer import Answer, blocker_of
from attacks.scene import connected
from tenancy.data_isolation.engine import wire

_HEADER = struct.Struct("!cI")
_COPY_IN, _READY, _ERROR = b"G", b"Z", b"E"
_COPY_FAIL = b"f\x00\x00\x00\x05\x00"


class RawSession(asyncio.Protocol):
    """Speaks on a connection that a driver opened. One text at a time."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._buffer = b""
        self._heard = bytearray()
        self._error = b""
        self._status = b"I"
        self._ready: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str, *first: str, **settings: str) -> AsyncIterator[RawSession]:
        """A session in which `first` were run; cut off at the end of the block."""
        async with connected(dsn, **settings) as connection:
            pid = connection.get_server_pid()
            for text in first:
                await connection.execute(text.replace("{pid}", str(pid)))
            session = cls(connection._transport)
            driver = connection._transport.get_protocol()
            connection._transport.set_protocol(session)
            session.backend_pid = pid
            try:
                yield session
            finally:
                connection._transport.set_protocol(driver)
                connection.terminate()

    #: The server process behind it.
    backend_pid: int = 0

    async def send(self, text: str) -> Answer:
        """Everything that the server says to one statement."""
        messages = (wire.parse(b"", text), wire.bind(b"", ()), wire.execute(), wire.SYNC)
        return await self._exchange(b"".join(messages))

    async def empty(self, *then: str) -> None:
        """End what is open, discard what is left, and run `then`."""
        for text in (*(("rollback",) if self._status != b"I" else ()), "discard all", *then):
            answer = await self.send(text)
            assert not answer.failed, answer

    async def _exchange(self, data: bytes) -> Answer:
        self._heard.clear()
        self._error = b""
        self._ready = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        await self._ready
        said = self._heard.decode(errors="replace")
        if not self._error:
            return Answer(rows=((said,),))
        fields = dict(
            (part[:1], part[1:].decode(errors="replace"))
            for part in self._error.split(b"\0")
            if part
        )
        return _refused(said, fields.get(b"C", ""), fields.get(b"M", ""))

    def data_received(self, data: bytes) -> None:
        """Some more bytes have come."""
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= _HEADER.size:
            code, length = _HEADER.unpack_from(self._buffer, position)
            end = position + 1 + length
            if end > len(self._buffer):
                break
            body = self._buffer[position + _HEADER.size : end]
            position = end
            self._heard += body
            if code == _ERROR:
                self._error = body
            elif code == _COPY_IN:
                self._transport.write(_COPY_FAIL + wire.SYNC)
            elif code == _READY and self._ready is not None and not self._ready.done():
                self._status = body
                self._ready.set_result(None)
        self._buffer = self._buffer[position:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has ended the session."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(exc or ConnectionError("the server ended the session"))


def _refused(said: str, code: str, message: str) -> Answer:
    return Answer(error=said, code=code, blocker=blocker_of(code, [message]))
