"""JSON Web Tokens of the user's own identity provider (RFC 7519), and the keys to check them with.

Rules this module keeps (RFC 8725, "JSON Web Token Best Current Practices"):

* Only asymmetric algorithms of a fixed list; each key verifies with its own algorithm and no other,
  whatever the token says. `none` and the symmetric ones do not exist here.
* Issuer, audience and expiry must be there and must be right. A name that stands twice is refused
  (RFC 7515, 4; RFC 7519, 4): readers differ in which of the two they take.
* Keys come from where the operator says and nowhere else: `jku`, `x5u` and `jwk` in a token are not
  looked at. A token with an unknown key makes us read the keys again, but not more often than the
  setting allows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    SettingError,
    UnauthenticatedError,
    UnavailableError,
)
from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.serve.json_documents import parse_json

ALGORITHMS = ("RS256", "ES256", "EdDSA")
_KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
_KEYS_MAX = 100
_KEY_SET_BYTES_MAX = 256 * 1024
_FETCH_TIMEOUT_S = 5.0
_TOKEN_CHARACTERS_MAX = 16 * 1024
_TOKEN_DEPTH_MAX = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedToken:
    """What a valid token says: whose it is, and until when (seconds since 1970)."""

    tenant_id: str
    expires_at_s: float


class KeySet:
    """The issuer's public keys, from a URL or a file. Safe for the tasks of one event loop.

    Keys that were read stay in use while the source does not answer.
    """

    def __init__(self, source: str, *, refresh_s: float, retry_s: float, clock: Clock) -> None:
        self._source = _checked_source(source)
        self._refresh_s = refresh_s
        self._retry_s = retry_s
        self._clock = clock
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._read_at_s: float | None = None
        self._tried_at_s: float | None = None
        self._lock = asyncio.Lock()

    async def key(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of that id; with no id, the only key there is."""
        if self._is_due(self._read_at_s, self._refresh_s):
            await self._read()
        found = self._find(key_id)
        if found is None:
            await self._read()
            found = self._find(key_id)
        return found

    def _find(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _is_due(self, at_s: float | None, age_s: float) -> bool:
        return at_s is None or self._clock.monotonic_s() - at_s >= age_s

    async def _read(self) -> None:
        """Read the keys, unless that was tried a moment ago."""
        async with self._lock:
            if not self._is_due(self._tried_at_s, self._retry_s):
                if self._read_at_s is None:
                    raise _unreadable("they could not be read a moment ago")
                return
            self._tried_at_s = self._clock.monotonic_s()
            try:
                keys = _parsed(await self._document())
            except (OSError, httpx.HTTPError, ValueError, RecursionError) as error:
                if self._read_at_s is None:
                    raise _unreadable(type(error).__name__) from None
                return
            self._keys = keys
            self._read_at_s = self._clock.monotonic_s()

    async def _document(self) -> bytes:
        if isinstance(self._source, Path):
            return await asyncio.to_thread(_start_of, self._source)
        parts = bytearray()
        async with (
            httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S, trust_env=False) as client,
            asyncio.timeout(_FETCH_TIMEOUT_S),
            client.stream("GET", self._source) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            async for part in response.aiter_bytes():
                parts += part
                if len(parts) > _KEY_SET_BYTES_MAX:
                    raise ValueError("too large")
        return bytes(parts)


class TokenVerifier:
    """Tells whose token it is. Safe for the tasks of one event loop."""

    def __init__(self, settings: Settings, clock: Clock, keys: KeySet | None = None) -> None:
        source, issuer, audience = (
            settings.jwt_jwks,
            settings.jwt_issuer,
            settings.jwt_audience,
        )
        for name, value in (
            ("TENANCY_JWT_JWKS", source),
            ("TENANCY_JWT_ISSUER", issuer),
            ("TENANCY_JWT_AUDIENCE", audience),
        ):
            if not value:
                raise SettingError(f"{name} is not set; tokens need all of JWKS, ISSUER, AUDIENCE")
        assert source is not None  # noqa: S101 - looked at above.
        self._keys = keys or KeySet(
            source,
            refresh_s=settings.jwt_keys_refresh_s,
            retry_s=settings.jwt_keys_retry_s,
            clock=clock,
        )
        self._issuer = issuer
        self._audience = audience
        self._claim = settings.jwt_tenant_claim
        self._leeway_s = settings.jwt_leeway_s

    async def verify(self, token: str) -> VerifiedToken:
        """The token's claims; `UnauthenticatedError` says in general terms what is wrong."""
        if len(token) > _TOKEN_CHARACTERS_MAX:
            raise UnauthenticatedError("the token is too long")
        try:
            header = _header(token)
            key = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
            expires_at_s = float(claims["exp"]) + self._leeway_s
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired") from None
        except (jwt.PyJWTError, InvalidInputError, ValueError, TypeError, OverflowError):
            raise UnauthenticatedError("the token is not valid here") from None
        tenant_id = claims.get(self._claim)
        if not isinstance(tenant_id, str) or not tenant_id:
            raise UnauthenticatedError(f"the token names no tenant in the claim {self._claim!r}")
        return VerifiedToken(tenant_id=tenant_id, expires_at_s=expires_at_s)

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        # RFC 7515, 4.1.11: what is critical must be understood, and nothing of it is here.
        if header.get("alg") not in ALGORITHMS or "crit" in header:
            raise jwt.InvalidAlgorithmError
        key_id = header.get("kid")
        if key_id is not None and not isinstance(key_id, str):
            raise jwt.InvalidKeyError
        key = await self._keys.key(key_id)
        if key is None:
            raise jwt.InvalidKeyError
        return key


def token_verifier(settings: Settings, clock: Clock) -> TokenVerifier | None:
    """What verifies tokens under these settings; None when they say nothing of tokens.

    Reads nothing yet. Raises `SettingError` when they say too little, or what cannot be.
    """
    if settings.jwt_jwks or settings.jwt_issuer or settings.jwt_audience:
        return TokenVerifier(settings, clock)
    return None


def _checked_source(source: str) -> str | Path:
    """A file, or a URL that nobody on the way can change."""
    if "://" not in source:
        return Path(source).expanduser()
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(parts.path)
    if parts.scheme == "https" or (parts.scheme == "http" and is_local(parts.hostname or "")):
        return source
    raise SettingError("TENANCY_JWT_JWKS must be a file or a URL that starts with https://")


def _parsed(document: bytes) -> dict[str | None, jwt.PyJWK]:
    """The keys of a JWK set (RFC 7517) that verify signatures of ours."""
    value = json.loads(document)
    listed = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > _KEYS_MAX:
        raise ValueError("not a JWK set")
    found: dict[str | None, jwt.PyJWK] = {}
    for item in listed:
        if not isinstance(item, dict) or item.get("kty") not in _KEY_TYPES:
            continue
        if item.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(item)
        except jwt.PyJWTError:
            continue
        if key.algorithm_name in ALGORITHMS:
            found[item.get("kid")] = key
    if not found:
        raise ValueError("no key that can be used")
    return found


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(_KEY_SET_BYTES_MAX + 1)
    if len(document) > _KEY_SET_BYTES_MAX:
        raise ValueError("too large")
    return document


def _header(token: str) -> Mapping[str, Any]:
    """The header of a token (RFC 7515, 7.1), once header and claims were read strictly.

    PyJWT reads them with Python's own `json`, which takes the last of two equal names, and NaN.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not a token in its compact form")
    header, claims = (
        parse_json(jwt.utils.base64url_decode(part), depth_max=_TOKEN_DEPTH_MAX)
        for part in parts[:2]
    )
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise ValueError("not two objects")
    return header


def _unreadable(why: str) -> UnavailableError:
    return UnavailableError(
        f"the keys to check tokens with (TENANCY_JWT_JWKS) cannot be read: {why}; nothing was done",
        retry_after_s=_FETCH_TIMEOUT_S,
    )
