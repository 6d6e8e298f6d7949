"""The actor that carries moves out, and looks which are to be made: it hosts no tenants.

A plain class. Ray makes an actor of it (`remote.py`), and tests use it as it is.

Rules this module keeps:

* It begins by itself, also when Ray has started it again after it was killed: nobody has to call
  it. What it was at goes on from the moves' durable rows.
* The constructor does nothing that can fail, because an actor whose constructor fails is dead for
  good. What stands in the way is tried again for ever, and told to whoever asks how it is.
* Any number of such processes may work on one installation: a move is carried out by who holds its
  lock in the catalog, and of those that look which tenants are at the wrong level one decides.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Final

from tenancy.data_isolation.actors.configuration import ActorConfiguration, read_configuration
from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.actors.peaceful_end import close_on
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.proposal import OrchestrationMode
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.level_review import LevelReview, MeasureSize
from tenancy.data_isolation.strategies.base import rule_book

_log = logging.getLogger(__name__)

#: How soon it tries again to connect, and how often it looks whether keys have rotated since.
_RETRY_S: Final = 1.0
_LOOK_S: Final = 5.0


class MoveActor:
    """Carries out the moves of one installation. Belongs to the event loop that makes it."""

    def __init__(self, name: str, configuration_path: str) -> None:
        self._name = ActorName(name)
        self._path = Path(configuration_path)
        self._engine: Engine | None = None
        self._review: LevelReview | None = None
        self._failure: TenancyError | None = None
        self._tried = asyncio.Event()
        # Ray calls constructors of asynchronous actors on their event loop (2.60).
        self._loop = asyncio.get_running_loop()
        self._working = self._loop.create_task(self._work())

    def __repr__(self) -> str:
        return self._name  # Ray puts this into logs.

    async def health(self) -> dict[str, int]:
        """The process, when it carries moves out; raises what it is that stands in the way."""
        await self._tried.wait()
        if self._failure is not None:
            raise self._failure
        return {"pid": os.getpid()}

    async def close(self) -> None:
        """Let go of all moves and close the connections."""
        self._working.cancel()
        await asyncio.wait([self._working])
        review, self._review = self._review, None
        if review is not None:
            await review.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    def measure(self, configuration: ActorConfiguration) -> MeasureSize | None:
        """What counts tenants' rows; None = the engine of this process."""
        return None

    def __ray_shutdown__(self) -> None:
        """What Ray calls when it ends the actor in peace."""
        close_on(self._loop, self.close)

    async def _work(self) -> None:
        while True:
            failure: TenancyError | None = None
            try:
                await self._look()
            except TenancyError as error:
                failure = error
            except Exception:
                _log.exception("the mover failed in a way that was not foreseen")
                failure = TenancyError()
            if failure is not None and repr(failure) != repr(self._failure):
                _log.warning("moves are not carried out: %s", failure.detail)
            self._failure = failure
            self._tried.set()
            await asyncio.sleep(_LOOK_S if failure is None else _RETRY_S)

    async def _look(self) -> None:
        if self._engine is not None and self._review is not None:
            await self._engine.keys.refresh(self._engine.catalog)
            return
        configuration = await asyncio.to_thread(read_configuration, self._path)
        if self._engine is None:
            self._engine = await Engine.attach(configuration.engine_config(self._name))
            self._engine.moves.work()
        self._review = self._engine.level_review(
            rule_book(None),
            OrchestrationMode(configuration.settings.orchestration),
            measure=self.measure(configuration),
        )
        self._review.start()
