"""The short way to an actor on the same machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe

import pytest

from tenancy.data_isolation.actors import local_link
from tenancy.data_isolation.actors.channel import ActorLostError
from tenancy.data_isolation.actors.local_link import LinkAddress, LocalLink, LocalListener

#: A user that is neither this one nor root.
NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def echo(request: bytes) -> bytes:
    return b"re: " + request


@asynccontextmanager
async def listening(
    serve: local_link.Serve = echo, *, connections_max: int = 4
) -> AsyncIterator[LocalListener]:
    listener = await LocalListener.open(serve, connections_max)
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

    async def serve(request: bytes) -> bytes:
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


async def test_who_stops_waiting_spoils_nothing():
    go = asyncio.Event()

    async def serve(request: bytes) -> bytes:
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

    async def serve(request: bytes) -> bytes:
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
    async def serve(request: bytes) -> bytes:
        raise ZeroDivisionError(request)

    async with listening(serve) as listener:
        link = await opened(listener.address)
        with pytest.raises(ActorLostError):
            await link.send(b"?")
    assert "not foreseen" in caplog.text


async def test_work_for_one_who_hung_up_is_stopped():
    came, stopped = asyncio.Event(), asyncio.Event()

    async def serve(request: bytes) -> bytes:
        came.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return request

    async with listening(serve) as listener:
        link = await opened(listener.address)
        waits = asyncio.create_task(link.send(b"?"))
        await came.wait()
        link.close()
        await stopped.wait()
        with pytest.raises(ActorLostError):
            await waits


async def test_without_the_secret_nobody_is_served():
    served: list[bytes] = []

    async def serve(request: bytes) -> bytes:
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

    async def serve(request: bytes) -> bytes:
        await asyncio.Event().wait()
        return request

    async with listening(serve) as listener:
        link = await opened(listener.address)
        ends = await asyncio.gather(*(link.send(b"?") for _ in range(3)), return_exceptions=True)
        assert [type(end) for end in ends] == [ActorLostError] * 3


async def test_where_nobody_listens_there_is_no_connection():
    assert await LocalLink.open(LinkAddress(b"\0tenancy-nobody", b"")) is None


@as_root
async def test_another_user_is_not_served_even_with_the_secret():
    async with listening() as listener:
        answer = await asyncio.to_thread(_in_another_process, _try_as, NOBODY, listener.address)
        assert answer is False
        # The same with the right user, so that this can fail.
        answer = await asyncio.to_thread(_in_another_process, _try_as, 0, listener.address)
        assert answer is True


@as_root
@pytest.mark.parametrize(("user", "found"), [(NOBODY, False), (0, True)])
async def test_nobody_is_sent_to_a_listener_of_another_user(user, found):
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    name = b"\0tenancy-test-" + os.urandom(8).hex().encode()
    process = spawn.Process(target=_listen_as, args=(user, name, there))
    process.start()
    try:
        await asyncio.to_thread(here.recv)
        connected = local_link._connected(name)
        assert (connected is not None) is found
        if connected is not None:
            connected.close()
    finally:
        here.send(None)
        process.join()


async def stranger(name: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    found = socket.socket(socket.AF_UNIX)
    found.setblocking(False)
    found.connect(name)
    return await asyncio.open_unix_connection(sock=found)


def framed(number: int, message: bytes) -> bytes:
    return struct.pack("!IQ", len(message), number) + message


def _in_another_process(work: object, *args: object) -> object:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=work, args=(*args, there))
    process.start()
    answer = here.recv()
    process.join()
    return answer


def _try_as(user: int, address: LinkAddress, pipe: Pipe) -> None:
    """Say whether the listener talks to this user. A bare socket: the link would not even ask."""
    os.setuid(user)
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(10)
    try:
        found.connect(address.name)
        found.sendall(framed(0, address.secret) + framed(1, b"a"))
        pipe.send(found.recv(1) != b"")
    except OSError:
        pipe.send(False)


def _listen_as(user: int, name: bytes, pipe: Pipe) -> None:
    os.setuid(user)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(name)
    listening.listen()
    pipe.send(None)
    pipe.recv()
