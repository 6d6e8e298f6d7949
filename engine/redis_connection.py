"""The user's own Redis server: how it is reached, and what is wrong when it is not.

Rules this module keeps:

* `rediss://` means that the server's certificate is verified, with its host name, by the CA that is
  named and no other. The client library's own context trusts the system's authorities besides.
* An option that cannot be kept, or that would take verification away, is an error.
* `redis://` is plain text, which is said when it goes over a network.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from tenancy.data_isolation.core.errors import SettingError, SetupError, TenancyError
from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.key_file import load_authorities, load_pair
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.tls_context import OptionNames, transport_problem

_log = logging.getLogger(__name__)

_VARIABLE: Final = "TENANCY_REDIS_URL"
_DEFAULT_HOST: Final = "localhost"
#: In the URL, and as settings (`redis_` before them).
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_NAMES: Final = OptionNames(
    root="TENANCY_REDIS_SSL_CA_CERTS",
    cert="TENANCY_REDIS_SSL_CERTFILE",
    key="TENANCY_REDIS_SSL_KEYFILE",
    version="TLS 1.2 or later",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisConnection:
    """How the server of `TENANCY_REDIS_URL` is reached."""

    #: What the client library makes of the URL, without what it says about TLS.
    arguments: dict[str, Any] = field(repr=False)
    encrypted: bool
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> RedisConnection:
        """What the settings say. Raises `SettingError`."""
        try:
            found: dict[str, Any] = dict(parse_url(settings.redis_url or ""))
        except ValueError:
            raise SettingError(
                f"{_VARIABLE} cannot be read; use rediss://user:password@host:6379/0, or redis:// "
                "for a server without TLS"
            ) from None
        encrypted = found.get("connection_class") is SSLConnection
        given = {name: found.pop(name) for name in list(found) if name.startswith("ssl_")}
        for name in _FILES:
            setting = getattr(settings, f"redis_{name}")
            if setting is not None and given.setdefault(name, str(setting)) != str(setting):
                raise SettingError(f"{_VARIABLE} and its settings differ in {name}; say it once")
        _check(given, encrypted=encrypted)
        return cls(
            arguments=found,
            encrypted=encrypted,
            authority=_path(given, "ssl_ca_certs"),
            certificate=_path(given, "ssl_certfile"),
            key=_path(given, "ssl_keyfile"),
        )

    @classmethod
    def check_embedded(cls, settings: Settings) -> None:
        """Refuse options that the embedded server, which has no TLS, would leave without effect."""
        for name in _FILES:
            if getattr(settings, f"redis_{name}") is not None:
                raise SettingError(
                    f"TENANCY_REDIS_{name.upper()} has nothing to act on: the embedded Redis "
                    f"listens on this machine only and has no TLS; set {_VARIABLE} as well"
                )

    @property
    def is_exposed(self) -> bool:
        """Whether passwords and data cross a network in plain text."""
        host = self.arguments.get("host", _DEFAULT_HOST)
        return not self.encrypted and "path" not in self.arguments and not is_local(host)

    async def client(self, timeout_s: float) -> Redis:
        """A client that has not connected yet, and waits for no answer longer than `timeout_s`.

        Raises `SettingError` for files that cannot be used.
        """
        arguments = self.arguments | {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.encrypted:
            context = await in_thread(self._context)
            arguments |= {"connection_class": _TlsConnection, "context": context}
        return Redis.from_pool(ConnectionPool(**arguments))

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.authority is None:
            context.load_default_certs()
        else:
            load_authorities(context, self.authority, _NAMES.root)
        if self.certificate is not None and self.key is not None:
            load_pair(context, self.certificate, self.key, options=(_NAMES.cert, _NAMES.key))
        return context


class _TlsConnection(SSLConnection):
    """A connection with a context of ours."""

    def __init__(self, *, context: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        # It makes one of its own when there is none.
        self.ssl_context.context = context


async def check_redis(settings: Settings) -> None:
    """See that the user's own server answers. Raises `SetupError` or `SettingError`."""
    connection = RedisConnection.of(settings)
    if connection.is_exposed:
        _log.warning(
            "%s is redis://: its password and all data cross the network in plain text; use "
            "rediss:// when the server has TLS",
            _VARIABLE,
        )
    client = await connection.client(settings.connect_timeout_s)
    try:
        await client.ping()
    except (RedisError, OSError, ValueError, TimeoutError) as error:
        raise _unanswered(connection, error) from None
    finally:
        await client.aclose()


def _unanswered(connection: RedisConnection, error: Exception) -> TenancyError:
    problem = transport_problem(error, _NAMES) if connection.encrypted else None
    if problem is not None:
        return SetupError(f"the Redis server that {_VARIABLE} names cannot be used: {problem}")
    if isinstance(error, AuthenticationError):
        return SetupError(f"the Redis server refuses the user or the password of {_VARIABLE}")
    if connection.encrypted:
        shown = "refuse our certificate" if connection.certificate else "ask for a certificate"
        hint = (
            f". It may have no TLS at that port, or {shown} ({_NAMES.cert}, {_NAMES.key}); its log "
            "has more"
        )
    else:
        hint = ". If it asks for TLS, the URL begins with rediss://"
    return SetupError(
        f"the Redis server that {_VARIABLE} names does not answer ({type(error).__name__}); "
        f"correct the variable, or leave it out for an embedded one{hint}"
    )


def _check(given: dict[str, Any], *, encrypted: bool) -> None:
    if given and not encrypted:
        raise SettingError(
            f"{_VARIABLE} is not rediss://, so that TLS options have nothing to act on "
            f"({', '.join(sorted(given))})"
        )
    if given.pop("ssl_cert_reqs", "required") != "required" or not given.pop(
        "ssl_check_hostname", True
    ):
        raise SettingError(
            f"{_VARIABLE} would take any server for the right one (ssl_cert_reqs, "
            f"ssl_check_hostname); leave that out, and name the CA ({_NAMES.root})"
        )
    unknown = sorted(set(given) - set(_FILES))
    if unknown:
        raise SettingError(f"{_VARIABLE}: {', '.join(unknown)} cannot be set; leave it out")
    if ("ssl_certfile" in given) != ("ssl_keyfile" in given):
        raise SettingError(f"{_NAMES.cert} and {_NAMES.key} belong together; give both or neither")


def _path(given: dict[str, Any], name: str) -> Path | None:
    found = given.get(name)
    if found is None:
        return None
    if not Path(found).is_absolute():
        raise SettingError(f"{_VARIABLE}: {name} must be an absolute path")
    return Path(found)
