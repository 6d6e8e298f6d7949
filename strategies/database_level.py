"""Database level: one database and one login role per tenant, on a server of the user's choice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.strategies.base import (
    Creation,
    PlacementStrategy,
    check_switches,
    checked_options,
    known_servers,
)

#: Leaves room for the random part within PostgreSQL's 63 bytes.
_PREFIX = re.compile(r"[a-z][a-z0-9_]{0,30}")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: The values of libpq's `sslmode` under which a connection is never made without TLS.
_ENCRYPTED = ("require", "verify-ca", "verify-full")
_DEFAULT_PORT = 5432


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseConfig:
    """How new tenants get a database.

    `host` and `port` choose among the engine's servers the one that listens there. With embedded
    servers there is nothing to choose, and `metrics()` says so. Raises `SettingError`.
    """

    host: str | None = None
    port: int | None = None
    #: What the name of a new database begins with; the rest is random.
    database_prefix: str = "t_"
    #: False = a tenant without a database is an error.
    auto_create_database: bool = True
    #: True = a server that is not on this machine must be reached with TLS only.
    ssl_enabled: bool = False

    def __post_init__(self) -> None:
        check_switches(self)
        if self.host is not None and (not isinstance(self.host, str) or not self.host.strip()):
            raise SettingError("DatabaseConfig.host must be the name or address of a server")
        if self.port is not None and (
            isinstance(self.port, bool)
            or not isinstance(self.port, int)
            or not 1 <= self.port <= 65_535
        ):
            raise SettingError(f"DatabaseConfig.port is {self.port!r}; use 1 to 65535")
        if not isinstance(self.database_prefix, str) or not _PREFIX.fullmatch(self.database_prefix):
            raise SettingError(
                f"DatabaseConfig.database_prefix is {self.database_prefix!r}; use 1 to 31 of a-z, "
                "0-9 and '_', starting with a letter"
            )


class DatabaseLevelStrategy(PlacementStrategy):
    """The strongest level: nothing is shared but the server, and that only if wanted."""

    name = StrategyName.DATABASE_LEVEL
    level = IsolationLevel.DATABASE

    def __init__(self, config: DatabaseConfig | None = None, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self.config = checked_options(config, DatabaseConfig)

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        servers = [(server, _Endpoint.of(server)) for server in known_servers(config)]
        without_effect: dict[str, str] = {}
        asked = self.config.host is not None or self.config.port is not None
        wanted = [item for item in servers if item[1].answers(self.config.host, self.config.port)]
        if not servers:
            without_effect = self._unused(config)
        elif not wanted:
            raise SettingError(
                f"DatabaseConfig: no server of the engine listens at {self._asked_for()}; "
                f"there are {', '.join(f'{s.name} ({e})' for s, e in servers)}"
            )
        if self.config.ssl_enabled:
            for server, endpoint in wanted:
                endpoint.check_encrypted(server)
        chosen = ServerName(wanted[0][0].name) if asked and wanted else None
        creation = Creation(
            allowed=self.config.auto_create_database,
            server=chosen,
            database_prefix=self.config.database_prefix,
        )
        return creation, without_effect

    def _unused(self, config: EngineConfig) -> dict[str, str]:
        """Options that have nothing to act on when no servers were given."""
        why = (
            "the engine's servers are chosen behind the gateway"
            if config.gateway is not None
            else "the engine runs on an embedded server, which listens on this machine only"
        )
        asked = {
            "host": self.config.host is not None,
            "port": self.config.port is not None,
            "ssl_enabled": self.config.ssl_enabled,
        }
        return {name: why for name, given in asked.items() if given}

    def _asked_for(self) -> str:
        return f"{self.config.host or 'any host'}, port {self.config.port or 'any'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Endpoint:
    """Where a server listens and how it is reached, as its DSN says (libpq manual, 32.1.1.2)."""

    places: tuple[tuple[str, int], ...]
    sslmode: str | None

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.places)

    @classmethod
    def of(cls, server: ServerConfig) -> _Endpoint:
        """The end point of a DSN; parameters behind `?` count for more than the authority."""
        parts = urlsplit(server.dsn)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        hosts, ports = [], []
        for place in parts.netloc.rpartition("@")[2].split(","):
            found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d+))?", place)
            hosts.append(unquote(found[1].strip("[]")) if found else "")
            ports.append(int(found[2]) if found and found[2] else _DEFAULT_PORT)
        if "host" in query:
            hosts = query["host"].split(",")
        if "port" in query:
            ports = [int(port) for port in query["port"].split(",") if port.isdigit()]
        ports = (ports or [_DEFAULT_PORT]) * len(hosts) if len(ports) <= 1 else ports
        places = tuple(zip((host or "localhost" for host in hosts), ports, strict=False))
        return cls(places=places, sslmode=query.get("sslmode"))

    def answers(self, host: str | None, port: int | None) -> bool:
        """Whether the server listens at that host and port; None = any."""
        return any(
            (host is None or _same_host(host, own)) and (port is None or port == own_port)
            for own, own_port in self.places
        )

    def check_encrypted(self, server: ServerConfig) -> None:
        """Raise `SettingError` when the network could carry a connection without TLS."""
        outside = [host for host, _ in self.places if not _is_local(host)]
        if outside and self.sslmode not in _ENCRYPTED:
            raise SettingError(
                f"DatabaseConfig.ssl_enabled: server {server.name} at {outside[0]} may be reached "
                f"without TLS; add sslmode={_ENCRYPTED[0]} (or stronger) to its DSN"
            )


def _same_host(left: str, right: str) -> bool:
    left, right = left.strip("[]").lower(), right.lower()
    return left == right or (left in _LOOPBACK and right in _LOOPBACK)


def _is_local(host: str) -> bool:
    return host.startswith("/") or host.lower() in _LOOPBACK
