"""Where the HTTP endpoint is, and how this machine speaks to it."""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.endpoint_certificate import client_context, endpoint_certificate

_LOOPBACK = "127.0.0.1"
_ANSWER_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The endpoint of a runtime.

    `url` is what clients write, with the name that the certificate is for. This machine connects to
    `local_url`, since it may not know itself by that name, and checks the certificate all the same.
    """

    url: str
    local_url: str
    #: What signs the certificate; None = the authorities that the system trusts, or plain HTTP.
    ca_file: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Endpoint:
        """Where the endpoint of these settings is. Blocks. Raises `SettingError`."""
        certificate = endpoint_certificate(settings)
        host = settings.http_host
        if host in ("0.0.0.0", "::", ""):  # noqa: S104 - an address to reach it at
            host = _LOOPBACK
        if certificate is None:
            url = _url("http", host, settings.http_port)
            return cls(url=url, local_url=url)
        return cls(
            url=_url("https", certificate.name, settings.http_port),
            local_url=_url("https", host, settings.http_port),
            ca_file=None if certificate.authority is None else str(certificate.authority),
        )

    @cached_property
    def name(self) -> str:
        """The name, or the address, that the certificate has to be for."""
        return urlsplit(self.url).hostname or _LOOPBACK

    @cached_property
    def host(self) -> str:
        """What a request says it is for (RFC 9110, 7.2)."""
        return urlsplit(self.url).netloc

    def context(self) -> ssl.SSLContext | None:
        """What the certificate is checked by; None for plain HTTP. Blocks."""
        if not self.url.startswith("https:"):
            return None
        return client_context(None if self.ca_file is None else Path(self.ca_file))

    def ask(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and beginning of the answer to a GET. Blocks. Raises `OSError`, `SettingError`."""
        place = urlsplit(self.local_url)
        connection = http.client.HTTPConnection(
            place.hostname or _LOOPBACK, place.port, timeout=timeout_s
        )
        context = self.context()
        try:
            connection.connect()
            if context is not None:
                plain: socket.socket = connection.sock
                # A socket that was wrapped is closed with the other, also when this fails.
                connection.sock = context.wrap_socket(plain, server_hostname=self.name)
            connection.request("GET", path, headers={"Host": self.host})
            answer = connection.getresponse()
            return answer.status, answer.read(_ANSWER_BYTES_MAX)
        except ssl.SSLCertVerificationError as error:
            raise OSError(f"its certificate is not accepted: {error.verify_message}") from None
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP was answered ({type(error).__name__})") from None
        finally:
            connection.close()


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
