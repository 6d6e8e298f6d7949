"""A listener in front of a PostgreSQL server, which sees what goes over the network.

It notes what every client sends, passes it on, and can end TLS itself, as a pooler or a load
balancer does: with a certificate of the test's choice, and for servers that are built without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from support.certificates import Pair

#: The question for TLS (PostgreSQL manual, 55.2.11), a length and a code.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
#: A TLS record that holds a handshake message (RFC 8446, 5.1).
TLS_HANDSHAKE = b"\x16\x03"
_PIECE_BYTES = 64 * 1024


class Front:
    """What came in: for each connection the bytes that the client sent, as they were on the way."""

    def __init__(self, port: int) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.connections: list[bytearray] = []

    def in_the_clear(self) -> list[bytes]:
        """The beginnings of connections that did not go over to TLS as the first thing."""
        return [
            bytes(sent[:64])
            for sent in self.connections
            if sent and not sent.startswith(SSL_REQUEST + TLS_HANDSHAKE)
        ]


@asynccontextmanager
async def watched(upstream: int, terminate: ssl.SSLContext | None = None) -> AsyncIterator[Front]:
    """A front of the server on port `upstream`; with `terminate` it ends TLS itself."""
    if terminate is None:
        async with _serving(lambda front: _Tap(front, upstream)) as front:
            yield front
        return
    # Two, one behind the other: what the first one notes is still encrypted.
    async with (
        _serving(lambda _: _Terminator(upstream, terminate)) as inner,
        _serving(lambda front: _Tap(front, inner.port)) as front,
    ):
        yield front


@asynccontextmanager
async def mute() -> AsyncIterator[Front]:
    """A server that takes connections and never answers."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with _serving(lambda _: silent) as front:
        yield front


def server_context(pair: Pair, clients: Path | None = None) -> ssl.SSLContext:
    """TLS of a server's side; with `clients`, only for those that their CA has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def _serving(
    make: Callable[[Front], object], context: ssl.SSLContext | None = None
) -> AsyncIterator[Front]:
    front = Front(0)
    handler = make(front)
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
                await handler(reader, writer)  # type: ignore[operator]
        except asyncio.CancelledError:
            pass
        finally:
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        if running:
            await asyncio.wait(list(running))


class _Tap:
    def __init__(self, front: Front, upstream: int) -> None:
        self._front = front
        self._upstream = upstream

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        self._front.connections.append(seen)
        await _joined(reader, writer, self._upstream, seen)


class _Terminator:
    def __init__(self, upstream: int, context: ssl.SSLContext) -> None:
        self._upstream = upstream
        self._context = context

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
            return
        writer.write(b"S")
        await writer.start_tls(self._context)
        await _joined(reader, writer, self._upstream)


async def _joined(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream: int,
    seen: bytearray | None = None,
) -> None:
    """Pass bytes on in both directions until one side ends."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
    ways = [
        asyncio.create_task(_passed_on(reader, far_writer, seen)),
        asyncio.create_task(_passed_on(far_reader, writer, None)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        far_writer.close()
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _passed_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray | None
) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while piece := await reader.read(_PIECE_BYTES):
            if seen is not None:
                seen += piece
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def encrypted(upstream: int, context: ssl.SSLContext) -> AsyncIterator[Front]:
    """A front that ends TLS which begins with the first byte."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _joined(reader, writer, upstream)

    async with _serving(lambda _: handle, context) as front:
        yield front
