"""HTTP/1.1 as bytes, for requests that no client library would send."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

_TIMEOUT_S = 30.0
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """One answer of a stream of them."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(place: tuple[str, int], sent: bytes) -> bytes:
    """Send bytes; all that comes back until the other side closes.

    This side stays open: HAProxy gives up the request of a client that has closed its half.
    """
    received = bytearray()
    with socket.create_connection(place, timeout=_TIMEOUT_S) as connection:
        # Who is refused early is not listened to until its end.
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65_536):
                received += part
    return bytes(received)


def answers(received: bytes) -> list[RawAnswer]:
    """The answers that a stream holds, in their order. Each must have a `Content-Length`."""
    found = []
    rest = received
    while rest:
        head, separator, rest = rest.partition(_END_OF_HEAD)
        assert separator, f"an answer without an end: {received[:300]!r}"
        lines = head.decode("latin-1").split("\r\n")
        protocol, _, status = lines[0].partition(" ")
        assert protocol in ("HTTP/1.1", "HTTP/1.0"), lines[0]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        code = int(status[:3])
        if code < 200:
            continue
        # What HAProxy says by itself to what it cannot read ends with the connection.
        length = int(headers.get("content-length", len(rest)))
        found.append(RawAnswer(status=code, headers=headers, body=rest[:length]))
        rest = rest[length:]
    return found
