"""Results as they are kept: packed, with what they are of and the counters they were read under."""

from __future__ import annotations

from collections.abc import Sequence

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.types import Column, QueryResult
from tenancy.data_isolation.engine.values import decode_json, encode_json


def packed_result(result: QueryResult) -> bytes | None:
    """The result, packed; None when what comes out would not be what went in."""
    columns = [[column.name, column.type] for column in result.columns]
    value = [columns, result.rows, result.row_count]
    try:
        packed = encode_json(value)
        # Number by number: a float may come back as a decimal, or not at all.
        return packed if decode_json(packed) == value else None
    except (ValueError, TenancyError):
        return None


def unpacked_result(packed: bytes) -> QueryResult:
    """The result again. Raises `ValueError`, `TypeError` or `TenancyError` when it is none."""
    columns, rows, row_count = decode_json(packed)
    return QueryResult(
        columns=tuple(Column(name=name, type=kind) for name, kind in columns),
        rows=rows,
        row_count=row_count,
    )


def labelled(digest: bytes, counts: Sequence[int], packed: bytes) -> bytes:
    """What lies in Redis: what it is of, and the counters it was read under, and the result."""
    return _label(digest, counts) + b"\n" + packed


def read_labelled(value: bytes, digest: bytes, counts: Sequence[int]) -> tuple[bytes | None, bool]:
    """The packed result that lies in Redis, if it is what was asked for under these counters.

    And whether it is that of other counters, so that it was avoided.
    """
    label, _, packed = value.partition(b"\n")
    if label != _label(digest, counts):
        return None, label.startswith(digest.hex().encode())
    try:
        unpacked_result(packed)
    except (ValueError, TypeError, TenancyError):
        return None, False  # Somebody else has written to Redis.
    return packed, False


def _label(digest: bytes, counts: Sequence[int]) -> bytes:
    return f"{digest.hex()} {' '.join(map(str, counts))}".encode()
