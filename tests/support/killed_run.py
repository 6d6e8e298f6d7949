"""A run over the fleet that dies after its fourth namespace, as a program of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tenancy.data_isolation.core.crypto import parse_master_key
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.fleet import Fleet
from tenancy.data_isolation.engine.fleet_run import FleetProgress

_MASTER_KEY_TEXT = "5a" * 32


def _die(progress: FleetProgress) -> None:
    if progress.done == 4:
        os._exit(9)


async def _run(dsn: str, database: str, home: str) -> None:
    server = ServerConfig(name="main", dsn=dsn)
    settings = Settings(database=database, home=Path(home), migration_concurrency=1)
    key = parse_master_key(_MASTER_KEY_TEXT)
    fleet = Fleet(
        settings=settings,
        catalog=await Catalog.open(settings=settings, master_key=key, server=server),
        admin=AdminConnections(settings=settings, servers=(server,)),
        keys=BindingKeys(key),
    )
    await fleet.apply(progress=_die)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
