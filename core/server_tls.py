"""What a server's configuration says about TLS, in the words of libpq (manual, 32.1.2 and 32.19).

Rules this module keeps:

* What is asked for is what happens: there is no mode that tries TLS and goes on without it, so
  libpq's `allow` and `prefer` are refused.
* A server that is not on this machine is reached with `verify-full` when nothing is said. Without
  TLS only when somebody wrote `sslmode=disable`.
* An option that cannot be kept is an error, and never left out.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit, urlunsplit

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.settings import ServerConfig

_DEFAULT_PORT: Final = 5432
#: `sslrootcert=system` stands for the certificates that the operating system trusts.
SYSTEM: Final = "system"
_VERSIONS: Final = ("TLSv1.2", "TLSv1.3")


class SslMode(StrEnum):
    """How a server is reached: libpq's modes without those that fall back to plain text."""

    DISABLE = "disable"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"

    @property
    def encrypts(self) -> bool:
        """Whether a connection is never made without TLS."""
        return self is not SslMode.DISABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerPlaces:
    """Where a server listens, as its DSN says."""

    #: Host names, addresses, or directories of unix sockets, each with its port.
    places: tuple[tuple[str, int], ...]
    #: Parameters behind `?`; of one that is given twice, the last.
    parameters: Mapping[str, str]
    #: Whether the DSN names a host. Without one the driver looks for unix sockets first.
    named: bool

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.places)

    @classmethod
    def of(cls, server: ServerConfig) -> ServerPlaces:
        """The places of a DSN; parameters behind `?` count for more than the authority.

        Raises `SettingError` when it cannot be read.
        """
        try:
            parts = urlsplit(server.dsn)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        except ValueError:
            raise _unreadable(server) from None
        hosts, ports = [], []
        for place in parts.netloc.rpartition("@")[2].split(","):
            found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?", place)
            hosts.append(unquote(found[1].strip("[]")) if found else "")
            ports.append(int(found[2]) if found and found[2] else _DEFAULT_PORT)
        if "host" in query:
            if any(hosts) and hosts != query["host"].split(","):
                # libpq and the driver do not take the same one of them.
                raise SettingError(f"the DSN of server {server.name!r} names two hosts; name one")
            hosts = query["host"].split(",")
        if "port" in query:
            ports = [int(port) for port in query["port"].split(",") if port.isdigit()]
        ports = (ports or [_DEFAULT_PORT]) * len(hosts) if len(ports) <= 1 else ports
        places = tuple(zip((host or "localhost" for host in hosts), ports, strict=False))
        return cls(places=places, parameters=query, named=all(hosts))

    @property
    def outside(self) -> str | None:
        """The first host that is not on this machine."""
        return next((host for host, _ in self.places if not is_local(host)), None)

    @property
    def socket(self) -> str | None:
        """The first directory of unix sockets."""
        return next((host for host, _ in self.places if host.startswith("/")), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTls:
    """How one server is reached. Files are absolute paths."""

    mode: SslMode
    #: Certificates that sign servers' certificates; `system`, or None where none is looked at.
    root_cert: str | None = None
    cert: str | None = None
    key: str | None = None
    password: str | None = field(default=None, repr=False)
    crl: str | None = None
    min_version: str = _VERSIONS[0]
    max_version: str | None = None
    #: TLS from the first byte (PostgreSQL 17 and later), in place of asking for it.
    direct: bool = False

    @classmethod
    def of(cls, server: ServerConfig) -> ServerTls:
        """What the DSN and the fields of `server` ask for. Raises `SettingError`."""
        places = ServerPlaces.of(server)
        found = _Options(server, places.parameters)
        mode = _mode(server, places, found.one("sslmode"))
        direct = found.word("sslnegotiation", ("postgres", "direct")) == "direct"
        if found.one("channel_binding") == "require":
            raise SettingError(
                f"server {server.name!r}: channel_binding=require cannot be kept, because the "
                "driver has no SCRAM-SHA-256-PLUS; leave it out and use sslmode=verify-full"
            )
        made = cls(
            mode=mode,
            root_cert=found.path("sslrootcert"),
            cert=found.path("sslcert"),
            key=found.path("sslkey"),
            password=found.one("sslpassword"),
            crl=found.path("sslcrl"),
            min_version=found.word("ssl_min_protocol_version", _VERSIONS) or _VERSIONS[0],
            max_version=found.word("ssl_max_protocol_version", _VERSIONS),
            direct=direct,
        )
        made._check(server, places)
        return made._completed()

    def _check(self, server: ServerConfig, places: ServerPlaces) -> None:
        what = f"server {server.name!r}"
        if not self.mode.encrypts:
            given = [
                item.name
                for item in dataclasses.fields(self)
                if item.name not in ("mode", "min_version") and getattr(self, item.name)
            ]
            if given:
                raise SettingError(
                    f"{what} is reached without TLS, so that its TLS options have nothing to act "
                    f"on ({', '.join(given)}); add sslmode=verify-full, or leave them out"
                )
            return
        if places.socket is not None or not places.named:
            raise SettingError(
                f"{what}: there is no TLS over a unix socket; name a host in its DSN, or leave "
                "sslmode out"
            )
        if (self.cert is None) != (self.key is None):
            raise SettingError(f"{what}: sslcert and sslkey belong together; give both or neither")
        root = self.root_cert or (SYSTEM if self.mode is SslMode.VERIFY_CA else None)
        if root == SYSTEM and self.mode is not SslMode.VERIFY_FULL:
            raise SettingError(
                f"{what}: among the system's authorities anybody with a certificate could answer; "
                "use sslmode=verify-full, or name an authority of your own (sslrootcert)"
            )
        if self.max_version is not None and self.max_version < self.min_version:
            raise SettingError(f"{what}: ssl_max_protocol_version is below the minimum")

    def _completed(self) -> ServerTls:
        # As libpq: `require` looks at the certificate when there is something to hold it against.
        if self.mode is SslMode.REQUIRE and self.root_cert is not None:
            return dataclasses.replace(self, mode=SslMode.VERIFY_CA)
        if self.mode is SslMode.VERIFY_FULL and self.root_cert is None:
            return dataclasses.replace(self, root_cert=SYSTEM)
        return self


class _Options:
    """The options of one server, from its DSN or its fields; both may say the same."""

    def __init__(self, server: ServerConfig, parameters: Mapping[str, str]) -> None:
        self._server = server
        self._parameters = parameters

    def one(self, name: str) -> str | None:
        """The option of that name, in libpq's spelling."""
        field_value = getattr(self._server, name, None)
        given = None if field_value is None else str(field_value)
        in_dsn = self._parameters.get(name)
        if given is not None and in_dsn is not None and given != in_dsn:
            raise SettingError(
                f"server {self._server.name!r}: its DSN and its settings say different things "
                f"about {name}; say it once"
            )
        return in_dsn if given is None else given

    def word(self, name: str, words: tuple[str, ...]) -> str | None:
        """An option that is one of `words`."""
        found = self.one(name)
        if found is not None and found not in words:
            raise SettingError(
                f"server {self._server.name!r}: {name} is {found!r}; use {' or '.join(words)}"
            )
        return found

    def path(self, name: str) -> str | None:
        """An option that is a file."""
        found = self.one(name)
        if found is None or (found == SYSTEM and name == "sslrootcert"):
            return found
        # Processes with other working directories read the same DSN.
        if not Path(found).is_absolute():
            raise SettingError(
                f"server {self._server.name!r}: {name} in its DSN must be an absolute path"
            )
        return found


def _mode(server: ServerConfig, places: ServerPlaces, given: str | None) -> SslMode:
    if given is None:
        return SslMode.DISABLE if places.outside is None else SslMode.VERIFY_FULL
    try:
        return SslMode(given)
    except ValueError:
        known = ", ".join(SslMode)
        why = (
            "goes on without TLS when anybody on the way wishes so"
            if given in ("allow", "prefer")
            else "is not known"
        )
        raise SettingError(
            f"server {server.name!r}: sslmode={given} {why}; use one of {known}"
        ) from None


def plain_dsn(server: ServerConfig) -> str:
    """The DSN without the parameters that the driver would send to the server as settings."""
    parts = urlsplit(server.dsn)
    query = parse_qs(parts.query, keep_blank_values=True)
    if query.pop("channel_binding", None) is None:
        return server.dsn
    return urlunsplit(parts._replace(query=urlencode(query, doseq=True)))


def is_local(host: str) -> bool:
    """Whether a host is this machine: a unix socket, or a loopback address."""
    if host.startswith("/") or host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    # Python 3.11 does not see the loopback address in `::ffff:127.0.0.1`.
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _unreadable(server: ServerConfig) -> SettingError:
    return SettingError(
        f"the DSN of server {server.name!r} cannot be used; give TENANCY_POSTGRES_DSN as a libpq "
        "URI, postgresql://user:password@host:5432/postgres"
    )
