"""Messages between client and actor: what goes in comes out; nothing strange spoils the rest."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.actors.wire import (
    Answer,
    Packer,
    Redirect,
    RequestHeader,
    ResultPacker,
    ResultUnpacker,
    pack_operation,
    unpack,
    unpack_operation,
)
from tenancy.data_isolation.core.errors import (
    ConstraintError,
    ParameterError,
    RequestTooLargeError,
    TenancyError,
)
from tenancy.data_isolation.core.types import Column, Operation, QueryResult

_PLAIN = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_STRANGE = (
    Decimal("1.50"),
    datetime(2026, 1, 1, tzinfo=UTC),
    uuid.UUID(int=7),
    [1, [2]],
    {"a": [1]},
)


def _crossed(outcome):
    packer = Packer((0,), 1 << 20)
    packer.add(Answer(1, ResultPacker().pack(outcome)))
    _, answer = unpack(packer.message())
    return ResultUnpacker().unpack(answer.outcome)


class OfThisProcess:
    def __reduce__(self):
        return _never, ()


def _never():
    raise RuntimeError("cannot be made again")


@given(st.lists(_PLAIN) | st.dictionaries(st.text(), _PLAIN))
def test_plain_parameters_cross_unchanged(params):
    packed = pack_operation(
        Operation(query="select 1", params=params, idempotency_key="k"), 1 << 20
    )

    operation = unpack_operation(packed, 2.5)

    expected = params if isinstance(params, dict) else tuple(params)
    assert operation == Operation(
        query="select 1", params=expected, deadline_s=2.5, idempotency_key="k"
    )


@pytest.mark.parametrize("value", _STRANGE, ids=lambda value: type(value).__name__)
def test_parameters_that_asyncpg_takes_cross_unchanged(value):
    assert unpack_operation(
        pack_operation(Operation(query="", params=[value]), 1 << 20), 1
    ).params == (value,)


def test_a_parameter_that_cannot_be_sent_is_named_as_such():
    with pytest.raises(ParameterError, match="cannot be sent"):
        pack_operation(Operation(query="select $1", params=[threading.Lock()]), 1 << 20)


def test_a_parameter_that_the_actor_cannot_read_fails_its_own_operation_only():
    packer = Packer(RequestHeader("s", (), 1), 1 << 20)
    for value in (1, OfThisProcess(), 3):
        packer.add((pack_operation(Operation(query="select $1", params=[value]), 1 << 20),))

    _, (first,), (second,), (third,) = unpack(packer.message())

    assert unpack_operation(first, 1).params == (1,)
    assert unpack_operation(third, 1).params == (3,)
    with pytest.raises(ParameterError, match="cannot be read"):
        unpack_operation(second, 1)


@pytest.mark.parametrize("params", ["text", b"bytes", 7, {1, 2}])
def test_parameters_that_are_no_list_and_no_mapping_are_refused(params):
    with pytest.raises(ParameterError):
        pack_operation(Operation(query="select $1", params=params), 1 << 20)


@given(st.lists(st.lists(_JSON, max_size=3), max_size=5))
def test_results_cross_unchanged(rows):
    columns = (Column(name="id", type="bigint"), Column(name="größe", type="numeric"))
    result = QueryResult(columns=columns, rows=rows, row_count=len(rows))

    assert _crossed(result) == result


def test_errors_cross_with_all_that_they_hold():
    error = _crossed(ConstraintError("a row exists already", "23505", 1.5))

    assert type(error) is ConstraintError
    assert (error.detail, error.sqlstate, error.retry_after_s) == (
        "a row exists already",
        "23505",
        1.5,
    )


def test_an_error_that_cannot_be_pickled_keeps_what_every_error_has():
    error = ConstraintError("a row exists already", "23505")
    error.lock = threading.Lock()

    crossed = _crossed(error)

    assert type(crossed) is TenancyError
    assert (crossed.detail, crossed.sqlstate) == ("a row exists already", "23505")


def test_a_batch_crosses_item_by_item():
    result = QueryResult(columns=(), rows=[], row_count=3)

    first, second = _crossed([result, ParameterError("no")])

    assert first == result
    assert type(second) is ParameterError


def test_a_redirect_crosses_as_it_is():
    assert _crossed(Redirect("tenancy-dedicated-7", 3)) == Redirect("tenancy-dedicated-7", 3)


def test_equal_columns_and_texts_travel_once():
    columns = tuple(Column(name=f"column_{number}", type="text") for number in range(50))
    results = ResultPacker()
    packer = Packer((0,), 1 << 20)
    packer.add(Answer(0, results.pack(QueryResult(columns=columns, rows=[], row_count=0))))
    one = len(packer.message())

    packer.add(Answer(1, results.pack(QueryResult(columns=columns, rows=[], row_count=0))))

    assert len(packer.message()) - one < 60


def test_a_message_says_when_it_is_full():
    packer = Packer((0,), 100)
    assert not packer.full

    packer.add(("x" * 200,))

    assert packer.full


@pytest.mark.parametrize("params", [["x" * 5_000], {"a": [b"x" * 5_000]}, [1, b"x" * 5_000]])
def test_an_operation_larger_than_a_request_may_be_is_refused(params):
    operation = Operation(query="select $1", params=params)

    pack_operation(operation, 10_000)
    with pytest.raises(RequestTooLargeError):
        pack_operation(operation, 1_000)
