"""What processes that keep results of tenants agree about, in Redis.

Rules this module keeps:

* Redis answers in time, or it does not answer (`NoAnswerError`), and then nothing is believed. A
  connection is never opened anew behind a question's back: what belongs to one start of the server
  is named by that start's run id, so that a state that a restart or a replica brings back, older
  than it was, is found under no name.
* Questions that are asked at the same time travel together, in the order in which they were asked.
* Bounded: questions that wait, the time that an answer may take, and what is kept: results lie in a
  fixed number of slots, each of which holds the last one that fell to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.redis_connection import RedisConnection

_log = logging.getLogger(__name__)

_SCRIPT: Final = (files("tenancy.data_isolation.engine") / "data" / "result_cache.lua").read_bytes()
_SHA: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest()  # What EVALSHA takes.
_PREFIX: Final = "tenancy:cache"
#: Questions that travel together: Lua unpacks no more arguments than its stack holds.
_TOGETHER_MAX: Final = 256
#: Most tables that one question is about; more count as all.
FIELDS_MAX: Final = 100
#: Questions about a key of their own.
_WITHOUT_STATE: Final = frozenset("KHGX")
#: Every table.
ALL: Final = "*"

#: Gives the URL of the server; None when there is none now.
Url = Callable[[], Awaitable[str | None]]


class NoAnswerError(Exception):
    """Redis does not answer: nothing is known."""


class CacheStore:
    """Questions to Redis. Belongs to one event loop."""

    def __init__(self, settings: Settings, url: Url) -> None:
        self._settings = settings
        self._url = url
        self._timeout_s = settings.cache_answer_timeout_ms / 1_000
        self._retry_s = settings.cache_retry_s
        self._waiting_max = settings.waiting_operations_max
        self._slots = settings.cache_shared_bytes_max // settings.cache_result_bytes_max
        self._remembered_ms = int(settings.pinned_statements_kept_s * 1_000)
        self._lifetime_ms = int(settings.cache_age_s * 1_000)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._run_id = ""
        self._silent_until = 0.0
        self._closed = False
        #: Calls, and calls without an answer.
        self.calls = 0
        self.unanswered = 0

    # What can be asked

    async def look(
        self, nonce: str, tables: Sequence[str], slot: int | None
    ) -> tuple[list[int], list[int], bytes] | None:
        """How many writes of each table began and ended, and what the slot holds.

        None when there is no state of that nonce. Raises `NoAnswerError`.
        """
        key = f"{_PREFIX}:slot:{slot}" if slot is not None else ""
        found = await self._ask(("L", nonce, key, len(tables), *tables))
        return None if found is None else (found[0:-1:2], found[1:-1:2], found[-1])

    def begin(self, nonce: str, tables: Sequence[str]) -> asyncio.Future[int]:
        """Count a write that begins; gives 1 when it was counted. Raises `NoAnswerError`."""
        return self._ask(("B", nonce, len(tables), *tables))

    def end(self, nonce: str, tables: Sequence[str]) -> None:
        """Count that it has ended. When that is lost, it counts as under way."""
        self._tell(("E", nonce, len(tables), *tables))

    def keep(self, slot: int, value: bytes) -> None:
        """Let other processes have a result."""
        self._tell(("K", f"{_PREFIX}:slot:{slot}", self._lifetime_ms, value))

    async def recall(self, name: str) -> bytes:
        """What a pinned tenant asked for, wherever that was. Raises `NoAnswerError`."""
        found: bytes = await self._ask(("G", f"{_PREFIX}:hot:{name}"))
        return found

    async def remember(self, name: str, questions: bytes) -> None:
        """Let it be there after a restart. Raises `NoAnswerError`."""
        await self._ask(("H", f"{_PREFIX}:hot:{name}", self._remembered_ms, questions))

    def forget(self, name: str) -> None:
        """Forget it; when that is lost, it goes when its time is over."""
        self._tell(("X", f"{_PREFIX}:hot:{name}"))

    @property
    def shares(self) -> bool:
        """Whether tenants' data may be in Redis at all."""
        return self._slots > 0

    async def open(self, nonce: str) -> None:
        """Begin a state. Raises `NoAnswerError`."""
        await self._ask(("O", nonce))

    def drop(self, nonce: str) -> None:
        """End a state."""
        self._tell(("D", nonce))

    def slot(self, digest: bytes) -> int | None:
        """The slot of a result; None when results are not shared."""
        return int.from_bytes(digest[:8], "big") % self._slots if self._slots else None

    async def close(self) -> None:
        """Ask nothing more."""
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        self._fail(self._waiting)
        self._waiting = []
        await self._hang_up()

    # How it is asked

    def _ask(self, question: tuple[Any, ...]) -> asyncio.Future[Any]:
        if (
            self._closed
            or self._loop.time() < self._silent_until
            or len(self._waiting) >= self._waiting_max
        ):
            raise NoAnswerError
        future = self._loop.create_future()
        self._waiting.append((question, future))
        if self._asking is None:
            self._asking = self._loop.create_task(self._work())
        return future

    def _tell(self, question: tuple[Any, ...]) -> None:
        with suppress(NoAnswerError):
            self._ask(question).add_done_callback(_heeded)

    async def _work(self) -> None:
        """Ask what waits, until nothing does."""
        try:
            while self._waiting:
                batch = self._waiting[:_TOGETHER_MAX]
                del self._waiting[:_TOGETHER_MAX]
                try:
                    answers = await self._answers([question for question, _ in batch])
                except BaseException as error:
                    self._fail(batch)
                    self._lost(error)
                    await self._hang_up()
                    if not isinstance(error, Exception):
                        raise
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._asking = None

    async def _answers(self, questions: list[tuple[Any, ...]]) -> list[Any]:
        self.calls += 1
        async with asyncio.timeout(self._timeout_s):
            connection = self._connection
            if connection is None or not connection.is_connected:
                connection = await self._connect()
            state = f"{_PREFIX}:{self._run_id}:"
            arguments: list[Any] = []
            for what, *rest in questions:
                arguments.append(what)
                if what not in _WITHOUT_STATE:
                    rest[0] = state + rest[0]
                arguments += rest
            answers: list[Any]
            try:
                answers = await _call(connection, "EVALSHA", _SHA, 0, *arguments)
            except NoScriptError:
                await _call(connection, "SCRIPT LOAD", _SCRIPT)
                answers = await _call(connection, "EVALSHA", _SHA, 0, *arguments)
            return answers

    async def _connect(self) -> Any:
        await self._hang_up()
        url = await self._url()
        if url is None:
            raise ConnectionError
        settings = replace(self._settings, redis_url=url)
        client = await RedisConnection.of(settings).client(self._timeout_s)
        # Not through the pool, which would open another one without a word.
        pool: Any = client.connection_pool
        connection: Any = pool.make_connection()
        try:
            await connection.connect()
            about = await _call(connection, "INFO", "server")
            self._run_id = _run_id(about)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        return connection

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _fail(self, batch: Sequence[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(NoAnswerError())
                # Who has stopped waiting misses nothing.
                future.exception()

    def _lost(self, error: BaseException) -> None:
        """Ask nothing for a while, so that nobody waits for what does not come."""
        self.unanswered += 1
        self._silent_until = self._loop.time() + self._retry_s
        if not self._closed and isinstance(error, _FORESEEN):
            _log.warning("no results are kept: Redis does not answer (%s)", type(error).__name__)
        elif isinstance(error, Exception):
            _log.error("no results are kept: Redis cannot be asked", exc_info=error)
        waiting, self._waiting = self._waiting, []
        self._fail(waiting)


_FORESEEN: Final = (RedisError, OSError, TimeoutError, TenancyError)


async def _call(connection: Any, *arguments: Any) -> Any:
    """The answer to one command, in bytes."""
    await connection.send_command(*arguments, check_health=False)
    return await connection.read_response(disable_decoding=True)


def _run_id(about: bytes) -> str:
    """The run id of the server, which is another one after each start (Redis manual, INFO)."""
    for line in about.decode().splitlines():
        if line.startswith("run_id:"):
            return line.removeprefix("run_id:")
    raise ConnectionError


def _heeded(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
