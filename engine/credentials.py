"""API keys: who may ask, and for which tenant.

Rules this module keeps:

* Only a hash of a key is stored; the key itself is shown once, by `create`.
* An unknown key, a wrong one, one that is revoked and one that has expired are refused by the same
  path, in the same words: one look-up, and comparisons in constant time.
* What was verified is believed for `Settings.credential_cache_ms` without asking again, so a
  revocation and a rotation take effect within that time in every process, and an expiry at its
  time. Refusals are not remembered.
* A key that was rotated keeps its id, and so its place in lists and logs. Its old secret is good
  until the overlap ends, and dies at once when there is none, or when it is rotated once more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.crypto import (
    ApiKey,
    api_key_digest,
    api_key_id,
    new_api_key,
    same_digest,
)
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    TenancyError,
    TenantNotFoundError,
    UnauthenticatedError,
)
from tenancy.data_isolation.core.identifiers import TenantId, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.catalog_records import ApiKeyRecord, CredentialScope
from tenancy.data_isolation.engine.sql_files import SqlFile

_log = logging.getLogger(__name__)
_SQL = SqlFile("catalog.sql")
#: Looked up and compared when a text is no key at all, so that it costs what any other one costs.
_NO_KEY_ID = "0" * 16
_NO_DIGEST = bytes(32)
_KEY_ID = re.compile("[0-9a-f]{16}")
_KEY_CHARACTERS_MAX = 200
_LABEL_CHARACTERS_MAX = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """Whom a credential stands for: an administrator, or one tenant."""

    key_id: str
    scope: CredentialScope
    tenant_no: TenantNo | None
    tenant_id: TenantId | None


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    expires_at: datetime | None
    #: Time of the steady clock after which the catalog is asked again.
    believed_until_s: float


class Credentials:
    """Makes, verifies, lists, rotates and revokes API keys.

    Safe to use from any task of the catalog's event loop. Durability and errors are those of
    `Catalog`.
    """

    def __init__(self, *, settings: Settings, catalog: Catalog, clock: Clock | None = None) -> None:
        self._settings = settings
        self._catalog = catalog
        self._clock: Clock = clock or SystemClock()
        # Keyed by digest, never by the text; the one used longest ago is dropped first.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        #: Questions to the catalog that are under way, and when each was asked.
        self._asked: dict[bytes, tuple[float, asyncio.Task[_Verified]]] = {}

    async def create(
        self,
        scope: CredentialScope,
        *,
        tenant_no: TenantNo | None = None,
        label: str = "",
        expires_at: datetime | None = None,
    ) -> ApiKey:
        """A fresh key. Scope TENANT needs `tenant_no`, scope ADMIN takes none.

        `expires_at` must have a time zone and lie in the future.
        """
        scope = CredentialScope(scope)
        if (scope is CredentialScope.TENANT) != (tenant_no is not None):
            raise InvalidInputError("an API key is for one tenant (tenant_no), or for an admin")
        if len(label) > _LABEL_CHARACTERS_MAX:
            raise InvalidInputError(f"a label has at most {_LABEL_CHARACTERS_MAX} characters")
        if expires_at is not None and expires_at.tzinfo is None:
            raise InvalidInputError("expires_at needs a time zone")
        if expires_at is not None and expires_at <= self._clock.now():
            raise InvalidInputError("expires_at lies in the past")
        key = new_api_key()
        try:
            await self._catalog.pool.write(
                _SQL.statement("insert_api_key"),
                key.key_id,
                key.digest,
                scope,
                tenant_no,
                label,
                expires_at,
            )
        except asyncpg.ForeignKeyViolationError:
            raise TenantNotFoundError(f"there is no tenant with number {tenant_no}") from None
        return key

    async def verify(self, text: str) -> Principal:
        """Whom the API key `text` stands for, or `UnauthenticatedError`."""
        if not text.isascii() or len(text) > _KEY_CHARACTERS_MAX:
            text = ""  # No key of ours; refused below like any other.
        digest = api_key_digest(text)
        known = self._verified.get(digest)
        if known is not None and self._clock.monotonic_s() < known.believed_until_s:
            self._verified.move_to_end(digest)
        else:
            known = await self._looked_up(text, digest)
        if known.expires_at is not None and known.expires_at <= self._clock.now():
            raise UnauthenticatedError
        return known.principal

    async def list(
        self,
        *,
        tenant_no: TenantNo | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[ApiKeyRecord]:
        """Keys in the order of their ids, starting after `after`; of one tenant, or all."""
        size = self._catalog.page_length(limit)
        rows = await self._catalog.pool.rows(
            _SQL.statement("api_keys"), after or "", tenant_no, None, size
        )
        return [_record(row) for row in rows]

    async def show(self, key_id: str) -> ApiKeyRecord:
        """The key of that id, without its secret; `NotFoundError` when there is none."""
        if _KEY_ID.fullmatch(key_id):
            row = await self._catalog.pool.row(_SQL.statement("api_keys"), "", None, key_id, 1)
            if row is not None:
                return _record(row)
        raise _missing(key_id)

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> tuple[ApiKey, ApiKeyRecord]:
        """Give a key another secret; the key with it, and what is known of it now.

        The old secret stays good for `overlap_s` seconds, and no longer than the key. Raises
        `NotFoundError`, and `ConflictError` for a key that is good no more.
        """
        most_s = self._settings.credential_overlap_max_s
        if not 0 <= overlap_s <= most_s:
            raise InvalidInputError(
                f"the overlap must be 0 to {most_s:g} seconds (TENANCY_CREDENTIAL_OVERLAP_MAX_S)"
            )
        record = await self.show(key_id)
        key, now = new_api_key(key_id), self._clock.now()
        until = now + timedelta(seconds=overlap_s) if overlap_s else None
        if not await self._catalog.pool.write(
            _SQL.statement("rotate_api_key"), key_id, key.digest, until, now
        ):
            raise ConflictError("the key is revoked or has expired; make a new one")
        self._forget(key_id)
        return key, dataclasses.replace(record, rotated_at=now, previous_until=until)

    async def revoke(self, key_id: str) -> None:
        """Let a key be good no more; `NotFoundError` when there is none of that id.

        Revoking it again changes nothing.
        """
        if not _KEY_ID.fullmatch(key_id) or not await self._catalog.pool.write(
            _SQL.statement("revoke_api_key"), key_id
        ):
            raise _missing(key_id)
        self._forget(key_id)

    async def _looked_up(self, text: str, digest: bytes) -> _Verified:
        """What the catalog says of a key, asked once for all who want to know at the same time.

        A question that is older than an answer may be believed is not waited for.
        """
        now_s = self._clock.monotonic_s()
        asked_s, asking = self._asked.get(digest, (now_s, None))
        if asking is None or now_s - asked_s >= self._settings.credential_cache_ms / 1_000:
            asking = asyncio.get_running_loop().create_task(self._look_up(text, digest))
            self._asked[digest] = now_s, asking
            asking.add_done_callback(lambda done: self._answered(digest, done))
        # One who stops waiting must not stop the others' question.
        return await asyncio.shield(asking)

    def _answered(self, digest: bytes, asking: asyncio.Task[_Verified]) -> None:
        """Remember the answer, unless the key was changed here meanwhile or asked for again."""
        _, newest = self._asked.get(digest, (0.0, None))
        # Taken even when nobody waits for it any more: an error that nobody takes is logged.
        failed = asking.cancelled() or asking.exception() is not None
        if newest is asking:
            del self._asked[digest]
            if not failed:
                self._remember(digest, asking.result())

    async def _look_up(self, text: str, digest: bytes) -> _Verified:
        """Ask the catalog. Everything that can be wrong with a key is decided in one place."""
        asked_s = self._clock.monotonic_s()
        key_id = api_key_id(text) or ""
        if not _KEY_ID.fullmatch(key_id):
            key_id = _NO_KEY_ID
        interval_s = self._settings.credential_use_interval_s
        row = await self._catalog.pool.row(_SQL.statement("api_key"), key_id, interval_s)
        stored = row["digest"] if row is not None else _NO_DIGEST
        previous = (row["previous_digest"] if row is not None else None) or _NO_DIGEST
        present, past = same_digest(stored, digest), same_digest(previous, digest)
        if not (present or past) or row is None or row["revoked_at"] is not None:
            raise UnauthenticatedError
        ends = [row["expires_at"], None if present else row["previous_until"]]
        expires_at = min((end for end in ends if end is not None), default=None)
        if row["use_is_news"] and (expires_at is None or expires_at > self._clock.now()):
            await self._note_use(key_id)
        principal = Principal(
            key_id=key_id,
            scope=CredentialScope(row["scope"]),
            tenant_no=None if row["tenant_no"] is None else TenantNo(row["tenant_no"]),
            tenant_id=None if row["tenant_id"] is None else TenantId(row["tenant_id"]),
        )
        # Counted from before the question: what was revoked later may not be in the answer.
        until_s = asked_s + self._settings.credential_cache_ms / 1_000
        return _Verified(principal, expires_at, until_s)

    async def _note_use(self, key_id: str) -> None:
        """Note that a key was used now. Who asks is let in even when that cannot be written."""
        try:
            await self._catalog.pool.write(
                _SQL.statement("note_use_of_api_key"),
                key_id,
                self._settings.credential_use_interval_s,
            )
        except TenancyError as error:
            _log.warning("the use of an API key was not noted: %s", error.slug)

    def _forget(self, key_id: str) -> None:
        """Believe nothing of a key any more, nor what was asked before: of whatever key it is."""
        self._asked.clear()
        for digest, known in list(self._verified.items()):
            if known.principal.key_id == key_id:
                del self._verified[digest]

    def _remember(self, digest: bytes, known: _Verified) -> None:
        self._verified[digest] = known
        self._verified.move_to_end(digest)
        while len(self._verified) > self._settings.credential_cache_entries:
            self._verified.popitem(last=False)


def _missing(key_id: str) -> NotFoundError:
    return NotFoundError(f"there is no API key {key_id[:32]!r}")


def _record(row: asyncpg.Record) -> ApiKeyRecord:
    values = dict(row)
    values["scope"] = CredentialScope(values["scope"])
    return ApiKeyRecord(**values)
