"""What OpenSSL is told about one server's TLS, and what its errors mean.

Nothing outside the configuration counts: neither libpq's variables and files of the user's home,
which other processes of the runtime do not have, nor `SSLKEYLOGFILE`, which writes session keys to
a file.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from tenancy.data_isolation.core.server_tls import SYSTEM, ServerTls, SslMode
from tenancy.data_isolation.engine.key_file import load_authorities, load_pair

#: What PostgreSQL 17 and later ask for when TLS begins with the first byte (manual, 55.2.11).
_PROTOCOL: Final = "postgresql"
_CONTEXTS_MAX: Final = 64


def tls_context(tls: ServerTls) -> ssl.SSLContext:
    """The context for that configuration; made anew when a file has changed. Blocks.

    Raises `SettingError` when a file cannot be used.
    """
    names = (tls.root_cert, tls.cert, tls.key, tls.crl)
    return _made(tls, tuple(_stamp(name) for name in names))


@lru_cache(maxsize=_CONTEXTS_MAX)
def _made(tls: ServerTls, stamps: tuple[tuple[int, int] | None, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _version(tls.min_version)
    if tls.max_version is not None:
        context.maximum_version = _version(tls.max_version)
    context.set_alpn_protocols([_PROTOCOL])
    context.check_hostname = tls.mode is SslMode.VERIFY_FULL
    if tls.mode is SslMode.REQUIRE:
        context.verify_mode = ssl.CERT_NONE
    if tls.root_cert == SYSTEM:
        context.load_default_certs()
    elif tls.root_cert is not None:
        load_authorities(context, Path(tls.root_cert), "sslrootcert")
    if tls.crl is not None:
        load_authorities(context, Path(tls.crl), "sslcrl")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if tls.cert is not None and tls.key is not None:
        load_pair(
            context,
            Path(tls.cert),
            Path(tls.key),
            options=("sslcert", "sslkey"),
            password=tls.password,
        )
    return context


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionNames:
    """What the user calls the options of a connection."""

    root: str
    cert: str
    key: str
    version: str
    crl: str = "sslcrl"


#: Those of libpq.
LIBPQ_NAMES: Final = OptionNames(
    root="sslrootcert", cert="sslcert", key="sslkey", version="ssl_min_protocol_version"
)


def transport_problem(error: BaseException, names: OptionNames) -> str | None:
    """What is wrong with the TLS of a connection and what to do; None when it is not about TLS.

    `error` is what a client library raised; OpenSSL's error may be behind it.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            text = _PROBLEMS.get(seen.verify_code, _OTHER_PROBLEM)
            return text.format(names=names, reason=seen.verify_message)
        if isinstance(seen, ssl.SSLError):
            reason = seen.reason or "no reason is known"
            texts = (text for part, text in _REASONS if part in reason)
            return next(texts, _OTHER_REASON).format(names=names, reason=reason)
        seen = seen.__cause__ or seen.__context__
    return None


_UNKNOWN_AUTHORITY: Final = (
    "its certificate is not signed by those that are trusted here; name the file with its CA's "
    "certificate ({names.root})"
)
_WRONG_NAME: Final = (
    "its certificate is for another host; connect by a name that is in the certificate, or have "
    "one made for this name"
)
_OTHER_PROBLEM: Final = (
    "its certificate is not accepted ({reason}); look at it with `openssl verify`"
)
#: By OpenSSL's codes (openssl-verification-options, X509_V_ERR_*).
_PROBLEMS: Final[dict[int, str]] = {
    2: _UNKNOWN_AUTHORITY,
    3: "{names.crl} has no list of its CA; get the current one",
    9: "its certificate is not valid yet; compare the clocks of both machines",
    10: "its certificate has expired; renew it on the server",
    12: "the list in {names.crl} has expired; get the current one",
    18: "its certificate is self-signed and not trusted here; name that certificate ({names.root})",
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    23: "its certificate was revoked; replace it on the server",
    62: _WRONG_NAME,
    64: _WRONG_NAME,
}
_OTHER_REASON: Final = "the TLS handshake failed ({reason}); the server's log has more"
_NO_VERSION: Final = "it has no TLS version that is allowed here ({names.version})"
#: Parts of OpenSSL's names of reasons, and the first that fits.
_REASONS: Final[tuple[tuple[str, str], ...]] = (
    ("CERTIFICATE_EXPIRED", "it says that our certificate ({names.cert}) has expired; renew it"),
    ("CERTIFICATE_REVOKED", "it says that our certificate ({names.cert}) was revoked; replace it"),
    (
        "CERTIFICATE_REQUIRED",
        "it asks for a client certificate; name one ({names.cert}, {names.key})",
    ),
    (
        "ALERT_UNKNOWN_CA",
        "it does not know the CA of our certificate ({names.cert}); use one of a CA that it trusts",
    ),
    (
        "ALERT_HANDSHAKE_FAILURE",
        "it refuses our TLS options, or asks for a certificate ({names.cert}, {names.key})",
    ),
    ("CERTIFICATE", "it does not accept our certificate ({names.cert}); see its log"),
    ("WRONG_VERSION_NUMBER", "what it answers is not TLS; see that TLS is on at that port"),
    ("RECORD_LAYER_FAILURE", "what it answers is not TLS; see that TLS is on at that port"),
    ("PROTOCOL", _NO_VERSION),
    ("VERSION", _NO_VERSION),
    ("EOF", "it ended the TLS handshake; its log has more"),
)


def _version(text: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[text.replace(".", "_")]


def _stamp(name: str | None) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    if name is None or name == SYSTEM:
        return None
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_mode << 32 | found.st_ino
