"""Results of statements as a stream: the contract of its forms, and the form NDJSON.

A stream tells of each operation in its order, and ends by saying that it is whole. It is written
piece by piece from results that are in memory already: how large they are together is bounded by
the limits of results, and no second copy of them is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from tenancy.data_isolation.core import QueryResult, TenancyError
from tenancy.data_isolation.serve.json_documents import dump_json, dump_line
from tenancy.data_isolation.serve.media_types import MediaType
from tenancy.data_isolation.serve.problems import problem

Outcomes: TypeAlias = list[QueryResult | TenancyError]


class ResultStream(Protocol):
    """One form of a stream of results."""

    media_type: MediaType

    def pieces(self, outcomes: Outcomes, piece_bytes: int) -> Iterator[bytes]:
        """The stream, in pieces of about `piece_bytes`; it empties `outcomes` on its way.

        A value that is larger makes its piece larger. Each step does a bounded amount of work: an
        empty piece says that there was more to do than that.
        """
        ...

    def failure(self, error: TenancyError) -> bytes:
        """What stands in place of the rest when that cannot be written; after whole pieces."""
        ...


class NdjsonStream:
    """One JSON text per line (the `application/x-ndjson` of ndjson-spec 1.0.0).

    A line that is an array is a row. Every other line is an object: `{"operation", "columns",
    "row_count"}` before an operation's rows, `{"operation", "error"}`, and last `{"end"}` or
    `{"failed"}`.
    """

    media_type = MediaType.NDJSON

    def pieces(self, outcomes: Outcomes, piece_bytes: int) -> Iterator[bytes]:
        """See `ResultStream`."""
        lines: list[bytes] = []
        size = 0
        count, errors = len(outcomes), 0
        for number, outcome in emptied(outcomes):
            errors += isinstance(outcome, TenancyError)
            for line in _lines(number, outcome):
                lines.append(line)
                size += len(line)
                if size >= piece_bytes:
                    yield b"".join(lines)
                    lines, size = [], 0
        lines.append(dump_line({"end": {"operations": count, "errors": errors}}))
        yield b"".join(lines)

    def failure(self, error: TenancyError) -> bytes:
        """See `ResultStream`."""
        return dump_line({"failed": problem(error)})


def _lines(number: int, outcome: QueryResult | TenancyError) -> Iterator[bytes]:
    """What there is to say of one operation, line by line."""
    if isinstance(outcome, TenancyError):
        yield dump_line({"operation": number, "error": problem(outcome)})
        return
    yield dump_line(
        {"operation": number, "columns": outcome.columns, "row_count": outcome.row_count}
    )
    for row in outcome.rows:
        yield dump_line(row)


def summary(operations: int, errors: int) -> bytes:
    """What the end of a stream says, as JSON."""
    return dump_json({"operations": operations, "errors": errors})


def emptied(outcomes: Outcomes) -> Iterator[tuple[int, QueryResult | TenancyError]]:
    """Each outcome with its number. What has been written need not be kept."""
    outcomes.reverse()
    for number in range(len(outcomes)):
        yield number, outcomes.pop()
