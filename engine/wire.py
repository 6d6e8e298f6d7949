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

#: From here on a result is read in slices and takes turns with everything else in the process,
#: which gets so many times as much of the time.
_LARGE_BYTES = 256 * 1024
_SLICE_BYTES = 64 * 1024
#: Of a row: the kind and the length of the message, and the number of values (manual, 55.7).
_ROW_HEADER_BYTES = 7
_TURNS = 2
#: Longest message that is not a row; PostgreSQL's own are far shorter.
_MESSAGE_BYTES_MAX = 16 * 1024 * 1024


class Step:
    """One message that the server answers: the description of a statement, or one execution."""

    # Plain classes with defaults on the class: there is one of these for every operation.

    #: For a description: what the rows should look like, and the execution that relies on it.
    expected_shape: bytes | None = None
    relying: Step | None = None
    #: The tag of the command (manual, 55.7), such as `UPDATE 3`.
    tag: bytes = b""
    #: Bytes of its rows, those that were dropped included.
    size: int = 0
    done: bool = False
    #: False when the limit of rows ended the execution.
    complete: bool = True
    #: A value could not be read.
    problem: TenancyError | None = None
    #: The raw descriptions.
    parameters: bytes = b""
    row_shape: bytes | None = None

    def __init__(self, decoders: Sequence[Decode] | None = ()) -> None:
        #: None leaves the rows as they come, as lists of bytes.
        self.decoders = decoders
        self.rows: list[list[Any]] = []


class Section:
    """Messages that succeed or fail together, and what came of them.

    Without `sync` the transaction stays open, and the next section of the connection goes on in it.
    """

    #: The fields of an ErrorResponse by their letters (manual, 55.8).
    error: dict[str, str] | None = None
    #: All of it is done; with `sync`, so is the end of the transaction.
    ended: bool = False
    #: The step that is being answered, or that failed; beyond the last one, the transaction's end.
    at: int = 0

    def __init__(self, messages: list[bytes], steps: list[Step], sync: bool = True) -> None:
        self.messages = messages
        self.steps = steps
        self.sync = sync


class Exchange:
    """Sections on their way, and how far they are."""

    #: The connection broke before the end.
    lost: bool = False
    #: The rows did not fit into the budget: the step that was being answered then.
    overflow: Step | None = None

    def __init__(self, sections: list[Section], bytes_max: int) -> None:
        self.sections = sections
        self.bytes_left = self._bytes_max = bytes_max
        #: When (event loop's time) the server last said something.
        self.moved_at = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._at = -1
        #: The section and the step that are being answered.
        self.section: Section | None = None
        self.step: Step | None = None
        self.next_section()

    @property
    def bytes_read(self) -> int:
        """Bytes of rows that came."""
        return self._bytes_max - max(self.bytes_left, 0)

    def next_section(self) -> bool:
        """Go on with the next section; whether there is one."""
        self._at += 1
        if self._at < len(self.sections):
            section = self.section = self.sections[self._at]
            self.step = section.steps[0] if section.steps else None
            return True
        self.section = self.step = None
        return False

    def next_step(self, section: Section) -> bool:
        """Go on with the next step of the section; whether there is one."""
        section.at += 1
        if section.at < len(section.steps):
            self.step = section.steps[section.at]
            return True
        self.step = None
        return False


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
        #: What came of a large result and was not read yet.
        self._slices = b""
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
        exchange = self._exchange
        if exchange is not None:
            exchange.moved_at = self._loop.time()
            if exchange.bytes_read >= _LARGE_BYTES and len(data) > _SLICE_BYTES:
                self._transport.pause_reading()  # type: ignore[attr-defined]
                self._slices = data
                self._take_slice()
                return
        self._take(data)

    def _take_slice(self) -> None:
        """Read a part of a large result, and let others have the event loop before the next."""
        if self._closed:
            return
        began = self._loop.time()
        piece, self._slices = self._slices[:_SLICE_BYTES], self._slices[_SLICE_BYTES:]
        self._take(piece)
        pause_s = _TURNS * (self._loop.time() - began)
        self._loop.call_later(pause_s, self._take_slice if self._slices else self._go_on)

    def _go_on(self) -> None:
        if not self._closed and not self._transport.is_closing():
            self._transport.resume_reading()  # type: ignore[attr-defined]

    def _take(self, data: bytes) -> None:
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
        if self._slices:
            rest, self._slices = self._slices, b""
            self._take(rest)
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
                    if self._exchange.step is not None:
                        self._exchange.step.size += length
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
                self._row(data, position + _ROW_HEADER_BYTES, end)
            elif code not in _UNREMARKABLE:
                self._message(code, data, position + 5, end)
            position = end
        return position

    def _row(self, data: bytes, position: int, end: int) -> None:
        exchange = self._exchange
        step = exchange.step if exchange is not None else None
        if exchange is None or step is None:
            return self._abort()
        # With its header: rows without a value are not free, there can be any number of them.
        size = end - position + _ROW_HEADER_BYTES
        step.size += size
        exchange.bytes_left -= size
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
            if not exchange.next_section():
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
        if not exchange.next_step(section) and not section.sync:
            section.ended = True
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
        exchange.next_step(section)
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
    pieces = [b"\x00", name, b"\x00\x00\x00", len(parameters).to_bytes(2, "big")]
    for value in parameters:
        if value is None:
            pieces.append(b"\xff\xff\xff\xff")
        else:
            pieces += (len(value).to_bytes(4, "big"), value)
    pieces.append(b"\x00\x00")
    body = b"".join(pieces)
    return b"B" + (len(body) + 4).to_bytes(4, "big") + body


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
