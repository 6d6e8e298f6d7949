"""Readers that want the same at the same time: one asks PostgreSQL, the others wait for it.

Rules this module keeps:

* Who waits spends its own time by that, and no more of it.
* When the one who asks fails, one of the others asks next, and the rest go on waiting: they do not
  all ask at once. An error that each of them would get is given to all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final, TypeAlias

from tenancy.data_isolation.core.errors import (
    ResultTooLargeError,
    StatementError,
    TenancyError,
)

#: The class of errors that values bring about (manual, appendix A).
_DATA_EXCEPTION: Final = "22"


class Nothing(Enum):
    """Why there is nothing from another reader."""

    #: Nobody asks the same: whoever hears this asks, for others as well.
    NOBODY = auto()
    #: What it got cannot be kept, or does not come in time, or too many wait.
    NOT_SHARED = auto()


#: What another reader got: a packed result, or the error that everybody would get.
Found: TypeAlias = bytes | TenancyError | Nothing


class Reader:
    """One who asks PostgreSQL. `outcome` is for those who wait."""

    __slots__ = ("counts", "followers", "future", "outcome")

    def __init__(self, counts: tuple[int, ...], future: asyncio.Future[Found]) -> None:
        self.counts = counts
        self.followers = 0
        self.future = future
        #: NOBODY: it failed for a reason of its own, or has left; the next one may fare better.
        self.outcome: Found = Nothing.NOBODY

    def gives(self, packed: bytes | None) -> None:
        """It has a result; None when that cannot be kept."""
        self.outcome = Nothing.NOT_SHARED if packed is None else packed


class SharedReads:
    """Who asks what. Belongs to one event loop."""

    def __init__(self, followers_max: int) -> None:
        self._followers_max = followers_max
        self._readers: dict[bytes, Reader] = {}
        self._loop = asyncio.get_running_loop()

    async def join(self, digest: bytes, counts: tuple[int, ...], until: float) -> Found:
        """What another reader of the same gets, under the same counters, until the loop's time."""
        while True:
            reader = self._readers.get(digest)
            if reader is None or reader.counts != counts:
                return Nothing.NOBODY
            if reader.followers >= self._followers_max:
                return Nothing.NOT_SHARED
            reader.followers += 1
            try:
                async with asyncio.timeout_at(until):
                    found = await asyncio.shield(reader.future)
            except TimeoutError:
                return Nothing.NOT_SHARED
            finally:
                reader.followers -= 1
            if found is not Nothing.NOBODY:
                return found

    @contextmanager
    def asking(self, digest: bytes, counts: tuple[int, ...]) -> Iterator[Reader]:
        """Ask within the block, for all who want the same meanwhile as well."""
        reader = Reader(counts, self._loop.create_future())
        self._readers[digest] = reader
        try:
            yield reader
        except TenancyError as error:
            if _is_for_all(error):
                reader.outcome = error
            raise
        finally:
            if self._readers.get(digest) is reader:
                del self._readers[digest]
            reader.future.set_result(reader.outcome)


def _is_for_all(error: TenancyError) -> bool:
    """Whether the same statement with the same values and the same rows ends so for everybody."""
    if isinstance(error, ResultTooLargeError):
        return True
    return isinstance(error, StatementError) and (error.sqlstate or "").startswith(_DATA_EXCEPTION)
