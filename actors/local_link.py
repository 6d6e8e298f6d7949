"""The short way to an actor on the same machine: a connection that Ray has no part in.

A call of a Ray actor costs both sides together a millisecond of the processor and more, whatever it
carries. Where the client and the actor share a machine, the same messages travel on a Unix domain
socket, for a twentieth of that; elsewhere, and wherever such a connection cannot be had, they
travel in calls. Starting, finding and ending actors is left to Ray.

Rules this module keeps:

* Nothing is left behind: the socket's name is abstract (unix(7)), and goes with its process.
* Nobody else listens or comes in: each side makes sure that the other one belongs to the same user
  (`SO_PEERCRED`, unix(7)), and who connects shows a secret that the actor tells those who may call
  it. Until then it gets no answer, and not much time.
* Bounded: connections, requests under way on each, replies that are not read.

A message has a header: its length and the number of its call, which a reply repeats. Everything
here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import struct
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

from tenancy.data_isolation.actors.channel import ActorLostError

#: Does a request and gives its reply; the set is the caller's, for the names of its sessions.
Serve: TypeAlias = Callable[[bytes, set[str]], Awaitable[bytes]]

_HEADER: Final = struct.Struct("!QQ")
#: Process, user and group (unix(7), SO_PEERCRED).
_CREDENTIALS: Final = struct.Struct("iII")
_SECRET_BYTES: Final = 32
#: Longest message of one who has shown the secret, and may send the same in calls of the actor.
_MESSAGE_BYTES_MAX: Final = 1 << 36
#: Replies that a process leaves unread before it is hung up on; the last one may go beyond.
_UNREAD_BYTES_MAX: Final = 256 * 1024 * 1024
#: Requests of one connection that may be under way.
_REQUESTS_MAX: Final = 256
#: How long a connection may take to show the secret.
_GREETING_S: Final = 5.0

_log = logging.getLogger(__name__)


class LinkAddress(NamedTuple):
    """Where an actor listens, and what who connects has to show."""

    name: bytes
    secret: bytes


class _Messages(asyncio.Protocol, ABC):
    """One side of a connection: cuts what comes into messages."""

    #: Longest message that is taken now.
    _bytes_max = _MESSAGE_BYTES_MAX

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position, size = 0, len(buffer)
        while size - position >= _HEADER.size:
            length, number = _HEADER.unpack_from(buffer, position)
            if length > self._bytes_max:
                self._transport.abort()
                return
            begin = position + _HEADER.size
            if size - begin < length:
                break
            position = begin + length
            self.message_received(number, bytes(memoryview(buffer)[begin:position]))
        del buffer[:position]

    @abstractmethod
    def message_received(self, number: int, message: bytes) -> None:
        """A whole message has come."""

    def write(self, number: int, message: bytes) -> None:
        """Send a message. There is never more to send than replies to what was asked for."""
        self._transport.writelines((_HEADER.pack(len(message), number), message))


class LocalLink(_Messages):
    """The client's side of a connection to an actor."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._last = 0
        #: Whether nothing can be sent any more.
        self.lost = False

    @classmethod
    async def open(cls, address: LinkAddress) -> LocalLink | None:
        """A connection; None when there is none to be had.

        The actor is on another machine or another user's, or has as many as it may have.
        """
        found = _connected(address.name)
        if found is None:
            return None
        try:
            _, link = await asyncio.get_running_loop().create_unix_connection(cls, sock=found)
        except OSError as error:
            # The system has no room to wait for one more file, as an instance.
            _log.warning("no connection to an actor, all goes by way of Ray: %s", error)
            found.close()
            return None
        _links.add(link)
        try:
            async with asyncio.timeout(_GREETING_S):
                await link.send(address.secret)
        except (ActorLostError, TimeoutError):
            link.close()
            return None
        except BaseException:
            link.close()
            raise
        return link

    async def send(self, request: bytes) -> bytes:
        """Send a request and wait for its reply. Raises `ActorLostError`."""
        if self.lost:
            raise ActorLostError("its connection is closed")
        self._last += 1
        number = self._last
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[number] = reply
        try:
            self.write(number, request)
            return await reply
        finally:
            del self._calls[number]

    def close(self) -> None:
        """Hang up; what is under way ends with `ActorLostError`."""
        if self._transport is not None:
            self._transport.abort()

    def leave_to_parent(self) -> None:
        """Let go of the connection in a process that was forked: it is the parent's.

        The parent's end would not be its end for the actor as long as somebody else has it open.
        """
        self.lost = True
        if self._transport is not None and not self._transport.is_closing():
            # Another file under the same number: whoever closes that later closes nothing else.
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, self._transport.get_extra_info("socket").fileno(), inheritable=False)
            os.close(nothing)

    def message_received(self, number: int, message: bytes) -> None:
        """A reply has come."""
        reply = self._calls.get(number)
        if reply is not None and not reply.done():
            reply.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The actor is gone, or has hung up."""
        self.lost = True
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(ActorLostError("its connection closed"))


#: Connections of this process.
_links: weakref.WeakSet[LocalLink] = weakref.WeakSet()


def _leave_all() -> None:
    for link in list(_links):
        with suppress(OSError):
            link.leave_to_parent()


os.register_at_fork(after_in_child=_leave_all)


class LocalListener:
    """Where an actor takes requests from the processes of its machine."""

    def __init__(
        self, serve: Serve, left: Callable[[set[str]], None], connections_max: int
    ) -> None:
        self.address = LinkAddress(
            b"\0tenancy-" + secrets.token_hex(16).encode(), secrets.token_bytes(_SECRET_BYTES)
        )
        self._serve = serve
        self._left = left
        self._connections_max = connections_max
        self._connections: set[_Caller] = set()
        self._server: asyncio.AbstractServer | None = None

    @classmethod
    async def open(
        cls, serve: Serve, left: Callable[[set[str]], None], connections_max: int
    ) -> LocalListener | None:
        """Listen; None where the system has no such sockets (only Linux does).

        `left` is told the sessions of a process that has hung up.
        """
        if sys.platform != "linux":
            return None
        listener = cls(serve, left, connections_max)
        listening = socket.socket(socket.AF_UNIX)
        try:
            listening.bind(listener.address.name)
            listener._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Caller(listener), sock=listening
            )
        except BaseException:
            listening.close()
            raise
        return listener

    def close(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for caller in list(self._connections):
            caller.close()

    def _comes(self, caller: _Caller) -> bool:
        """Whether there is room for one more."""
        if len(self._connections) >= self._connections_max:
            return False
        self._connections.add(caller)
        return True


class _Caller(_Messages):
    """The actor's side of a connection."""

    _bytes_max = _SECRET_BYTES

    def __init__(self, listener: LocalListener) -> None:
        super().__init__()
        self._listener = listener
        self._replies: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.TimerHandle | None = None
        self._sessions: set[str] = set()
        self._known = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        own = _peer(transport.get_extra_info("socket")) == os.geteuid()
        if not own or not self._listener._comes(self):
            self._transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._waiting = loop.call_later(_GREETING_S, self._transport.abort)

    def message_received(self, number: int, message: bytes) -> None:
        if not self._known:
            self._greet(number, message)
        elif len(self._replies) >= _REQUESTS_MAX:
            self._transport.abort()
        else:
            task = asyncio.get_running_loop().create_task(self._reply(number, message))
            self._replies.add(task)
            task.add_done_callback(self._replies.discard)

    def _greet(self, number: int, secret: bytes) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if hmac.compare_digest(secret, self._listener.address.secret):
            self._known = True
            self._bytes_max = _MESSAGE_BYTES_MAX
            self.write(number, b"")
        else:
            self._transport.abort()

    async def _reply(self, number: int, request: bytes) -> None:
        try:
            reply = await self._listener._serve(request, self._sessions)
            if self._transport.is_closing():
                return
            if self._transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
                self._transport.abort()
            else:
                self.write(number, reply)
        except Exception:
            # Nobody can say any more what was done: the caller has to take the actor for lost.
            _log.exception("a request failed in a way that was not foreseen")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        for task in self._replies:
            task.cancel()
        self._listener._connections.discard(self)
        if self._sessions:
            self._listener._left(self._sessions)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


def _connected(name: bytes) -> socket.socket | None:
    """A socket that is connected to this user's listener of that name."""
    if sys.platform != "linux":
        return None
    try:
        found = socket.socket(socket.AF_UNIX)
    except OSError:
        return None  # This process has all the files open that it may have.
    try:
        found.setblocking(False)
        found.connect(name)
        if _peer(found) == os.geteuid():
            return found
    except OSError:
        pass  # It is on another machine, or is no more, or has more to do than it can take.
    found.close()
    return None


def _peer(connected: Any) -> int:
    """The user whose process is at the other end."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    return int(user)
