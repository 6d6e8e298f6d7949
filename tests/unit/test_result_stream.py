"""Streams are written piece by piece, and hold no second copy of the results."""

from __future__ import annotations

import gc
import io
import tracemalloc

import pyarrow as pa
import pytest

from tenancy.data_isolation.core import Column, QueryResult
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.serve.arrow_stream import ArrowStream
from tenancy.data_isolation.serve.result_stream import NdjsonStream

_PIECE = 64 * 1024
_STREAMS = [NdjsonStream(), ArrowStream()]


def _outcomes(results: int = 4) -> list[QueryResult | TenancyError]:
    columns = (Column(name="id", type="bigint"), Column(name="text", type="text"))
    return [
        QueryResult(
            columns=columns,
            rows=[[row, f"{number}/{row}/" + "x" * 1_000] for row in range(2_000)],
            row_count=2_000,
        )
        for number in range(results)
    ]


@pytest.mark.parametrize("stream", _STREAMS, ids=["ndjson", "arrow"])
def test_pieces_are_small_and_results_are_let_go_of(stream):
    outcomes = _outcomes()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sizes = [len(piece) for piece in stream.pieces(outcomes, _PIECE)]
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sum(sizes) > 8_000_000
    assert max(sizes) < 3 * _PIECE
    assert outcomes == []
    # Beside the 8 MB that were there already, some pieces.
    assert peak - before < 20 * _PIECE
    assert after - before < _PIECE


def test_a_copy_would_be_noticed():
    outcomes = _outcomes()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        whole = b"".join(NdjsonStream().pieces(outcomes, _PIECE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak - before > len(whole) > 8_000_000


@pytest.mark.parametrize("rows", [0, 1, 1_999, 2_000, 2_001, 5_000])
def test_no_row_is_lost_between_batches(rows):
    columns = (Column(name="n", type="bigint"), Column(name="t", type="date"))
    result = QueryResult(
        columns=columns, rows=[[n, "2026-11-23"] for n in range(rows)], row_count=rows
    )
    body = io.BytesIO(b"".join(ArrowStream().pieces([result], 1_000)))

    table = pa.ipc.open_stream(body).read_all()
    assert table.column("n").to_pylist() == list(range(rows))
    assert pa.ipc.open_stream(body).read_all().schema.metadata == {
        b"tenancy.end": b'{"operations":1,"errors":0}'
    }


def test_a_value_that_does_not_fit_at_the_very_end_makes_the_whole_column_text():
    columns = (Column(name="t", type="date"),)
    rows = [["2026-11-23"]] * 4_500 + [["infinity"]]
    body = b"".join(
        ArrowStream().pieces([QueryResult(columns=columns, rows=rows, row_count=4_501)], 1_000)
    )

    table = pa.ipc.open_stream(body).read_all()
    assert table.schema.field("t").type == pa.string()
    assert table.column("t").to_pylist()[-2:] == ["2026-11-23", "infinity"]
