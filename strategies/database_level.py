"""Database level: one database and one login role per tenant, on a server of the user's choice."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.server_tls import ServerPlaces, ServerTls, SslMode
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
    #: True = every connection that this strategy's engine makes to the chosen servers goes through
    #: TLS, with `verify-full` unless the server's `sslmode` says `require` or `verify-ca`; also on
    #: this machine. A server whose `sslmode` is `disable` is an error, and so is one without TLS.
    #: Behind a gateway others connect: a server on a network must then be one with TLS. Where there
    #: is none to be had (unix socket, embedded server), `metrics()` says so.
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

    def _secured(self, config: EngineConfig) -> EngineConfig:
        """The configuration with the chosen servers reached by TLS, if that is asked for."""
        if not self.config.ssl_enabled or config.gateway is not None:
            return config
        chosen = {server.name for server, _ in self._chosen(config)}
        servers = [
            _secured(server) if server.name in chosen else server
            for server in known_servers(config)
        ]
        return dataclasses.replace(config, servers=servers)

    def _chosen(self, config: EngineConfig) -> list[tuple[ServerConfig, ServerPlaces]]:
        """The servers that listen where this strategy's options say."""
        servers = [(server, ServerPlaces.of(server)) for server in known_servers(config)]
        host, port = self.config.host, self.config.port
        return [item for item in servers if _answers(item[1], host, port)]

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        servers = known_servers(config)
        without_effect: dict[str, str] = {}
        asked = self.config.host is not None or self.config.port is not None
        wanted = self._chosen(config)
        if not servers:
            without_effect = self._unused(config)
        elif not wanted:
            listed = ", ".join(f"{server.name} ({ServerPlaces.of(server)})" for server in servers)
            raise SettingError(
                f"DatabaseConfig: no server of the engine listens at {self._asked_for()}; "
                f"there are {listed}"
            )
        elif self.config.ssl_enabled:
            without_effect = self._unencrypted(config, wanted)
        chosen = ServerName(wanted[0][0].name) if asked and wanted else None
        creation = Creation(
            allowed=self.config.auto_create_database,
            server=chosen,
            database_prefix=self.config.database_prefix,
        )
        return creation, without_effect

    def _unencrypted(
        self, config: EngineConfig, wanted: list[tuple[ServerConfig, ServerPlaces]]
    ) -> dict[str, str]:
        """Why there is no TLS to a server, where there is none and need not be."""
        for server, places in wanted:
            if config.gateway is not None and places.outside is not None:
                _secured(server)
            if ServerTls.of(server).mode.encrypts or places.outside is not None:
                continue
            why = "a unix socket" if places.socket else "this machine only, behind the gateway"
            return {"ssl_enabled": f"server {server.name} is reached without TLS, over {why}"}
        return {}

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


def _answers(places: ServerPlaces, host: str | None, port: int | None) -> bool:
    """Whether a server listens at that host and port; None = any."""
    return any(
        (host is None or _same_host(host, own)) and (port is None or port == own_port)
        for own, own_port in places.places
    )


def _secured(server: ServerConfig) -> ServerConfig:
    """The server with TLS; `SettingError` when its configuration says otherwise.

    A unix socket has no TLS and needs none: nothing but the kernel is between the two sides.
    """
    places = ServerPlaces.of(server)
    if places.socket is not None and places.outside is None:
        return server
    if server.sslmode is None and "sslmode" not in places.parameters:
        server = dataclasses.replace(server, sslmode=SslMode.VERIFY_FULL)
    if not ServerTls.of(server).mode.encrypts:
        raise SettingError(
            f"DatabaseConfig.ssl_enabled: server {server.name} ({places}) is to be reached without "
            f"TLS; set its sslmode to {SslMode.VERIFY_FULL}, or ssl_enabled=False"
        )
    return server


def _same_host(left: str, right: str) -> bool:
    left, right = left.strip("[]").lower(), right.lower()
    return left == right or (left in _LOOPBACK and right in _LOOPBACK)
