"""HTTPS at the ingress: HAProxy with our configuration, in front of the interface."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from support.certificates import Authority, Pair
from support.running_api import RunningApi

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.supervision import free_port
from tenancy.data_isolation.serve.certificate_renewal import CertificateRenewal
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.ingress import CERTIFICATE_VARIABLE, HSTS_VARIABLE
from tenancy.data_isolation.serve.ray_runtime import RayPaths
from tenancy.data_isolation.serve.runtime_state import RuntimeDirectory

#: As Ray Serve writes it, but for what has no part in this.
_CONFIGURATION = """global
    stats socket unix@s mode 666 level admin expose-fd listeners
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_app path_beg /
    use_backend {backend} if is_app
    default_backend default_backend
backend app
    server replica 127.0.0.1:{upstream}
backend default_backend
    http-request return status 404
"""
_HSTS = "max-age=4711"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("endpoint", "tenancy.example.com", "127.0.0.1")


@contextlib.asynccontextmanager
async def ingress(
    directory: Path, pair: Pair, upstream: int, backend: str = "app"
) -> AsyncIterator[int]:
    """HAProxy by way of our launcher; its port."""
    directory.mkdir(mode=0o700, exist_ok=True)
    port = free_port()
    text = _CONFIGURATION.format(port=port, upstream=upstream, backend=backend)
    (directory / "haproxy.cfg").write_text(text)
    certificate = directory / "endpoint.pem"
    certificate.symlink_to(pair.certificate)
    certificate.with_name("endpoint.pem.key").symlink_to(pair.key)
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "tenancy.data_isolation.serve.ingress"),
            *("-db", "-f", str(directory / "haproxy.cfg")),
        ],
        # The path of a socket is a short one, and this directory's may not be.
        cwd=directory,
        env=os.environ | {CERTIFICATE_VARIABLE: str(certificate), HSTS_VARIABLE: "4711"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        await _listens(port, process)
        yield port
    finally:
        process.terminate()
        process.communicate()


async def _listens(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(20):
        while True:
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.fail(f"HAProxy ended: {process.stderr.read().decode()}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def upstream_of(running: RunningApi) -> int:
    state = RuntimeDirectory(running.home).read()
    assert state is not None
    return urlsplit(state.url).port or 0


def trusting(authority: Authority | None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority and authority.certificate)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


async def test_the_interface_is_served_over_https_and_nothing_else(
    running, authority, pair, tmp_path
):
    async with ingress(tmp_path / "haproxy", pair, upstream_of(running)) as port:
        url = f"https://127.0.0.1:{port}"
        await running.api.migrate()
        tenant = await running.api.tenant("acme")
        key = {"Authorization": tenant.headers["Authorization"]}
        async with httpx.AsyncClient(base_url=url, verify=trusting(authority)) as client:
            answer = await client.post(
                "/v1/tenants/acme/query", json={"query": "select 1"}, headers=key
            )
            assert answer.status_code == 200
            assert answer.json()["rows"] == [[1]]
            unknown = await client.get("/v1/nothing")
            unheard_of = await client.request("BREW", "/v1/tenants")
            for told, status in ((answer, 200), (unknown, 404), (unheard_of, 405)):
                assert told.status_code == status
                assert told.headers.get_list("Strict-Transport-Security") == [_HSTS]

        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            async with httpx.AsyncClient(base_url=url) as stranger:
                await stranger.get("/healthz")
        with pytest.raises(httpx.HTTPError):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as plain:
                await plain.get("/healthz")
        # Which did not hurt those who come as they should.
        async with httpx.AsyncClient(base_url=url, verify=trusting(authority)) as client:
            assert (await client.get("/healthz")).status_code == 200


async def test_versions_of_tls_that_are_broken_are_refused(running, authority, pair, tmp_path):
    async with ingress(tmp_path / "haproxy", pair, upstream_of(running)) as port:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            only = trusting(authority, minimum_version=version, maximum_version=version)
            async with httpx.AsyncClient(verify=only) as client:
                answer = await client.get(f"https://127.0.0.1:{port}/healthz")
                assert answer.status_code == 200
        # OpenSSL here would not offer it, so what a client of old sends is written by hand: a
        # ClientHello of TLS 1.1 with one suite (RFC 4346, 7.4.1.2).
        hello = bytes.fromhex("0302" + "11" * 32 + "00" + "0002c013" + "0100")
        message = b"\x01" + len(hello).to_bytes(3, "big") + hello
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
        async with asyncio.timeout(10):
            told = await reader.read(7)
        writer.close()
        # An alert, fatal: protocol_version (RFC 8446, 6).
        assert (told[0], told[5:7]) == (0x15, bytes([2, 70]))


async def test_nobody_speaks_for_somebody_else(authority, pair, tmp_path):
    """A client's X-Forwarded-... would be believed behind, since HAProxy is on this machine."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)
        await writer.drain()
        writer.close()

    given = {
        "X-Forwarded-For": "10.9.8.7",
        "X-Forwarded-Proto": "gopher",
        "X_Forwarded_Host": "evil.example.com",
        "Forwarded": "for=10.9.8.7",
        "X-Real-IP": "10.9.8.7",
        "X-Other": "stays",
    }
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with (
        server,
        ingress(tmp_path / "haproxy", pair, _port(server)) as port,
        httpx.AsyncClient(verify=trusting(authority)) as client,
    ):
        answer = await client.get(f"https://127.0.0.1:{port}/", headers=given)
    lines = answer.text.lower().splitlines()
    assert "x-other: stays" in lines
    assert [line for line in lines if "forwarded" in line] == ["x-forwarded-proto: https"]
    assert not any("10.9.8.7" in line or "evil" in line for line in lines)


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def test_without_an_application_it_can_be_tried_again(authority, pair, tmp_path):
    async with (
        ingress(tmp_path / "haproxy", pair, 1, backend="default_backend") as port,
        httpx.AsyncClient(verify=trusting(authority)) as client,
    ):
        answer = await client.get(f"https://127.0.0.1:{port}/v1/tenants")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.headers["Strict-Transport-Security"] == _HSTS


