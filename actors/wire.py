"""What crosses between a client process and a tenant actor: many small tuples in one byte string.

A message is a stream of pickles that share one memo, so that a statement's text or a result's
columns travel once however many operations name them; the first pickle is the header. Ray passes a
byte string by itself without looking into it, which is the cheapest thing it can pass.

Pickle is safe only between processes that trust each other. They do here: whoever can call an actor
holds the cluster's token, and with it can run any code there.

Rules this module keeps:

* One operation's parameters cannot spoil a message: what is not plain is pickled by itself, and an
  object that cannot be pickled here or unpickled there fails that one operation.
* Deadlines cross as the time that is left, since two machines' clocks differ.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tenancy.data_isolation.core.errors import ParameterError, RequestTooLargeError, TenancyError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Column, Operation, QueryResult

#: An operation: query, parameters, whether those are pickled by themselves, idempotency key.
PackedOperation = tuple[str, Any, bool, str | None]

_PROTOCOL = 5
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class Call(NamedTuple):
    """Operations of one tenant, as one entry of a request."""

    #: The client's number for it; unique in a session.
    number: int
    tenant_id: TenantId
    operations: tuple[PackedOperation, ...]
    #: None: a single operation. Else a batch, and whether it is one transaction.
    atomic: bool | None
    #: Seconds that are left.
    deadline_s: float
    #: Whether the actor has to take it even when another actor represents the tenant.
    final: bool
    #: The `traceparent` of a call that somebody traces.
    trace: str | None = None


class RequestHeader(NamedTuple):
    """What a request says beside its calls."""

    #: One client's connection to one incarnation of the actor.
    session: str
    #: Numbers of calls that nobody waits for any more.
    cancelled: tuple[int, ...]
    #: How many requests of this session may wait for an answer without holding up a newer one.
    waiting_max: int


class Answer(NamedTuple):
    """The end of a call: `PackedResult`, `PackedError`, a list of these, or `Redirect`."""

    number: int
    outcome: Any


class Redirect(NamedTuple):
    """Another actor represents this tenant; nothing was done."""

    actor: str
    version: int


class PackedError(NamedTuple):
    """An error, pickled by itself so that a strange one spoils nothing else."""

    data: bytes


#: Columns as pairs, rows, row count.
PackedResult = tuple[tuple[tuple[str, str], ...], list[list[Any]], int]


class Packer:
    """Writes a message item by item, so that its size is known while it grows."""

    def __init__(self, header: tuple[Any, ...], bytes_max: int) -> None:
        self._buffer = io.BytesIO()
        self._pickler = pickle.Pickler(self._buffer, _PROTOCOL)
        self._bytes_max = bytes_max
        self._pickler.dump(header)

    @property
    def full(self) -> bool:
        """Whether the message has reached its size; one item may have taken it beyond."""
        return self._buffer.tell() >= self._bytes_max

    def add(self, item: tuple[Any, ...]) -> None:
        """Append an item that is known to be plain. A plain tuple is the cheapest."""
        self._pickler.dump(item)

    def message(self) -> bytes:
        """The bytes."""
        return self._buffer.getvalue()


def unpack(message: bytes) -> Iterator[Any]:
    """The header and then the items of a message, as plain tuples."""
    load = pickle.Unpickler(io.BytesIO(message)).load  # noqa: S301
    while True:
        try:
            item = load()
        except EOFError:
            return
        yield item


def pack_operation(operation: Operation, bytes_max: int) -> PackedOperation:
    """An operation as plain values.

    Raises `ParameterError` when its parameters cannot be sent, and `RequestTooLargeError`.
    """
    given = operation.params
    params: Any
    values: Iterable[Any]
    if isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray):
        params = values = tuple(given)
        plain = True
    elif isinstance(given, Mapping):
        params = dict(given)
        values = params.values()
        plain = all(type(name) is str for name in params)
    else:
        raise ParameterError("params must be a list for $1 placeholders or a mapping for :name")
    size = len(operation.query)
    for value in values:
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind not in _PLAIN:
            plain = False
    if not plain:
        params = _pickled(params)
        size += len(params)
    if size > bytes_max:
        raise RequestTooLargeError(
            f"the operation carries about {size} bytes, and {bytes_max} is the limit "
            "(TENANCY_REQUEST_BYTES_MAX); send less at a time"
        )
    return operation.query, params, not plain, operation.idempotency_key


def unpack_operation(packed: PackedOperation, deadline_s: float) -> Operation:
    """The operation again; `ParameterError` when its parameters mean nothing in this process."""
    query, params, pickled, key = packed
    if pickled:
        try:
            params = pickle.loads(params)  # noqa: S301
        except Exception as error:
            # Whatever the class of a caller's object raises, or that it does not exist here.
            raise ParameterError(
                f"a parameter cannot be read by the tenant's actor ({type(error).__name__}); "
                "use values that asyncpg takes"
            ) from None
    return Operation(query=query, params=params, deadline_s=deadline_s, idempotency_key=key)


class ResultPacker:
    """Turns results into plain values, naming columns that come again by the same object."""

    def __init__(self) -> None:
        self._columns: dict[int, tuple[tuple[Column, ...], tuple[tuple[str, str], ...]]] = {}

    def pack(self, outcome: Any) -> Any:
        """A `PackedResult`, a `PackedError`, a list of these; a redirect as it is."""
        if isinstance(outcome, QueryResult):
            return self._pairs(outcome.columns), outcome.rows, outcome.row_count
        if isinstance(outcome, list):
            return [self.pack(item) for item in outcome]
        if isinstance(outcome, TenancyError):
            return _pack_error(outcome)
        return outcome

    def _pairs(self, columns: tuple[Column, ...]) -> tuple[tuple[str, str], ...]:
        # Keyed by identity: the engine gives a held statement's results the same tuple. The tuple
        # is kept beside its pairs, so that no other can get its identity meanwhile.
        known = self._columns.get(id(columns))
        if known is None:
            known = columns, tuple((column.name, column.type) for column in columns)
            self._columns[id(columns)] = known
        return known[1]


class ResultUnpacker:
    """The reverse of `ResultPacker`, with the columns of one message made once."""

    def __init__(self) -> None:
        self._columns: dict[int, tuple[Any, tuple[Column, ...]]] = {}

    def unpack(self, outcome: Any) -> Any:
        """A `QueryResult`, an error, a redirect, or a list of these."""
        if type(outcome) is tuple:
            pairs, rows, row_count = outcome
            return QueryResult(columns=self._names(pairs), rows=rows, row_count=row_count)
        if isinstance(outcome, PackedError):
            return _unpack_error(outcome)
        if isinstance(outcome, list):
            return [self.unpack(item) for item in outcome]
        return outcome

    def _names(self, pairs: Any) -> tuple[Column, ...]:
        known = self._columns.get(id(pairs))
        if known is None:
            known = pairs, tuple(Column(name=name, type=kind) for name, kind in pairs)
            self._columns[id(pairs)] = known
        return known[1]


def _pickled(params: Any) -> bytes:
    try:
        return pickle.dumps(params, _PROTOCOL)
    except Exception as error:
        # Whatever __reduce__ of a caller's object raises.
        raise ParameterError(
            f"a parameter cannot be sent to the tenant's actor ({type(error).__name__}); "
            "use values that asyncpg takes"
        ) from None


def _pack_error(error: TenancyError) -> PackedError:
    try:
        return PackedError(pickle.dumps(error, _PROTOCOL))
    except Exception:
        # An error that holds something that cannot cross keeps what every error has.
        plain = TenancyError(error.detail, error.sqlstate, error.retry_after_s)
        return PackedError(pickle.dumps(plain, _PROTOCOL))


def _unpack_error(packed: PackedError) -> TenancyError:
    try:
        error = pickle.loads(packed.data)  # noqa: S301
    except Exception:
        error = None  # Of a class that exists at the actor only.
    return error if isinstance(error, TenancyError) else TenancyError()
