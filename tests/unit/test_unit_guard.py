"""Unit tests cannot reach outside of their process, even by accident."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest


def listen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))


@pytest.mark.parametrize(
    "reach_out",
    [
        lambda: subprocess.Popen(["true"]),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        listen,
        lambda: socket.getaddrinfo("localhost", 80),
    ],
    ids=["process", "spawned process", "connection", "listening", "name"],
)
def test_a_unit_test_that_reaches_out_fails(reach_out):
    with pytest.raises(pytest.fail.Exception, match="belongs to tests/integration"):
        reach_out()


async def test_an_event_loop_is_no_reaching_out():
    assert await asyncio.to_thread(lambda: 1) == 1
