"""Messages of PostgreSQL's protocol 3.0 on a connection that is open already (manual, 55.2, 55.7).

The driver makes connections (addresses, TLS, SCRAM); from then on this module speaks, because the
driver waits for an answer after every statement, and many statements in one flight are what makes
one connection serve many tenants. A flight is an `Exchange`: sections, each one implicit
transaction that ends with a Sync, each made of steps.

Rules this module keeps:

* Values travel as text in both directions, always.
* Memory is bounded: an exchange has a budget of bytes for its rows. A message that does not fit is
  skipped while it arrives, not collected.
* What the server says is recorded, never raised: after an error in one section the next ones go on.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.engine.values import Decode

SYNC = b"S\x00\x00\x00\x04"
FLUSH = b"H\x00\x00\x00\x04"
TERMINATE = b"X\x00\x00\x00\x04"

_HEADER = struct.Struct("!BI")
_INT = struct.Struct("!i")
_SHORT = struct.Struct("!h")
_PARAMETER = struct.Struct("!I")
#: The fixed part of a column in a RowDescription behind its name.
_FIELD = struct.Struct("!IhIhih")

#: Longest message that is not a row; PostgreSQL's own are far shorter.
_MESSAGE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Step:
    """One message that the server answers: the description of a statement, or one execution.

    `decoders` None leaves the rows as they came, as lists of bytes. `complete` is False when the
    limit of rows ended the execution. `parameters` and `row_shape` are the raw descriptions.
    """

    decoders: Sequence[Decode] | None = ()
    #: For a description: what the rows should look like, and the execution that relies on it.
    expected_shape: bytes | None = None
    relying: Step | None = None

    rows: list[list[Any]] = field(default_factory=list)
    tag: bytes = b""
    done: bool = False
    complete: bool = True
    problem: TenancyError | None = None
    parameters: bytes = b""
    row_shape: bytes | None = None


@dataclass(slots=True, eq=False)
class Section:
    """Messages that succeed or fail together, and what came of them.

    Without `sync` the transaction stays open, and the next section of the connection goes on in it.
    `error` has the fields of an ErrorResponse by their letters (manual, 55.8). `failed_step` is the
    number of the step that it belongs to; all steps done = the end of the transaction failed.
    """

    messages: list[bytes]
    steps: list[Step]
    sync: bool = True

    at: int = 0
    ended: bool = False
    error: dict[str, str] | None = None

    @property
    def failed_step(self) -> int:
        """The number of the step at which the section stopped."""
        return self.at


class Exchange:
    """Sections on their way, and how far they are."""

    __slots__ = ("at", "bytes_left", "finished", "lost", "moved_at", "overflow", "sections")

    def __init__(self, sections: list[Section], bytes_max: int) -> None:
        self.sections = sections
        self.bytes_left = bytes_max
        #: The section that is being answered.
        self.at = 0
        #: When (event loop's time) the server last said something.
        self.moved_at = 0.0
        #: The connection broke before the end.
        self.lost = False
        #: The rows did not fit into the budget: the step that was being answered then.
        self.overflow: Step | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def section(self) -> Section | None:
        """The section that is being answered."""
        return self.sections[self.at] if self.at < len(self.sections) else None

    @property
    def step(self) -> Step | None:
        """The step that is being answered."""
        section = self.section
        if section is None or section.at >= len(section.steps):
            return None
        return section.steps[section.at]


class Wire(asyncio.Protocol):
    """Speaks on one transport. Belongs to one event loop; one exchange at a time."""

    def __init__(
        self, transport: asyncio.WriteTransport, on_lost: Callable[[Exception | None], None]
    ) -> None:
        self._transport = transport
        self._on_lost = on_lost
        self._on_overflow: Callable[[], None] | None = None
        self._exchange: Exchange | None = None
        self._loop = asyncio.get_running_loop()
        # The beginning of a message whose rest has not come yet.
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        self._skip = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed

    @property
    def exchange(self) -> Exchange | None:
        """What is under way."""
        return self._exchange

    def send(self, exchange: Exchange, on_overflow: Callable[[], None]) -> asyncio.Future[None]:
        """Send all sections. The future is done when all of them are answered, or none will be."""
        if self._exchange is not None:
            raise RuntimeError("an exchange is under way already")
        if self._closed:
            exchange.lost = True
            exchange.finished.set_result(None)
            return exchange.finished
        self._exchange = exchange
        self._on_overflow = on_overflow
        exchange.moved_at = self._loop.time()
        pieces = []
        for section in exchange.sections:
            pieces += section.messages
            pieces.append(SYNC if section.sync else FLUSH)
        self._transport.write(b"".join(pieces))
        return exchange.finished

    def write(self, message: bytes) -> None:
        """Send one message that has no answer."""
        self._transport.write(message)

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Read what the server sent."""
        if self._exchange is not None:
            self._exchange.moved_at = self._loop.time()
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
            if not data:
                return
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
        position = self._read(data)
        if position < len(data):
            rest = data[position:]
            self._keep(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._closed = True
        self._parts = []
        exchange = self._exchange
        if exchange is not None:
            exchange.lost = True
            self._finish(exchange)
        self._on_lost(exc)

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a message, unless it is of no use."""
        self._have, self._need = len(rest), _HEADER.size
        if len(rest) >= _HEADER.size:
            code, length = _HEADER.unpack_from(rest)
            self._need = length + 1
            if code == _DATA_ROW and self._exchange is not None:
                if length > self._exchange.bytes_left:
                    self._overflow(self._exchange)
                    self._skip = self._need - self._have
                    return
            elif length > _MESSAGE_BYTES_MAX:
                self._abort()
                return
        self._parts = [rest]

    def _read(self, data: bytes) -> int:
        """Read whole messages; where the first one that is not whole begins."""
        position, end_of_data = 0, len(data)
        while end_of_data - position >= 5:
            code, length = _HEADER.unpack_from(data, position)
            end = position + 1 + length
            if end > end_of_data:
                break
            if code == _DATA_ROW:
                self._row(data, position + 7, end)
            else:
                self._message(code, data, position + 5, end)
            position = end
        return position

    def _row(self, data: bytes, position: int, end: int) -> None:
        exchange = self._exchange
        step = exchange.step if exchange is not None else None
        if exchange is None or step is None:
            return self._abort()
        exchange.bytes_left -= end - position
        if exchange.bytes_left < 0:
            return self._overflow(exchange)
        if step.problem is not None:
            return None
        if step.decoders is None:
            step.rows.append(_raw_row(data, position, end))
            return None
        row: list[Any] = []
        length_at = _INT.unpack_from
        try:
            for decode in step.decoders:
                (length,) = length_at(data, position)
                position += 4
                if length < 0:
                    row.append(None)
                else:
                    row.append(decode(data[position : position + length]))
                    position += length
        except TenancyError as error:
            step.problem = error
        except (ValueError, struct.error):
            step.problem = TenancyError("PostgreSQL sent a value that cannot be read")
        step.rows.append(row)
        return None

    def _message(self, code: int, data: bytes, position: int, end: int) -> None:
        if code in _UNREMARKABLE:
            return
        exchange = self._exchange
        section = exchange.section if exchange is not None else None
        if exchange is None or section is None:
            if code != _ERROR:  # One that ends the session may come at any time.
                self._abort()
            return
        if code in (_COMPLETE, _SUSPENDED, _EMPTY):
            self._step_done(exchange, section, code, data[position : end - 1])
        elif code == _READY:
            section.ended = True
            exchange.at += 1
            if exchange.at == len(exchange.sections):
                self._finish(exchange)
        elif code == _ERROR:
            section.error = _error_fields(data[position:end])
            if not section.sync:
                self._finish(exchange)
        else:
            self._description(exchange, section, code, data[position:end])

    def _step_done(self, exchange: Exchange, section: Section, code: int, body: bytes) -> None:
        step = exchange.step
        if step is None:
            return self._abort()
        step.done = True
        step.complete = code != _SUSPENDED
        if code == _COMPLETE:
            step.tag = body
        section.at += 1
        if not section.sync and section.at == len(section.steps):
            section.ended = True
            exchange.at += 1
            self._finish(exchange)
        return None

    def _description(self, exchange: Exchange, section: Section, code: int, body: bytes) -> None:
        step = exchange.step
        if step is None:
            return self._abort()
        if code == _PARAMETERS:
            step.parameters = body
            return None
        if code not in (_ROW_SHAPE, _NO_DATA):
            return self._abort()  # COPY, which the guard refuses, or not PostgreSQL at all.
        step.row_shape = body if code == _ROW_SHAPE else None
        step.done = True
        section.at += 1
        if step.relying is not None and step.row_shape != step.expected_shape:
            step.relying.decoders = None
        return None

    def _overflow(self, exchange: Exchange) -> None:
        exchange.bytes_left = -1
        if exchange.overflow is None and exchange.step is not None:
            exchange.overflow = exchange.step
            if self._on_overflow is not None:
                self._on_overflow()

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        self._on_overflow = None
        if not exchange.finished.done():
            exchange.finished.set_result(None)

    def _abort(self) -> None:
        """What came makes no sense here: give the connection up."""
        self._closed = True
        self._transport.abort()


# Messages


def parse(name: bytes, text: str) -> bytes:
    """Parse: prepare `text` under a name."""
    return _message_of(b"P", name + b"\x00" + text.encode() + b"\x00\x00\x00")


def describe(name: bytes) -> bytes:
    """Describe a prepared statement."""
    return _message_of(b"D", b"S" + name + b"\x00")


def close_statement(name: bytes) -> bytes:
    """Close a prepared statement."""
    return _message_of(b"C", b"S" + name + b"\x00")


def bind(name: bytes, parameters: Sequence[bytes | None]) -> bytes:
    """Bind a prepared statement to the unnamed portal; every value is text."""
    pieces = [b"\x00", name, b"\x00\x00\x00", _SHORT.pack(len(parameters))]
    for value in parameters:
        if value is None:
            pieces.append(b"\xff\xff\xff\xff")
        else:
            pieces.append(_INT.pack(len(value)))
            pieces.append(value)
    pieces.append(b"\x00\x00")
    return _message_of(b"B", b"".join(pieces))


def execute(rows_max: int = 0) -> bytes:
    """Execute the unnamed portal, up to a number of rows; 0 = all."""
    return b"E\x00\x00\x00\x09\x00" + _INT.pack(rows_max)


#: Fails, which undoes the open transaction: there is no portal of that name.
FAIL = (
    b"E"
    + (4 + len(b"tenancy_undo") + 1 + 4).to_bytes(4, "big")
    + b"tenancy_undo\x00\x00\x00\x00\x00"
)


def parameter_types(body: bytes) -> tuple[int, ...]:
    """The types that a ParameterDescription lists."""
    (count,) = _SHORT.unpack_from(body)
    return tuple(_PARAMETER.unpack_from(body, 2 + 4 * n)[0] for n in range(count & 0xFFFF))


def columns(body: bytes) -> list[tuple[str, int, int]]:
    """Name, type and type modifier of the columns that a RowDescription lists."""
    (count,) = _SHORT.unpack_from(body)
    found, position = [], 2
    for _ in range(count):
        end = body.index(b"\x00", position)
        _, _, oid, _, modifier, _ = _FIELD.unpack_from(body, end + 1)
        found.append((body[position:end].decode(), oid, modifier))
        position = end + 1 + _FIELD.size
    return found


def decode_rows(rows: list[list[Any]], decoders: Sequence[Decode]) -> list[list[Any]]:
    """Rows that were left as they came, decoded."""
    return [
        [
            None if value is None else decode(value)
            for value, decode in zip(row, decoders, strict=True)
        ]
        for row in rows
    ]


def _message_of(code: bytes, body: bytes) -> bytes:
    return code + (len(body) + 4).to_bytes(4, "big") + body


def _raw_row(data: bytes, position: int, end: int) -> list[bytes | None]:
    row: list[bytes | None] = []
    while position < end:
        (length,) = _INT.unpack_from(data, position)
        position += 4
        row.append(None if length < 0 else data[position : position + length])
        position += max(length, 0)
    return row


def _error_fields(body: bytes) -> dict[str, str]:
    parts = (part.decode(errors="replace") for part in body.split(b"\x00") if part)
    return {part[0]: part[1:] for part in parts}


_DATA_ROW = ord("D")
_COMPLETE = ord("C")
_SUSPENDED = ord("s")
_EMPTY = ord("I")
_READY = ord("Z")
_ERROR = ord("E")
_PARAMETERS = ord("t")
_ROW_SHAPE = ord("T")
_NO_DATA = ord("n")
#: ParseComplete, BindComplete, CloseComplete, notices, notifications, changed settings.
_UNREMARKABLE = frozenset(b"123NAS")
