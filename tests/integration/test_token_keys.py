"""The keys of an identity provider, read over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from support.settable_clock import SettableClock

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import (
    SettingError,
    UnauthenticatedError,
    UnavailableError,
)
from tenancy.data_isolation.serve.json_web_tokens import KeySet, TokenVerifier

_KEY = ec.generate_private_key(ec.SECP256R1())


def _document(key: ec.EllipticCurvePrivateKey = _KEY, **extra: str) -> bytes:
    item = ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "one"} | extra
    return json.dumps({"keys": [item]}).encode()


class Provider:
    """An HTTP server that gives one answer to everything."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.body = _document()
        self.headers = ""
        self.asked = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.body)}\r\n{self.headers}\r\n"
        writer.write(head.encode() + self.body)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    async with server:
        yield made


def _keys(provider: Provider, clock: SettableClock) -> KeySet:
    return KeySet(provider.url, refresh_s=100, retry_s=5, clock=clock)


async def test_a_key_is_read_once_and_again_when_it_is_old(provider):
    clock = SettableClock()
    keys = _keys(provider, clock)

    assert await keys.key("one") is not None
    assert await keys.key("one") is not None
    assert provider.asked == 1
    clock.pass_s(101)
    assert await keys.key("one") is not None
    assert provider.asked == 2


async def test_an_unknown_key_makes_it_read_again_but_not_more_often_than_allowed(provider):
    clock = SettableClock()
    keys = _keys(provider, clock)
    await keys.key("one")

    clock.pass_s(6)
    assert [await keys.key("two") for _ in range(5)] == [None] * 5
    assert provider.asked == 2
    provider.body = _document(ec.generate_private_key(ec.SECP256R1()), kid="two")
    clock.pass_s(6)
    assert await keys.key("two") is not None
    assert await keys.key("one") is None


async def test_many_that_ask_at_the_same_time_are_one_reading(provider):
    keys = _keys(provider, SettableClock())

    found = await asyncio.gather(*(keys.key("one") for _ in range(20)))

    assert None not in found
    assert provider.asked == 1


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        ("500 Internal Server Error", b"", ""),
        ("302 Found", _document(), "Location: http://127.0.0.1:1/\r\n"),
        ("200 OK", b"", ""),
        ("200 OK", b"[]", ""),
        ("200 OK", b'{"keys": []}', ""),
        ("200 OK", b'{"keys": [5, {"kty": "oct", "k": "eA", "kid": "one"}]}', ""),
        ("200 OK", _document(use="enc"), ""),
        ("200 OK", b"[" * 100_000, ""),
        ("200 OK", b" " * 300_000 + _document(), ""),
    ],
    ids=["error", "moved", "empty", "list", "none", "symmetric", "encryption", "deep", "large"],
)
async def test_what_is_no_set_of_keys_is_not_used_and_earlier_keys_stay(
    provider, status, body, headers
):
    clock = SettableClock()
    fresh, known = _keys(provider, clock), _keys(provider, clock)
    await known.key("one")
    provider.status, provider.body, provider.headers = status, body, headers
    clock.pass_s(200)

    with pytest.raises(UnavailableError):
        await fresh.key("one")
    assert await known.key("one") is not None


@pytest.mark.parametrize("source", ["http://id.example/keys", "ftp://x/keys", "data://x"])
def test_keys_do_not_come_over_a_way_that_others_can_change(source):
    with pytest.raises(SettingError, match="TENANCY_JWT_JWKS"):
        KeySet(source, refresh_s=1, retry_s=1, clock=SettableClock())


@pytest.mark.parametrize("missing", ["jwt_jwks", "jwt_issuer", "jwt_audience"])
def test_all_of_the_settings_are_needed(missing):
    given = {"jwt_jwks": "/keys", "jwt_issuer": "i", "jwt_audience": "a"}
    del given[missing]

    with pytest.raises(SettingError, match=missing.upper()):
        TokenVerifier(Settings(**given), SettableClock())


async def test_a_token_without_a_key_id_is_checked_with_the_only_key_there_is(provider):
    settings = Settings(jwt_jwks=provider.url, jwt_issuer="i", jwt_audience="a")
    verifier = TokenVerifier(settings, SettableClock())
    claims = {"iss": "i", "aud": "a", "exp": time.time() + 60, "tenant_id": "acme"}

    found = await verifier.verify(jwt.encode(claims, _KEY, "ES256"))

    assert found.tenant_id == "acme"
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(UnauthenticatedError):
        await verifier.verify(jwt.encode(claims, stranger, "ES256"))
