"""This product, by its public API: the engine in this process, and tenants' actors.

Both keep the signed binding, the fence and the guard, which nothing else here has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.core import EngineConfig, Operation, ServerConfig, Settings
from tenancy.data_isolation.engine.engine import Engine

READ = "select bal from users where id = $1"


class InProcess:
    """`Engine`, as a program without Ray uses it."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._level = target["level"]

    async def open(self) -> None:
        """Connect to the installation."""
        server = ServerConfig(dsn=self._target["server_dsn"])
        settings = Settings(home=Path(self._target["home"]), tiers=self._target["tiers"])
        self._engine = await Engine.attach(EngineConfig(servers=(server,), settings=settings))

    async def read(self, tenant: int, row: int) -> int:
        """One operation."""
        done = await self._engine.execute(
            f"{self._level}-{tenant}", Operation(query=READ, params=[row])
        )
        return int(done.rows[0][0])

    async def close(self) -> None:
        """Disconnect."""
        await self._engine.close()


class ThroughActors:
    """The client of `connect()`, which sends what is waiting for one actor together."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._home = target["home"]
        self._level = target["level"]

    async def open(self) -> None:
        """Join the cluster."""
        self._client = connect(home=self._home)

    async def read(self, tenant: int, row: int) -> int:
        """One operation."""
        done = await self._client.execute(f"{self._level}-{tenant}", READ, [row])
        return int(done.rows[0][0])

    async def close(self) -> None:
        """Leave the cluster."""
        await self._client.aclose()
