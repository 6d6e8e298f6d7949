"""The certificate of the HTTPS endpoint, held against everything a client would hold it against.

A handshake between two sides in memory, one with the certificate and its key, one with what signs
it, finds at the start what clients would find later: a key of another certificate, a certificate
that has expired, is for another name, or does not lead to an authority.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.engine.key_file import load_authorities, load_pair

_CERTIFICATE: Final = "TENANCY_HTTP_TLS_CERTIFICATE"
_KEY: Final = "TENANCY_HTTP_TLS_KEY"
_AUTHORITY: Final = "TENANCY_HTTP_TLS_CA"
_NAME: Final = "TENANCY_HTTP_TLS_NAME"
#: Flights of a handshake, and some more.
_ROUNDS_MAX: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointCertificate:
    """A certificate that clients accept, and the name by which they reach the endpoint."""

    certificate: Path
    key: Path
    authority: Path | None
    #: A host name or an address that the certificate is for.
    name: str
    expires_at: datetime


def endpoint_certificate(settings: Settings) -> EndpointCertificate | None:
    """The endpoint's certificate; None when it speaks plain HTTP. Blocks.

    Raises `SettingError`, naming the variable, when clients could not be served with it.
    """
    certificate, key = settings.http_tls_certificate, settings.http_tls_key
    if certificate is None or key is None:
        _check_nothing_given(settings)
        return None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server, certificate, key, options=(_CERTIFICATE, _KEY))
    client = client_context(settings.http_tls_ca)
    client.check_hostname = False
    shown = _shown(server, client, settings, None)
    name = settings.http_tls_name or _chosen_name(shown, settings)
    client.check_hostname = True
    _shown(server, client, settings, name)
    return EndpointCertificate(
        certificate=certificate,
        key=key,
        authority=settings.http_tls_ca,
        name=name,
        expires_at=datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC),
    )


def client_context(authority: Path | None) -> ssl.SSLContext:
    """What a client of the endpoint checks it by: `authority`, or those of the system. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority is None:
        context.load_default_certs()
    else:
        load_authorities(context, authority, _AUTHORITY)
    return context


def _check_nothing_given(settings: Settings) -> None:
    given = {
        _CERTIFICATE: settings.http_tls_certificate,
        _KEY: settings.http_tls_key,
        _AUTHORITY: settings.http_tls_ca,
        _NAME: settings.http_tls_name,
    }
    for variable, value in given.items():
        if value is not None:
            raise SettingError(
                f"{variable} has nothing to act on: HTTPS needs both {_CERTIFICATE} and {_KEY}"
            )


def _shown(
    server: ssl.SSLContext, client: ssl.SSLContext, settings: Settings, name: str | None
) -> dict[str, Any]:
    """What a client sees of the certificate; `SettingError` when it would not accept it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    try:
        for _ in range(_ROUNDS_MAX):
            if all([_is_done(theirs), _is_done(ours)]):
                break
    except ssl.SSLCertVerificationError as error:
        raise SettingError(f"{_CERTIFICATE}: {_problem(error, settings, name)}") from None
    except ssl.SSLError as error:
        raise SettingError(
            f"{_CERTIFICATE}: no client could use it ({error.reason}); use an RSA or EC key with a "
            "certificate of a current kind"
        ) from None
    found: dict[str, Any] = theirs.getpeercert() or {}
    return found


def _is_done(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _problem(error: ssl.SSLCertVerificationError, settings: Settings, name: str | None) -> str:
    where = settings.http_tls_certificate
    match error.verify_code:
        case 9:
            return f"{where} is not valid yet; look at this machine's clock"
        case 10:
            return f"{where}, or what signs it, has expired; renew it"
        case 62 | 64:
            return f"{where} is not for {name}; set {_NAME} to a name that is in it"
        case 2 | 18 | 19 | 20 | 21 if settings.http_tls_ca is not None:
            return (
                f"{where} is not signed by {settings.http_tls_ca} ({_AUTHORITY}); name the CA's "
                "certificate, and put those between the two behind the certificate in its file"
            )
        case 2 | 18 | 19 | 20 | 21:
            return (
                f"{where} is not signed by an authority that this system trusts; set {_AUTHORITY} "
                "to the certificate of the CA (of a self-signed one, to itself)"
            )
        case _:
            return f"clients would refuse {where}: {error.verify_message}"


def _chosen_name(shown: dict[str, Any], settings: Settings) -> str:
    """Where we listen, if the certificate is for that; else the first name that is in it."""
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    addresses = [
        # OpenSSL writes all eight groups of one of version 6.
        str(ipaddress.ip_address(value.strip()))
        for kind, value in shown.get("subjectAltName", ())
        if kind == "IP Address"
    ]
    host = settings.http_host
    for near in (host, "127.0.0.1", "localhost") if is_local(host) else (host,):
        if near in names or near in addresses:
            return near
    for name in (*names, *addresses):
        if "*" not in name:
            return str(name)
    raise SettingError(
        f"{_CERTIFICATE}: {settings.http_tls_certificate} has no name to reach the endpoint by "
        f"({', '.join(names) or 'no subjectAltName'}); set {_NAME}, or have one made with names"
    )
