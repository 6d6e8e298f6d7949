"""A gateway that is closed twice at the same time hangs up once, when all was said."""

from __future__ import annotations

import asyncio
from typing import Any

from tenancy.data_isolation.actors.directory import ActorName, build_directory
from tenancy.data_isolation.actors.gateway import ActorGateway
from tenancy.data_isolation.core.settings import Settings


class Channel:
    """A channel that has something to tell its actor yet."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self._closed = False

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.told.wait()


async def test_who_closes_second_does_not_hang_up_before_the_first_has_told_the_actors():
    gateway: Any = ActorGateway(build_directory(version=1, actors_per_region=1), Settings())
    channel = gateway._channels[ActorName("shared-0")] = Channel()
    hung_up: list[bool] = []
    gateway._actors.close = lambda: hung_up.append(channel.told.is_set())
    closing = [asyncio.create_task(gateway.close()) for _ in range(2)]
    for _ in range(10):
        await asyncio.sleep(0)

    assert not hung_up
    channel.told.set()
    await asyncio.gather(*closing)
    await gateway.close()
    assert hung_up == [True]
