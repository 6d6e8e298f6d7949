"""What the kept answer to a write is taken for when it is given again."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine.idempotency import _size

#: Seven bytes of the row and four of the value (manual, 55.7, DataRow).
_AROUND = 11


@pytest.mark.parametrize(
    ("value", "on_the_wire"),
    [
        (None, ""),
        (True, "t"),
        (False, "f"),
        (12, "12"),
        (-3.5, "-3.5"),
        (100000.0, "100000"),
        ("text", "text"),
        ("é", "é"),
        ([True, False], "{t,f}"),
        ([True] * 50, "{" + ",".join("t" * 50) + "}"),
        (["a", None], "{a,NULL}"),
        ([], "{}"),
        ({}, "{}"),
        ({"a": 1}, '{"a":1}'),
    ],
)
def test_an_answer_counts_no_more_than_it_did_the_first_time(value, on_the_wire):
    result = QueryResult(columns=(), rows=[[value]], row_count=1)
    found = _size([result]) - _AROUND
    assert found <= len(on_the_wire.encode())
    # And it counts.
    assert found >= len(on_the_wire.encode()) // 4
