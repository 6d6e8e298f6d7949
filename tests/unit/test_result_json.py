"""Results of a batch are written as the general writer writes them, byte for byte."""

from __future__ import annotations

from decimal import Decimal

from tenancy.data_isolation.core import Column, QueryResult
from tenancy.data_isolation.core.errors import ConstraintError
from tenancy.data_isolation.serve.json_documents import dump_json
from tenancy.data_isolation.serve.problems import problem
from tenancy.data_isolation.serve.result_json import batch_json

_COLUMNS = (Column(name='a"\n', type="bigint"), Column(name="é", type="jsonb"))
_PLAIN = QueryResult(columns=_COLUMNS, rows=[[1, {"x": [1e16, 0.1]}], [None, "é"]], row_count=2)
_EXACT = QueryResult(
    columns=_COLUMNS, rows=[[10**30, Decimal("0.10000000000000000001")]], row_count=1
)
_NOTHING = QueryResult(columns=(), rows=[], row_count=5)


def test_it_is_what_the_general_writer_writes():
    error = ConstraintError("twice", "23505")
    for outcomes in (
        [],
        [_PLAIN, _PLAIN, _NOTHING],
        [_PLAIN, error, _EXACT],
        [QueryResult(columns=(Column(name="b", type="text"),), rows=[["x"]], row_count=1), _PLAIN],
    ):
        plain = [{"error": problem(item)} if item is error else item for item in outcomes]
        assert batch_json(outcomes) == dump_json({"results": plain})
