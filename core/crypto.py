"""Keys, signatures and verifiers. Nothing here does I/O.

Everything secret is derived from one master key by HKDF (RFC 5869), so that there is one thing to
keep, and so that a leak of one derived key tells nothing of the others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import NewType

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import DatabaseName, Epoch, RoleName, TenantNo

#: The 32 bytes from which all else is derived.
MasterKey = NewType("MasterKey", bytes)

_SCRAM_ITERATIONS = 4096
_API_KEY_PREFIX = "tk"
_MARK_PREFIX = "tenancy "
#: PostgreSQL keeps 63 bytes of a name.
_MARK_DIGITS = 32


@dataclass(frozen=True, slots=True)
class BindingKey:
    """A key that signs bindings in one database. Keys have ids so that they can rotate."""

    key_id: int
    secret: bytes

    def __repr__(self) -> str:
        return f"BindingKey(key_id={self.key_id})"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A fresh API key. Only `key_id` and `digest` are kept; `text` is shown once."""

    key_id: str
    text: str
    digest: bytes

    def __repr__(self) -> str:
        return f"ApiKey(key_id={self.key_id!r})"


def new_master_key() -> MasterKey:
    """32 fresh random bytes."""
    return MasterKey(secrets.token_bytes(32))


def parse_master_key(text: str) -> MasterKey:
    """The key that 64 hexadecimal digits spell; `SettingError` otherwise."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise SettingError("the master key must be 64 hexadecimal digits (32 bytes)")
    return MasterKey(key)


def binding_key(master: MasterKey, server: str, database: DatabaseName, key_id: int) -> BindingKey:
    """The key numbered `key_id` that signs bindings in one database of one server."""
    return BindingKey(key_id, _derive(master, f"binding/{server}/{database}/{key_id}"))


def sign_binding(key: BindingKey, tenant_no: TenantNo, epoch: Epoch, backend_pid: int) -> str:
    """The signed binding of a session: `key_id.tenant_no.epoch.pid.hmac`.

    The message is the text before the last dot, the signature HMAC-SHA256 (RFC 2104) in lower-case
    hexadecimal. A binding is worth nothing on another backend or in another database.
    """
    message = f"{key.key_id}.{tenant_no}.{epoch}.{backend_pid}"
    signature = hmac.new(key.secret, message.encode(), hashlib.sha256).hexdigest()
    return f"{message}.{signature}"


def session_mark(
    master: MasterKey, server: str, role: RoleName, database: DatabaseName, issued_ms: int
) -> str:
    """A name for one session, by which the watchdog of a server knows it as the runtime's own.

    `tenancy <time>.<chance>.<signature>`, each in hexadecimal; `issued_ms` is the time of day. It
    is worth nothing for another login, or in another database.
    """
    message = f"{issued_ms:x}.{secrets.token_hex(4)}"
    return f"{_MARK_PREFIX}{message}.{_mark_signature(master, server, role, database, message)}"


def session_mark_time(
    master: MasterKey, server: str, role: str, database: str, mark: str
) -> int | None:
    """When a mark was issued (time of day, in milliseconds); None when it is not one of ours."""
    if not mark.startswith(_MARK_PREFIX):
        return None
    message, _, signature = mark.removeprefix(_MARK_PREFIX).rpartition(".")
    expected = _mark_signature(master, server, role, database, message)
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        return None
    return int(message.partition(".")[0], 16)


def _mark_signature(master: MasterKey, server: str, role: str, database: str, message: str) -> str:
    key = _derive(master, f"session/{server}")
    # No name holds the byte that stands between them.
    signed = "\0".join((role, database, message)).encode()
    return hmac.new(key, signed, hashlib.sha256).hexdigest()[:_MARK_DIGITS]


def record_key(master: MasterKey, purpose: str) -> bytes:
    """The key (HMAC-SHA256) that seals a record which is kept in a file, for one purpose."""
    return _derive(master, f"record/{purpose}")


def hmac_pads(key: BindingKey) -> tuple[bytes, bytes]:
    """The inner and outer 64-byte blocks of HMAC-SHA256 (RFC 2104) for `key`.

    PostgreSQL has SHA-256 but no HMAC of its own; with these two blocks stored, the database checks
    a signature by two calls of `sha256` and needs no extension.
    """
    block = key.secret.ljust(64, b"\x00")
    return bytes(b ^ 0x36 for b in block), bytes(b ^ 0x5C for b in block)


def role_password(master: MasterKey, server: str, role: RoleName) -> str:
    """The password of a login role. Derived, so nothing has to store it."""
    return base64.urlsafe_b64encode(_derive(master, f"role/{server}/{role}")).decode().rstrip("=")


def scram_verifier(password: str, salt: bytes) -> str:
    """What `CREATE ROLE ... PASSWORD` takes in place of a password (RFC 5803).

    The server then never sees the password, and neither do its logs. `salt` is 16 bytes.
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


def role_salt(master: MasterKey, server: str, role: RoleName) -> bytes:
    """The salt of a role's verifier: derived, so that making the role twice changes nothing."""
    return _derive(master, f"salt/{server}/{role}")[:16]


def new_api_key(key_id: str | None = None) -> ApiKey:
    """A fresh API key with 256 random bits: `tk_<id>_<secret>`. Rotating keeps the id."""
    key_id = key_id or secrets.token_hex(8)
    text = f"{_API_KEY_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    return ApiKey(key_id, text, api_key_digest(text))


def api_key_id(text: str) -> str | None:
    """The id inside an API key, or None when `text` does not look like one."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != _API_KEY_PREFIX or len(parts[1]) != 16:
        return None
    return parts[1]


def api_key_digest(text: str) -> bytes:
    """What is stored of an API key. It has 256 random bits, so a plain hash cannot be guessed."""
    return hashlib.sha256(text.encode()).digest()


def same_digest(left: bytes, right: bytes) -> bool:
    """Whether two digests are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(left, right)


def _derive(master: MasterKey, purpose: str) -> bytes:
    """32 bytes for one purpose: HKDF-SHA256 (RFC 5869), extract and one round of expand."""
    extracted = hmac.digest(b"tenancy.data_isolation", master, "sha256")
    return hmac.digest(extracted, purpose.encode() + b"\x01", "sha256")
