"""TLS to the user's own Redis: what `rediss://` promises holds, and what is wrong is said."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority, Pair
from support.tls_front import encrypted, mute, server_context

from tenancy.data_isolation.core.errors import SettingError, SetupError, TenancyError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis, RedisHandle
from tenancy.data_isolation.engine.redis_connection import RedisConnection, check_redis
from tenancy.data_isolation.engine.supervision import free_port


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def good(authority: Authority) -> Pair:
    return authority.issue("redis", "127.0.0.1", "localhost")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisHandle]:
    server = EmbeddedRedis(Settings(home=tmp_path / "state"))
    try:
        yield await server.start()
    finally:
        await server.stop()


def settings(redis: RedisHandle, port: int, authority: Authority | None, **given: Any) -> Settings:
    url = redis.url.replace("redis://", "rediss://").replace(f":{redis.port}/", f":{port}/")
    return Settings(
        redis_url=url + given.pop("query", ""),
        redis_ssl_ca_certs=authority and authority.certificate,
        **given,
    )


async def refusal(given: Settings) -> TenancyError:
    with pytest.raises(TenancyError) as caught:
        async with asyncio.timeout(20):
            await check_redis(given)
    secret = (given.redis_url or "").partition("@")[0].rpartition(":")[2]
    assert len(secret) > 8
    assert secret not in str(caught.value)
    return caught.value


async def test_a_server_with_a_good_certificate_is_used(redis, authority, good):
    async with encrypted(redis.port, server_context(good)) as front:
        given = settings(redis, front.port, authority)
        await check_redis(given)
        client = await RedisConnection.of(given).client(5.0)
        try:
            assert await client.set("word", "kept")
            assert await client.get("word") == b"kept"
        finally:
            await client.aclose()
        in_url = settings(redis, front.port, None, query=f"?ssl_ca_certs={authority.certificate}")
        await check_redis(in_url)


async def test_a_server_that_is_not_the_right_one_is_refused(redis, authority, good, tmp_path):
    other = Authority(tmp_path, "other")
    wrong = [
        (good, other, "is not signed by those that are trusted here"),
        # The system's authorities did not sign it either.
        (good, None, "TENANCY_REDIS_SSL_CA_CERTS"),
        (authority.issue("old", "127.0.0.1", days=-1), authority, "has expired"),
        (authority.issue("far", "redis.example.com"), authority, "is for another host"),
        (authority.issue_self_signed("alone", "127.0.0.1"), authority, "is self-signed"),
    ]
    for pair, trusted, told in wrong:
        async with encrypted(redis.port, server_context(pair)) as front:
            error = await refusal(settings(redis, front.port, trusted))
            assert isinstance(error, SetupError)
            assert told in str(error)


async def test_a_server_without_tls_is_not_used_without(redis, authority):
    async with mute() as front:
        for port in (redis.port, front.port):
            error = await refusal(settings(redis, port, authority, connect_timeout_s=0.5))
            assert isinstance(error, SetupError)
            assert "It may have no TLS at that port" in str(error)
    # And the other way round: a plain client is told what to write.
    await check_redis(Settings(redis_url=redis.url))


async def test_a_client_certificate_is_shown(redis, authority, good, tmp_path):
    ours = authority.issue("client")
    stranger = Authority(tmp_path, "strangers").issue("stranger")
    context = server_context(good, authority.certificate)
    async with encrypted(redis.port, context) as front:

        def showing(pair: Pair) -> Settings:
            return settings(
                redis,
                front.port,
                authority,
                redis_ssl_certfile=pair.certificate,
                redis_ssl_keyfile=pair.key,
            )

        await check_redis(showing(ours))
        missing = await refusal(settings(redis, front.port, authority))
        assert "ask for a certificate (TENANCY_REDIS_SSL_CERTFILE" in str(missing)
        assert "TENANCY_REDIS_SSL_CERTFILE" in str(await refusal(showing(stranger)))
        ours.key.chmod(0o644)
        assert "others can read the key" in str(await refusal(showing(ours)))


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?ssl_cert_reqs=none", "would take any server"),
        ("?ssl_cert_reqs=optional", "would take any server"),
        ("?ssl_check_hostname=false", "would take any server"),
        ("?ssl_ciphers=ALL", "ssl_ciphers cannot be set"),
        ("?ssl_certfile=/c.crt", "belong together"),
        ("?ssl_ca_certs=ca.crt", "must be an absolute path"),
        ("?ssl_ca_certs=/none.crt", "no such file"),
    ],
)
async def test_what_would_take_verification_away_is_refused(query, told):
    error = await refusal(Settings(redis_url=f"rediss://:very-secret@127.0.0.1:1/0{query}"))
    assert isinstance(error, SettingError)
    assert told in str(error)


async def test_options_of_tls_without_tls_are_refused(authority):
    url = "redis://:very-secret@127.0.0.1:1/0"
    plain = Settings(redis_url=url, redis_ssl_ca_certs=authority.certificate)
    assert "is not rediss://" in str(await refusal(plain))
    both = Settings(
        redis_url=f"{url.replace('redis', 'rediss')}?ssl_ca_certs=/other.crt",
        redis_ssl_ca_certs=authority.certificate,
    )
    assert "differ in ssl_ca_certs" in str(await refusal(both))
    with pytest.raises(SettingError, match="TENANCY_REDIS_SSL_CA_CERTS has nothing to act on"):
        RedisConnection.check_embedded(dataclasses.replace(plain, redis_url=None))


async def test_plain_text_over_a_network_is_told(redis, monkeypatch, caplog):
    exposed = RedisConnection.of(Settings(redis_url="redis://:very-secret@db.example.com/0"))
    assert exposed.is_exposed
    for url in ("redis://localhost", "redis://[::1]:1/0", "unix:///run/redis", "rediss://a.b.c"):
        assert not RedisConnection.of(Settings(redis_url=url)).is_exposed

    monkeypatch.setattr(RedisConnection, "is_exposed", True)
    with caplog.at_level(logging.WARNING):
        await check_redis(Settings(redis_url=redis.url))
    assert "cross the network in plain text" in caplog.text


async def test_a_redis_with_tls_of_its_own(authority, good, tmp_path):
    """Redis 6 and later have TLS when they are built with it; the embedded one is not."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server with TLS on this machine (Debian: redis-server)")
    port = free_port()
    process = subprocess.Popen(
        [
            program,
            *("--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""),
            *("--tls-cert-file", str(good.certificate), "--tls-key-file", str(good.key)),
            *("--tls-ca-cert-file", str(authority.certificate), "--requirepass", "very-secret"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        given = Settings(
            redis_url=f"rediss://:very-secret@127.0.0.1:{port}/0",
            redis_ssl_ca_certs=authority.certificate,
        )
        assert process.stdout is not None
        output = process.stdout
        ready = await asyncio.to_thread(
            lambda: next((line for line in output if b"Ready to accept" in line), None)
        )
        if ready is None:
            pytest.skip("this redis-server is built without TLS")
        # It asks for a client certificate unless it is told not to.
        assert "TENANCY_REDIS_SSL_CERTFILE" in str(await refusal(given))
        ours = authority.issue("own-client")
        await check_redis(
            dataclasses.replace(
                given, redis_ssl_certfile=ours.certificate, redis_ssl_keyfile=ours.key
            )
        )
    finally:
        process.terminate()
        process.communicate()
