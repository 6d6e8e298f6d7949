"""What a request's headers ask for: how long to wait at most, and to do a write only once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import InvalidInputError

IDEMPOTENCY_KEY = "Idempotency-Key"
PREFER = "Prefer"

_KEY_CHARACTERS_MAX = 200
# A structured-field string (RFC 8941, 3.3.3), or the same without its quotes, as many clients send.
_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"|([\x21\x23-\x5b\x5d-\x7e]+)')
_PREFERENCE = re.compile(r'\s*([\w!#$%&\'*+.^`|~-]+)\s*(?:=\s*("[^"]*"|[^\s;,]*))?[^,]*(?:,|$)')


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOptions:
    """Options of one request on a tenant's data.

    `deadline_s` is what the client wants to wait, at most what the runtime allows; None = that.
    """

    deadline_s: float | None = None
    idempotency_key: str | None = None

    @classmethod
    def of(cls, headers: Headers, settings: Settings) -> RequestOptions:
        """The options in `headers`; `InvalidInputError` for one that makes no sense."""
        preferred, key = headers.getlist(PREFER), headers.getlist(IDEMPOTENCY_KEY)
        if not preferred and not key:
            return _NONE
        return cls(
            deadline_s=_wait(",".join(preferred), settings) if preferred else None,
            idempotency_key=_key(key) if key else None,
        )

    def answer_headers(self) -> dict[str, str]:
        """What the answer says about the options that were followed (RFC 7240, 3)."""
        if self.deadline_s is None:
            return {}
        return {"Preference-Applied": f"wait={self.deadline_s:g}"}


_NONE = RequestOptions()


def _key(values: list[str]) -> str:
    """The idempotency key (IETF draft-ietf-httpapi-idempotency-key-header)."""
    found = _KEY.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None or len(found[0]) > _KEY_CHARACTERS_MAX:
        raise InvalidInputError(
            f"{IDEMPOTENCY_KEY} must be one text of 1 to {_KEY_CHARACTERS_MAX} visible ASCII "
            "characters, such as a UUID"
        )
    quoted = found[1]
    return re.sub(r'\\(["\\])', r"\1", quoted) if quoted is not None else found[2]


def _wait(text: str, settings: Settings) -> float | None:
    """The preference `wait=<seconds>` (RFC 7240, 4.3); others are not ours to follow."""
    for name, value in _PREFERENCE.findall(text):
        if name.lower() != "wait":
            continue
        seconds = value.strip('"')
        if not re.fullmatch(r"[0-9]{1,9}", seconds) or not int(seconds):
            raise InvalidInputError(
                f"{PREFER}: wait must be a whole number of seconds, 1 or more, such as wait=5"
            )
        return min(float(seconds), settings.statement_timeout_ms / 1000)
    return None
