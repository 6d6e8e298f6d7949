"""Where this installation's Redis is: the user's own server, or the embedded one."""

from __future__ import annotations

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis
from tenancy.data_isolation.engine.polling import in_thread


class RedisPlace:
    """The way to Redis. The embedded server is started only where this process owns its servers."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings.redis_url
        self._embedded = None if settings.redis_url else EmbeddedRedis(settings)
        #: Whether `start` may start the embedded server; else it has to run already.
        self.owned = False

    async def url(self) -> str | None:
        """The URL of a server; None when the embedded one does not run."""
        if self._embedded is None:
            return self._given
        handle = (await in_thread(self._embedded.status)).handle
        return None if handle is None else handle.url

    async def start(self) -> None:
        """Have the embedded server running, if that is for this process to do."""
        if self._embedded is not None and self.owned:
            await self._embedded.start()

    async def close(self) -> None:
        """End the embedded server if this object started it."""
        if self._embedded is not None:
            await self._embedded.stop()
