"""What a tenant actor needs to know to start: a file that only the service's user can read.

Ray keeps the arguments of an actor in its control store, for as long as the actor lives and for
everyone who can reach the cluster; so an actor gets the path of this file and no secret. It reads
the file whenever it starts (also after a crash), so a changed password needs no new actor. On
several machines the path has to exist on each of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenancy.data_isolation.actors.directory import (
    MOVER_NAME,
    ActorName,
    Directory,
    is_dedicated,
)
from tenancy.data_isolation.core.errors import SettingError, SetupError
from tenancy.data_isolation.core.identifiers import Region, TenantId
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorConfiguration:
    """Settings, servers and the directory, as the actors of one installation share them."""

    settings: Settings
    servers: tuple[ServerConfig, ...]
    directory: Directory

    def engine_config(self, name: ActorName) -> EngineConfig:
        """What the actor `name` opens its engine with: its share of the connections.

        `server_connections_max` is what the runtime as a whole may hold on a server. A dedicated
        actor gets what one tenant may have; the shared ones divide the rest.
        """
        return EngineConfig(
            servers=self.servers,
            settings=dataclasses.replace(
                self.settings, server_connections_max=self._connections(name)
            ),
        )

    def public_settings(self) -> Settings:
        """The settings without their secrets, for a client in another process."""
        return dataclasses.replace(
            self.settings, postgres_dsn=None, redis_url=None, master_key=None
        )

    def _connections(self, name: ActorName) -> int:
        if name == MOVER_NAME:
            return 1  # It runs no statements of tenants, and its own are the admin's.
        settings = self.settings
        each = min(settings.tenant_connections_max, settings.server_connections_max)
        if is_dedicated(name):
            return each
        left = settings.server_connections_max - each * settings.dedicated_actors_max
        return max(left // len(self.directory.shared_names()), 1)


def configuration_path(settings: Settings) -> Path:
    """Where the file is, under `TENANCY_HOME`."""
    return settings.home / "run" / "actors.json"


def write_configuration(configuration: ActorConfiguration, path: Path) -> None:
    """Write the file at once and whole, readable by its owner only."""
    directory = configuration.directory
    document = {
        "format": _FORMAT,
        "settings": _plain_settings(configuration.settings),
        "servers": [dataclasses.asdict(server) for server in configuration.servers],
        "directory": {
            "version": directory.version,
            "shared": {region: list(names) for region, names in directory.shared.items()},
            "dedicated": sorted(directory.dedicated),
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=1)
    fresh.replace(path)


def read_configuration(path: Path) -> ActorConfiguration:
    """What the file says; `SetupError` when it is missing or not ours."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise SetupError(
            f"{path} does not exist; start the runtime with `tenancy up`, and on several machines "
            "give each the same TENANCY_HOME"
        ) from None
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise SetupError(f"{path} was written by another version; run `tenancy up` again")
    return _parse(document, path)


def _parse(document: dict[str, Any], path: Path) -> ActorConfiguration:
    listed = document["directory"]
    settings = dict(document["settings"])
    for name in _PATHS:
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    try:
        return ActorConfiguration(
            settings=Settings(**settings),
            servers=tuple(ServerConfig(**server) for server in document["servers"]),
            directory=Directory(
                version=listed["version"],
                shared={
                    Region(region): tuple(ActorName(name) for name in names)
                    for region, names in listed["shared"].items()
                },
                dedicated=frozenset(TenantId(tenant) for tenant in listed["dedicated"]),
            ),
        )
    except (TypeError, KeyError):
        raise SettingError(
            f"{path} holds other settings than this version knows; run `tenancy up` again"
        ) from None


_PATHS = tuple(item.name for item in dataclasses.fields(Settings) if "Path" in str(item.type))


def _plain_settings(settings: Settings) -> dict[str, Any]:
    values = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items()
    } | {"tiers": settings.tiers.plain()}
