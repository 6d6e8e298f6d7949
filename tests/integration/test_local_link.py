"""The short way to an actor on the same machine."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from tenancy.data_isolation.actors import local_link
from tenancy.data_isolation.actors.channel import ActorLostError
from tenancy.data_isolation.actors.local_link import LinkAddress, LocalLink, LocalListener

#: A user that is neither this one nor root.
NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def echo(request: bytes, _sessions: set[str]) -> bytes:
    return b"re: " + request


@asynccontextmanager
async def listening(
    serve: local_link.Serve = echo,
    *,
    left: Callable[[set[str]], None] = len,
    connections_max: int = 4,
) -> AsyncIterator[LocalListener]:
    listener = await LocalListener.open(serve, left, connections_max)
    assert listener is not None
    try:
        yield listener
    finally:
        listener.close()


async def opened(address: LinkAddress) -> LocalLink:
    link = await LocalLink.open(address)
    assert link is not None
    return link


async def test_requests_get_their_replies_in_any_order():
    first = asyncio.Event()

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        if request == b"1":
            await first.wait()
        return request * 2

    async with listening(serve) as listener:
        link = await opened(listener.address)
        waits = asyncio.create_task(link.send(b"1"))
        assert await link.send(b"2") == b"22"
        assert not waits.done()
        first.set()
        assert await waits == b"11"
        link.close()


@pytest.mark.parametrize("size", [0, 1, 4_096, 5_000_000])
async def test_messages_of_any_size_arrive_as_they_are(size):
    async with listening() as listener:
        link = await opened(listener.address)
        message = os.urandom(size)
        replies = await asyncio.gather(*(link.send(message) for _ in range(3)))
        assert replies == [b"re: " + message] * 3
        link.close()


def test_it_is_the_same_on_the_event_loop_of_actors():
    """Ray runs actors on uvloop where that is installed."""

    async def main() -> None:
        async with listening(connections_max=1) as listener:
            name, secret = listener.address
            assert await LocalLink.open(LinkAddress(name, secret[::-1])) is None
            link = await opened(listener.address)
            assert await LocalLink.open(listener.address) is None
            message = os.urandom(3_000_000)
            assert await link.send(message) == b"re: " + message
            waits = asyncio.create_task(link.send(b"?" * 100))
            listener.close()
            with pytest.raises(ActorLostError):
                await waits

    uvloop.run(main())


async def test_who_stops_waiting_spoils_nothing():
    go = asyncio.Event()

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        await go.wait()
        return request

    async with listening(serve) as listener:
        link = await opened(listener.address)
        left = asyncio.create_task(link.send(b"left"))
        stays = asyncio.create_task(link.send(b"stays"))
        await asyncio.sleep(0)
        left.cancel()
        go.set()
        assert await stays == b"stays"
        assert link._calls == {}
        link.close()


async def test_what_is_under_way_is_lost_with_the_actor():
    came = asyncio.Event()

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        came.set()
        await asyncio.Event().wait()
        return request

    async with listening(serve) as listener:
        link = await opened(listener.address)
        waits = asyncio.create_task(link.send(b"?"))
        await came.wait()
        listener.close()
        with pytest.raises(ActorLostError):
            await waits
        with pytest.raises(ActorLostError):
            await link.send(b"?")
        assert await LocalLink.open(listener.address) is None


async def test_a_request_that_fails_in_an_unforeseen_way_hangs_up(caplog):
    async def serve(request: bytes, sessions: set[str]) -> bytes:
        raise ZeroDivisionError(request)

    async with listening(serve) as listener:
        link = await opened(listener.address)
        with pytest.raises(ActorLostError):
            await link.send(b"?")
    assert "not foreseen" in caplog.text


async def test_who_has_hung_up_is_told_of_with_its_sessions():
    came, stopped = asyncio.Event(), asyncio.Event()
    gone: list[set[str]] = []

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        sessions.add("s1")
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return request

    async with listening(serve, left=gone.append) as listener:
        link = await opened(listener.address)
        waits = asyncio.create_task(link.send(b"?"))
        await came.wait()
        link.close()
        await stopped.wait()
        assert gone == [{"s1"}]
        with pytest.raises(ActorLostError):
            await waits


async def test_without_the_secret_nobody_is_served():
    served: list[bytes] = []

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        served.append(request)
        return request

    async with listening(serve) as listener:
        name, secret = listener.address
        assert await LocalLink.open(LinkAddress(name, b"\0" * len(secret))) is None
        assert await LocalLink.open(LinkAddress(name, secret[:-1])) is None
        # Neither does one who sends requests without waiting, or more than a secret has.
        for greeting in (b"x" * 31, b"x" * 33, b""):
            reader, writer = await stranger(name)
            writer.write(framed(0, greeting) + framed(1, b"request"))
            assert await reader.read() == b""
            writer.close()
        assert served == []
        link = await opened(listener.address)
        assert await link.send(b"request") == b"request"
        link.close()


async def test_who_says_nothing_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(local_link, "_GREETING_S", 0.05)
    async with listening() as listener:
        reader, writer = await stranger(listener.address.name)
        assert await reader.read() == b""
        writer.close()


async def test_so_many_connections_and_no_more():
    async with listening(connections_max=2) as listener:
        links = [await opened(listener.address) for _ in range(2)]
        assert await LocalLink.open(listener.address) is None
        assert await links[0].send(b"a") == b"re: a"
        links[1].close()
        another = None
        while another is None:
            another = await LocalLink.open(listener.address)
        assert await another.send(b"b") == b"re: b"
        for link in (links[0], another):
            link.close()


async def test_so_many_requests_of_a_connection_and_no_more(monkeypatch):
    monkeypatch.setattr(local_link, "_REQUESTS_MAX", 2)

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        await asyncio.Event().wait()
        return request

    async with listening(serve) as listener:
        link = await opened(listener.address)
        ends = await asyncio.gather(*(link.send(b"?") for _ in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [ActorLostError] * 3


async def test_who_reads_no_replies_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(local_link, "_UNREAD_BYTES_MAX", 1_000_000)

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        return b"x" * 1_000_000

    async with listening(serve) as listener:
        _, writer = await stranger(listener.address.name)
        writer.write(framed(0, listener.address.secret))

        async def ask_for_ever() -> None:
            while True:
                writer.write(framed(1, b"more"))
                await writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await ask_for_ever()
        writer.close()


async def test_another_users_listener_and_caller_are_refused_whoever_runs_this(monkeypatch):
    async with listening() as listener:
        monkeypatch.setattr(local_link.os, "geteuid", lambda: NOBODY)
        assert local_link._connected(listener.address.name) is None
        reader, writer = await stranger(listener.address.name)
        writer.write(framed(0, listener.address.secret))
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()


async def test_with_too_many_open_files_there_is_no_connection(monkeypatch):
    def full(*_args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many open files")

    async with listening() as listener:
        monkeypatch.setattr(local_link.socket, "socket", full)
        assert await LocalLink.open(listener.address) is None


async def test_where_nobody_listens_there_is_no_connection():
    assert await LocalLink.open(LinkAddress(b"\0tenancy-nobody", b"")) is None


@as_root
@pytest.mark.parametrize(("user", "served"), [(NOBODY, "no"), (0, "yes")])
async def test_another_user_is_not_served_even_with_the_secret(user, served):
    async with listening() as listener:
        greeting = framed(0, listener.address.secret) + framed(1, b"a")
        async with as_user(user, _CALLER, listener.address.name, greeting) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == f"{served}\n".encode()


@as_root
@pytest.mark.parametrize(("user", "found"), [(NOBODY, False), (0, True)])
async def test_nobody_is_sent_to_a_listener_of_another_user(user, found):
    name = b"\0tenancy-test-" + os.urandom(8).hex().encode()
    async with as_user(user, _LISTENER, name, b"") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"listening\n"
        connected = local_link._connected(name)
        assert (connected is not None) is found
        if connected is not None:
            connected.close()


#: Bare sockets, since a link would not even ask.
_CALLER = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
found = socket.socket(socket.AF_UNIX)
found.settimeout(10)
try:
    found.connect(bytes.fromhex(sys.argv[2]))
    found.sendall(bytes.fromhex(sys.argv[3]))
    served = found.recv(1) != b""
except OSError:
    served = False
print("yes" if served else "no", flush=True)
"""
_LISTENER = """
import os, socket, sys
os.setuid(int(sys.argv[1]))
listening = socket.socket(socket.AF_UNIX)
listening.bind(bytes.fromhex(sys.argv[2]))
listening.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def as_user(
    user: int, script: str, name: bytes, greeting: bytes
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(user), name.hex(), greeting.hex()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def stranger(name: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    found = socket.socket(socket.AF_UNIX)
    found.setblocking(False)
    found.connect(name)
    return await asyncio.open_unix_connection(sock=found)


def framed(number: int, message: bytes) -> bytes:
    return local_link._HEADER.pack(len(message), number) + message


async def test_what_the_event_loop_cannot_take_goes_by_way_of_ray(monkeypatch, caplog):
    async with listening() as listener:

        async def refuses(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "create_unix_connection", refuses)
            assert await LocalLink.open(listener.address) is None
        assert "by way of Ray" in caplog.text
        link = await opened(listener.address)
        assert await link.send(b"x") == b"re: x"
        link.close()


async def test_a_forked_child_has_no_part_in_a_connection():
    over = asyncio.Event()

    async def serve(request: bytes, sessions: set[str]) -> bytes:
        sessions.add("one")
        return request

    async with listening(serve, left=lambda _: over.set()) as listener:
        link = await opened(listener.address)
        assert await link.send(b"x") == b"x"
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            # Until the parent is done; then the pipe has no other end.
            os.close(writing)
            os.read(reading, 1)
            os._exit(0 if link.lost else 1)
        try:
            assert not link.lost
            assert await link.send(b"y") == b"y"
            link.close()
            async with asyncio.timeout(20):
                await over.wait()
        finally:
            os.close(writing)
            os.close(reading)
            _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
