"""An answer that is sent piece by piece, to a client that may be slow or gone.

Rules this module keeps:

* The next piece is made when the one before it has been taken, so that little is in memory beside
  the results themselves. They cost no session of a database: those have ended.
* A client that takes no piece for `stream_write_timeout_s`, or not all of them within
  `stream_timeout_s`, is given up. So is one that has gone.
* What goes wrong before the first byte is an answer of its own. What goes wrong later is told in
  the stream, and then the connection is cut before the body's end (RFC 9112, 8), so that no client
  takes it for whole, whatever it reads.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tenancy.data_isolation.core import Settings, TenancyError
from tenancy.data_isolation.serve.result_stream import Outcomes, ResultStream

_log = logging.getLogger(__name__)

_STATUS_GONE: Final = 499
_STATUS_FAILED: Final = 500


class AnswerCutError(Exception):
    """An answer has begun and does not end well; `status` is what to count it as."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class StreamedAnswer(Response):
    """Outcomes of operations as a stream, made by `begun`. Takes the list over and empties it."""

    def __init__(
        self,
        outcomes: Outcomes,
        stream: ResultStream,
        settings: Settings,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = stream.media_type
        self.body = b""
        self.background = None
        self.init_headers(headers)
        # Its length is not known.
        del self.headers["content-length"]
        self._stream = stream
        self._settings = settings
        self._pieces = stream.pieces(outcomes, settings.stream_piece_bytes)
        self._first = b""

    @classmethod
    async def begun(
        cls,
        outcomes: Outcomes,
        stream: ResultStream,
        settings: Settings,
        headers: Mapping[str, str] | None = None,
    ) -> StreamedAnswer:
        """The answer with its first piece: what fails here fails before anything was sent."""
        answer = cls(outcomes, stream, settings, headers)
        while not answer._first:
            answer._first = next(answer._pieces)
            await asyncio.sleep(0)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all. Raises `AnswerCutError`."""
        gone = asyncio.create_task(_gone(receive))
        try:
            async with asyncio.timeout(self._settings.stream_timeout_s):
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                await self._send(gone, send)
        except TimeoutError:
            _log.warning("a client was given up that did not take a stream of results in time")
            raise AnswerCutError(_STATUS_GONE) from None
        finally:
            # What was not sent is let go of, whoever still holds this answer.
            self._pieces = iter(())
            gone.cancel()

    async def _send(self, gone: asyncio.Task[None], send: Send) -> None:
        piece: bytes | None = self._first
        self._first = b""
        while piece is not None:
            for part in _parts(piece, self._settings.stream_piece_bytes):
                async with asyncio.timeout(self._settings.stream_write_timeout_s):
                    await send(_body(part))
                if gone.done():
                    raise AnswerCutError(_STATUS_GONE)
            # A fast reader must not keep the loop from others.
            await asyncio.sleep(0)
            piece = await self._next(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, send: Send) -> bytes | None:
        try:
            return next(self._pieces, None)
        except Exception as error:
            instance = uuid.uuid4().urn
            _log.error("a stream of results failed (%s)", instance, exc_info=error)
            told = TenancyError(
                "the rest of the results cannot be written; what was asked has been done; "
                f"the runtime's log has the details under {instance}"
            )
            await send(_body(self._stream.failure(told)))
            raise AnswerCutError(_STATUS_FAILED) from None


def _body(part: bytes | memoryview) -> Message:
    return {"type": "http.response.body", "body": bytes(part), "more_body": True}


def _parts(piece: bytes, part_bytes: int) -> Iterator[bytes | memoryview]:
    """The piece, cut so that no part is much larger than the others: one value can be large."""
    if len(piece) <= 2 * part_bytes:
        if piece:
            yield piece
        return
    view = memoryview(piece)
    for at in range(0, len(piece), part_bytes):
        yield view[at : at + part_bytes]


async def _gone(receive: Receive) -> None:
    """Return when the client is not there any more."""
    while (await receive())["type"] != "http.disconnect":
        pass
