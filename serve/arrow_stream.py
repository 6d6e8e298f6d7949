"""Results as Arrow IPC streams (Arrow columnar format, "IPC Streaming Format").

A stream of that format has one schema, so each operation has a stream of its own, and they follow
each other in the order of the operations. What is to be said beside the rows is in the schema's
metadata. A last stream without columns says that all is there: a reader of Arrow takes a body that
breaks off between two batches for a whole one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from tenancy.data_isolation.core import QueryResult, TenancyError
from tenancy.data_isolation.serve.arrow_columns import ArrowColumn, typed_column, untyped_column
from tenancy.data_isolation.serve.json_documents import dump_json
from tenancy.data_isolation.serve.media_types import MediaType
from tenancy.data_isolation.serve.problems import problem
from tenancy.data_isolation.serve.result_stream import Outcomes, emptied, summary

# The first array has pyarrow look for pandas and import it, for a second: not on an event loop.
pa.array([], pa.null())

#: Keys of the schemas' metadata.
OPERATION: Final = b"tenancy.operation"
ROW_COUNT: Final = b"tenancy.row_count"
ERROR: Final = b"tenancy.error"
END: Final = b"tenancy.end"
FAILED: Final = b"tenancy.failed"
#: What a value that has a fixed size is taken to need.
_FIXED_BYTES: Final = 8
#: Rows of one batch at most, so that no step takes long.
_BATCH_ROWS_MAX: Final = 2_000


class ArrowStream:
    """The form `application/vnd.apache.arrow.stream`."""

    media_type = MediaType.ARROW

    def pieces(self, outcomes: Outcomes, piece_bytes: int) -> Iterator[bytes]:
        """See `ResultStream`."""
        count, errors = len(outcomes), 0
        waiting: list[bytes] = []
        for number, outcome in emptied(outcomes):
            metadata = {OPERATION: str(number).encode()}
            if isinstance(outcome, TenancyError):
                errors += 1
                waiting.append(_told(metadata | {ERROR: dump_json(problem(outcome))}))
                continue
            metadata[ROW_COUNT] = str(outcome.row_count).encode()
            for piece in _result(outcome, metadata, piece_bytes):
                waiting.append(piece)
                if not piece:
                    yield b""
                elif sum(map(len, waiting)) >= piece_bytes:
                    yield b"".join(waiting)
                    waiting = []
        waiting.append(_told({END: summary(count, errors)}))
        yield b"".join(waiting)

    def failure(self, error: TenancyError) -> bytes:
        """See `ResultStream`."""
        return _told({FAILED: dump_json(problem(error))})


class _Sink:
    """What Arrow writes to: a file of Python's that keeps what came since it was last asked."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        """Take what is written; Arrow uses its buffer again afterwards."""
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def flush(self) -> None:
        """Nothing is kept back."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _told(metadata: dict[bytes, bytes]) -> bytes:
    """A stream without columns, for what its schema says."""
    sink = _Sink()
    with pa.ipc.new_stream(sink, pa.schema([], metadata=metadata)):
        pass
    return sink.taken()


def _result(result: QueryResult, metadata: dict[bytes, bytes], piece_bytes: int) -> Iterator[bytes]:
    """The stream of one result, in batches of about so many bytes."""
    columns = []
    for index in range(len(result.columns)):
        columns.append((yield from _column(result, index)))
    fields = [item.field(column) for item, column in zip(columns, result.columns, strict=True)]
    schema = pa.schema(fields, metadata=metadata)
    sink = _Sink()
    with pa.ipc.new_stream(sink, schema) as writer:
        for rows in _batches(result.rows, columns, piece_bytes):
            arrays = [
                item.array(values)
                for item, values in zip(columns, zip(*rows, strict=True), strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            yield sink.taken()
    yield sink.taken()


def _column(result: QueryResult, index: int) -> Generator[bytes, None, ArrowColumn]:
    """How a column is written: all its values are looked at, with an empty piece now and then."""
    found = typed_column(result.columns[index])
    if found is not None:
        if found.certain:
            return found
        for values in _values(result.rows, index):
            if not found.fits(values):
                break
            yield b""
        else:
            return found
    for values in _values(result.rows, index):
        if not all(value is None or type(value) is str for value in values):
            return untyped_column(plain=False)
        yield b""
    return untyped_column(plain=True)


def _values(rows: list[list[Any]], index: int) -> Iterator[list[Any]]:
    """The values of one column, so many rows at a time."""
    waiting = iter(rows)
    while some := [row[index] for row in islice(waiting, _BATCH_ROWS_MAX)]:
        yield some


def _batches(
    rows: list[list[Any]], columns: Sequence[ArrowColumn], batch_bytes: int
) -> Iterator[list[list[Any]]]:
    """Rows that make about so many bytes together, one at least."""
    if not columns:
        # Rows without columns have nothing to send; `row_count` tells how many there are.
        return
    batch: list[list[Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(map(_size, row))
        if size >= batch_bytes or len(batch) >= _BATCH_ROWS_MAX:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(value: Any) -> int:
    kind = type(value)
    if kind is str:
        return len(value) + _FIXED_BYTES
    if kind is list or kind is dict:
        return len(dump_json(value))
    return _FIXED_BYTES
