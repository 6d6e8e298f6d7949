"""One small Ray cluster for all tests here, and an installation with its actors for each test."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

# Ray reads these when it is imported or when it starts its processes. Its workers run at a nice
# value of 15 by default, and on a small machine everything else starves them.
os.environ.update(
    {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
)

import ray
from support.install import Install

from tenancy.data_isolation.actors import TenancyClient, connect
from tenancy.data_isolation.actors.configuration import ActorConfiguration, configuration_path
from tenancy.data_isolation.actors.directory import build_directory
from tenancy.data_isolation.actors.remote import (
    REGION_LABEL,
    start_shared_actors,
    stop_actors,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.engine.engine import Engine

#: The region of the one node.
REGION = "here"
_OBJECT_STORE_BYTES = 100 * 1024 * 1024


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster that this process is connected to."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        namespace="tests",
        log_to_driver=False,
        logging_level="ERROR",
        labels={REGION_LABEL: REGION},
    )
    yield
    ray.shutdown()


@dataclass(kw_only=True)
class Running:
    """An installation whose tenant actors run."""

    install: Install
    configuration: ActorConfiguration
    #: For what has no way through actors: the schema.
    engine: Engine

    def client(self, **settings: Any) -> TenancyClient:
        """A client, with other limits of its own side where they are given."""
        made = connect()
        if settings:
            changed = dataclasses.replace(made.settings, **settings)
            return TenancyClient(made.directory, changed, owns_ray=False)
        return made

    def reconfigure(self, **changes: Any) -> None:
        """Start again with another directory: actors that run read it, missing ones start."""
        directory = dataclasses.replace(
            self.configuration.directory,
            version=self.configuration.directory.version + 1,
            **changes,
        )
        self.configuration = dataclasses.replace(self.configuration, directory=directory)
        start_shared_actors(self.configuration, configuration_path(self.configuration.settings))


@pytest.fixture
async def start(cluster: None, install: Install) -> AsyncIterator[Callable[..., Any]]:
    """Starts the tenant actors of the test's installation, under given settings."""
    engines: list[Engine] = []

    async def begin(*, dedicated: frozenset[TenantId] = frozenset(), **settings: Any) -> Running:
        engine = await Engine.attach(install.config)
        engines.append(engine)
        chosen = dataclasses.replace(install.settings, **({"shared_actors": 1} | settings))
        configuration = ActorConfiguration(
            settings=chosen,
            servers=(install.server_config,),
            directory=build_directory(
                version=1, actors_per_region=chosen.shared_actors, dedicated=dedicated
            ),
        )
        start_shared_actors(configuration, configuration_path(chosen))
        return Running(install=install, configuration=configuration, engine=engine)

    try:
        yield begin
    finally:
        stop_actors()
        for engine in engines:
            await engine.close()