async def test_the_command_line_checks_whom_it_speaks_to(running, authority, pair, tmp_path):
    """By the name of the certificate, although it connects to this machine's own address."""
    directory = RuntimeDirectory(running.home)
    state = directory.read()
    assert state is not None
    async with ingress(tmp_path / "haproxy", pair, upstream_of(running)) as port:
        good = dataclasses.replace(
            state,
            url=f"https://tenancy.example.com:{port}",
            local_url=f"https://127.0.0.1:{port}",
            tls_ca_file=str(authority.certificate),
        )
        directory.write(good)
        assert "signed by" in (await running.run("status")).out
        await running.run("tenant", "create", "acme")
        said = await running.run("sql", "acme", "select 7 as n", "--json")
        assert json.loads(said.out)["rows"] == [[7]]

        for wrong in (
            dataclasses.replace(good, tls_ca_file=None),
            dataclasses.replace(good, url=f"https://other.example.com:{port}"),
        ):
            directory.write(wrong)
            refused = await running.run("sql", "acme", "select 7", status=1)
            assert "is not accepted" in refused.err
            degraded = await running.run("status", status=4)
            assert "is not accepted" in degraded.out
        key = json.dumps(dataclasses.asdict(good), default=str)
        assert "PRIVATE" not in key


async def test_a_renewed_certificate_is_used_without_an_interruption(running, authority, tmp_path):
    """One of the two files is replaced before the other, as it happens."""
    first = authority.issue("first", "127.0.0.1")
    second = authority.issue("second", "127.0.0.1")
    expired = authority.issue("third", "127.0.0.1", days=-1)
    held = Pair(tmp_path / "held.crt", tmp_path / "held.key")

    def put(pair: Pair, *names: str) -> None:
        for name in names:
            fresh = tmp_path / "fresh"
            fresh.touch(mode=0o600)
            fresh.write_bytes(getattr(pair, name).read_bytes())
            fresh.replace(getattr(held, name))

    put(first, "certificate", "key")
    settings = Settings(
        http_tls_certificate=held.certificate,
        http_tls_key=held.key,
        http_tls_ca=authority.certificate,
    )
    paths = RayPaths(directory=tmp_path, token=tmp_path / "token")
    async with ingress(paths.haproxy, held, upstream_of(running)) as port:
        renewal = CertificateRenewal(settings, "127.0.0.1", paths)

        async def shown() -> bytes:
            context = trusting(authority)
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            return bytes(found)

        async with httpx.AsyncClient(verify=trusting(authority)) as client:
            url = f"https://127.0.0.1:{port}/healthz"
            assert (await client.get(url)).status_code == 200
            before = await shown()
            assert renewal.look() is None
            for pair, names, told in (
                (second, ("certificate",), "is not the key of the certificate"),
                (expired, ("certificate", "key"), "has expired"),
            ):
                put(pair, *names)
                assert told in str(renewal.look())
                assert await shown() == before
            put(second, "certificate", "key")
            assert renewal.look() is None
            assert await shown() == _der(second) != before
            # The connection that was open goes on.
            assert (await client.get(url)).status_code == 200
        assert renewal.look() is None


def _der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


async def test_a_plain_endpoint_is_asked_in_plain_http(running):
    port = upstream_of(running)
    url = f"http://127.0.0.1:{port}"
    status, body = await asyncio.to_thread(Endpoint(url=url, local_url=url).ask, "/healthz", 5.0)
    assert (status, json.loads(body)) == (200, {"status": "ok"})
