"""The file by which an actor in the process of a test finds its installation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from support.install import Install
from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
    write_configuration,
)
from tenancy.data_isolation.actors.directory import build_directory


def actor_file(install: Install, **settings: Any) -> tuple[ActorConfiguration, Path]:
    """Write it, with one shared actor, and with other settings where they are given."""
    configuration = ActorConfiguration(
        settings=dataclasses.replace(install.settings, **settings),
        servers=(install.server_config,),
        directory=build_directory(version=1, actors_per_region=1),
    )
    path = configuration_path(configuration.settings)
    write_configuration(configuration, path)
    return configuration, path
