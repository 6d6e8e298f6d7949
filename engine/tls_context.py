"""What OpenSSL is told about one server's TLS, and what its errors mean.

Nothing outside the configuration counts: neither libpq's variables and files of the user's home,
which other processes of the runtime do not have, nor `SSLKEYLOGFILE`, which writes session keys to
a file.
"""

from __future__ import annotations

import ssl
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


def certificate_problem(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the certificate of the other side, and what to do, as one sentence."""
    return _PROBLEMS.get(error.verify_code) or (
        f"its certificate is not accepted ({error.verify_message}); look at it with "
        "`openssl verify`"
    )


def handshake_problem(error: ssl.SSLError) -> str:
    """Why there is no TLS with the other side, and what to do, as one sentence."""
    reason = error.reason or ""
    for part, text in _REASONS:
        if part in reason:
            return text
    return f"the TLS handshake failed ({reason or 'no reason is known'}); the server's log has more"


def is_about_our_certificate(error: ssl.SSLError) -> bool:
    """Whether the other side refuses the certificate that it got, or that it did not get."""
    return any(part in (error.reason or "") for part in _OURS)


_UNKNOWN_AUTHORITY: Final = (
    "its certificate is not signed by those that are trusted here; name the file with its CA's "
    "certificate (sslrootcert)"
)
_WRONG_NAME: Final = (
    "its certificate is for another host; connect by a name that is in the certificate, or have "
    "one made for this name"
)
#: By OpenSSL's codes (openssl-verification-options, X509_V_ERR_*).
_PROBLEMS: Final[dict[int, str]] = {
    2: _UNKNOWN_AUTHORITY,
    3: "sslcrl has no list of its CA; get the current one",
    9: "its certificate is not valid yet; compare the clocks of both machines",
    10: "its certificate has expired; renew it on the server",
    12: "the list in sslcrl has expired; get the current one",
    18: "its certificate is self-signed and not trusted here; name that certificate (sslrootcert)",
    19: _UNKNOWN_AUTHORITY,
    20: _UNKNOWN_AUTHORITY,
    21: _UNKNOWN_AUTHORITY,
    23: "its certificate was revoked; replace it on the server",
    62: _WRONG_NAME,
    64: _WRONG_NAME,
}
_OURS: Final = (
    "ALERT_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_ACCESS_DENIED",
    "ALERT_DECRYPT_ERROR",
)
#: Parts of OpenSSL's names of reasons, the first that fits.
_REASONS: Final[tuple[tuple[str, str], ...]] = (
    ("CERTIFICATE_EXPIRED", "it says that our certificate (sslcert) has expired; renew it"),
    ("CERTIFICATE_REVOKED", "it says that our certificate (sslcert) was revoked; replace it"),
    ("CERTIFICATE_REQUIRED", "it asks for a client certificate; name one (sslcert, sslkey)"),
    (
        "ALERT_UNKNOWN_CA",
        "it does not know the CA of our certificate (sslcert); use one of the CA that it trusts",
    ),
    ("ALERT_HANDSHAKE_FAILURE", "it refuses our TLS options or certificate (sslcert)"),
    ("CERTIFICATE", "it does not accept our certificate (sslcert); see its log"),
    ("PROTOCOL", "it has no TLS version that is allowed here (ssl_min_protocol_version)"),
    ("VERSION", "it has no TLS version that is allowed here (ssl_min_protocol_version)"),
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
