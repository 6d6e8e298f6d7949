"""What a running installation shows to others: sockets, and Ray without its token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from support.installation import Installation
from support.listening import beyond_loopback, listening

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)

_WRONG_TOKEN = "0" * 64
_REFUSED = "InvalidAuthToken"
#: What each of Ray's ways asks of the cluster, as whoever has the token may.
_GET_ACTOR = """
    import ray, sys
    ray.init(address=sys.argv[1], namespace="tenancy", log_to_driver=False)
    print("got", ray.get_actor("tenancy-shared-default-0")._actor_id.hex())
    ray.shutdown()
"""
_READ_STORE = """
    import sys
    from ray._raylet import GcsClient
    print("got", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10))
"""


def test_every_socket_of_every_process_is_on_the_loopback_address(installation: Installation):
    found = listening(installation.runtime.tree())

    assert beyond_loopback(found) == []
    # Those that are known to be there were looked at.
    names = {item.process for item in found}
    assert {"haproxy", "postgres", "redis-server", "gcs_server", "raylet"} <= names
    assert {"ray::ServeReplica:tenancy:http", "ray::DashboardAgent"} <= names
    assert installation.url.port in {item.port for item in found if item.process == "haproxy"}
    # A closed port stays closed: HAProxy's own statistics and figures.
    assert not {8404, 9101} & {item.port for item in found}


@pytest.mark.parametrize(
    ("address", "kind"),
    [("0.0.0.0", socket.SOCK_STREAM), ("::", socket.SOCK_STREAM), ("0.0.0.0", socket.SOCK_DGRAM)],
)
def test_a_socket_that_others_reach_is_found(address: str, kind: socket.SocketKind):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as open_to_all, socket.create_server(("127.0.0.1", 0)):
        open_to_all.bind((address, 0))
        if kind is socket.SOCK_STREAM:
            open_to_all.listen()
        port = open_to_all.getsockname()[1]

        found = beyond_loopback(listening([psutil.Process()]))

    assert [(item.address, item.port) for item in found] == [(address, port)]


def _environment(token: str | None) -> dict[str, str]:
    """That of somebody on this machine; `token` None = who knows of none."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    changed = {
        "HOME": "/nonexistent",
        "RAY_AUTH_MODE": "disabled" if token is None else "token",
        # Ray's own switch to be looked for at the loopback address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return kept | changed | ({} if token is None else {"RAY_AUTH_TOKEN": token})


def _tell_until(arguments: Sequence[str], environment: dict[str, str], words: Sequence[str]) -> str:
    """What a program prints until one of the words comes. Ray tries again for minutes."""
    told = ""
    program = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert program.stdout is not None
    with program:
        for line in program.stdout:
            told += line
            if any(word in line for word in words):
                break
        program.kill()
    return told


@pytest.mark.parametrize("source", [_GET_ACTOR, _READ_STORE], ids=["A07-get_actor", "A07-store"])
def test_a07_without_the_token_nobody_joins_the_cluster(installation: Installation, source: str):
    address = installation.status["ray_address"]
    arguments = ["-c", textwrap.dedent(source), address]
    with open(installation.status["ray_auth_token_file"]) as file:
        token = file.read().strip()

    tokens = {"right": token, "wrong": _WRONG_TOKEN, "none": None}
    with ThreadPoolExecutor(len(tokens)) as pool:
        asked = {
            name: pool.submit(_tell_until, arguments, _environment(given), ("got", _REFUSED))
            for name, given in tokens.items()
        }
        told = {name: waiting.result() for name, waiting in asked.items()}

    assert "got" in told["right"], told["right"]
    for name in ("wrong", "none"):
        assert _REFUSED in told[name], told[name]
        assert "got" not in told[name]


def test_a07_a_replicas_own_server_asks_for_the_token(installation: Installation):
    """Its messages hold pickles, so whoever got past the token would run code in it."""
    method = "/ray.serve.ASGIService/HandleRequestWithRejection"
    codes = {}
    for item in listening(installation.runtime.tree()):
        if item.process != "ray::ServeReplica:tenancy:http":
            continue
        with grpc.insecure_channel(f"127.0.0.1:{item.port}") as channel:
            # An empty message is one that can be read; the token comes next.
            call = channel.unary_unary(method, lambda text: text, lambda text: text)
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=10)
        codes[item.port] = raised.value.code()
    # Of the ports of a replica, one speaks HTTP, and one is Ray's own, which has no such method.
    found = Counter(codes.values())
    assert found[grpc.StatusCode.UNAUTHENTICATED] == 2, codes
    assert set(found) <= {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAVAILABLE,
    }


def test_a07_what_speaks_http_asks_for_the_token(installation: Installation):
    """Ray's agents take tasks, and refuse whoever has no token."""
    found: dict[str, set[int]] = {}
    for item in listening(installation.runtime.tree()):
        if item.process in ("ray::DashboardAgent", "ray::RuntimeEnvAgent"):
            for path in ("/", "/api/jobs/", "/get_or_create_runtime_env", "/logs"):
                status = _status(item.port, path)
                if status is not None:
                    found.setdefault(item.process, set()).add(status)
    assert found["ray::RuntimeEnvAgent"] == {401}
    # Its port is a fixed one, which it goes without when it is taken.
    assert found.get("ray::DashboardAgent", {401}) == {401}


def _status(port: int, path: str) -> int | None:
    """The status of an answer; None from who speaks no HTTP/1.1."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        head = connection.recv(4_096)
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else None
