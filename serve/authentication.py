"""Who sends a request, and how far that reaches.

Rules this module keeps:

* A credential is an API key or a JSON Web Token, sent as `Authorization: Bearer` (RFC 6750) and in
  no other way. The tenant comes from the credential, never from another header.
* A tenant's credential on another tenant's path gets what a tenant that does not exist would get.
  Both are decided here, from the credential alone and without a look into the catalog, so that
  neither the words nor the time tell whether the other tenant exists.
* What was verified is remembered for a short, bounded time, by its digest and never by its text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    AccessDeniedError,
    InvalidInputError,
    TenantNotFoundError,
    UnauthenticatedError,
)
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.engine.credentials import Principal
from tenancy.data_isolation.serve.json_web_tokens import TokenVerifier

_AUTHORIZATION = "authorization"
_CREDENTIAL_CHARACTERS_MAX = 16 * 1024


class KeyVerifier(Protocol):
    """Tells whose API key it is (`engine.credentials.Credentials`)."""

    async def verify(self, text: str) -> Principal:
        """The key's owner, or `UnauthenticatedError`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sends a request. `tenant_id` None = an administrator."""

    tenant_id: TenantId | None

    def require_admin(self) -> None:
        """Raise `AccessDeniedError` unless this is an administrator."""
        if self.tenant_id is not None:
            raise AccessDeniedError("this needs an API key with the scope admin")

    def reach(self, text: str) -> TenantId:
        """The tenant that a path names; `TenantNotFoundError` when it is not the caller's."""
        if self.tenant_id is not None:
            if text != self.tenant_id:
                raise TenantNotFoundError()
            return self.tenant_id
        try:
            return parse_tenant_id(text)
        except InvalidInputError:
            # No tenant can have such a name, so there is none.
            raise TenantNotFoundError() from None


_ADMIN = Caller(tenant_id=None)


class Authenticator:
    """Verifies credentials. Safe for the tasks of one event loop.

    API keys are remembered where they are verified; tokens are remembered here.
    """

    def __init__(
        self, settings: Settings, keys: KeyVerifier, clock: Clock, tokens: TokenVerifier | None
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._entries_max = settings.credential_cache_entries
        self._age_s = settings.credential_cache_ms / 1000
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    async def caller(self, headers: Headers) -> Caller:
        """Who sends a request with these headers, or `UnauthenticatedError`."""
        credential = _bearer(headers)
        if self._tokens is not None and credential.count(".") == 2:
            return await self._token_caller(credential, self._tokens)
        principal = await self._keys.verify(credential)
        if principal.scope is CredentialScope.ADMIN:
            return _ADMIN
        return Caller(tenant_id=principal.tenant_id)

    async def _token_caller(self, credential: str, tokens: TokenVerifier) -> Caller:
        # Header values are Latin-1, so this cannot fail.
        digest = hashlib.sha256(credential.encode("latin-1")).digest()
        now_s = self._clock.monotonic_s()
        known = self._known.get(digest)
        if known is not None and now_s < known[1]:
            return known[0]
        self._known.pop(digest, None)
        token = await tokens.verify(credential)
        try:
            caller = Caller(tenant_id=parse_tenant_id(token.tenant_id))
        except InvalidInputError:
            raise UnauthenticatedError("the token names no tenant that there can be") from None
        left_s = token.expires_at_s - self._clock.now().timestamp()
        self._known[digest] = (caller, now_s + min(left_s, self._age_s))
        while len(self._known) > self._entries_max:
            self._known.popitem(last=False)
        return caller


def _bearer(headers: Headers) -> str:
    given = headers.getlist(_AUTHORIZATION)
    if not given:
        raise UnauthenticatedError()
    scheme, _, credential = given[0].partition(" ")
    credential = credential.strip()
    if len(given) > 1 or scheme.lower() != "bearer" or not credential:
        raise UnauthenticatedError()
    if len(credential) > _CREDENTIAL_CHARACTERS_MAX:
        raise UnauthenticatedError("the credential is too long")
    return credential
