"""The PostgreSQL servers that an engine works on: the user's own, or the embedded one."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tenancy.data_isolation.core.servers_file import all_servers
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.server_connection import check_transport


async def configured_servers(
    config: EngineConfig, settings: Settings, stack: AsyncExitStack
) -> tuple[ServerConfig, ...]:
    """The configured servers, or the embedded one, started; `stack` stops that one.

    Raises `SetupError`s and `ServerUnavailableError`.
    """
    given = tuple(server for server in config.servers if isinstance(server, ServerConfig))
    named = settings.postgres_server() if not given else None
    found = given
    if named is not None:
        found = await in_thread(all_servers, settings, named)
    elif not given:
        embedded = EmbeddedPostgres(settings)
        stack.push_async_callback(embedded.stop)
        handle = await embedded.start()
        found = await in_thread(all_servers, settings, handle.server_config())
    for server in found:
        await check_transport(server)
    return found
