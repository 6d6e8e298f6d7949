"""JSON of the HTTP interface: strict on the way in, exact on the way out."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import Column, QueryResult
from tenancy.data_isolation.serve.json_documents import InvalidJsonError, dump_json, parse_json

_NUMBERS = (
    st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.text() | _NUMBERS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def _parse(text: str | bytes, depth_max: int = 64):
    return parse_json(text.encode() if isinstance(text, str) else text, depth_max=depth_max)


def _in_digits(value):
    """The value with every fraction as its decimal digits, so that nothing is rounded away."""
    match value:
        case list():
            return [_in_digits(item) for item in value]
        case dict():
            return {name: _in_digits(item) for name, item in value.items()}
        case float():
            return Decimal(repr(value))
        case _:
            return value


@given(_VALUES)
def test_what_was_written_is_read_again_as_the_same_value(value):
    again = _parse(dump_json(value), depth_max=1_000)

    assert _in_digits(again) == _in_digits(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("-9223372036854775809", -9223372036854775809),
        ("0.1", 0.1),
        ("0.10000000000000000001", Decimal("0.10000000000000000001")),
        ("12345678901234567890.5", Decimal("12345678901234567890.5")),
        ("1e400", Decimal("1e400")),
        ("1.5e3", 1500.0),
    ],
)
def test_a_number_keeps_its_value(text, value):
    found = _parse(text)

    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "line 1, column 2"),
        ("[1,]", "not JSON"),
        ("{} {}", "not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "twice"),
        ('[{"x": {"a": 1, "a": 1}}]', "twice"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity"),
        ("-Infinity", "Infinity"),
        ("9" * 5_000, "too many digits"),
        ("1e99999999999999999999", "exponent"),
        (b"\xff", "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        ('"\\ud800"', "surrogate"),
        ('{"a": ["\\uD834"]}', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
    ],
)
def test_what_is_not_strict_json_is_refused_and_the_reason_told(text, said):
    with pytest.raises(InvalidJsonError, match=said):
        _parse(text)


def test_a_whole_surrogate_pair_is_a_character():
    assert _parse('"\\ud834\\udd1e"') == "\U0001d11e"


@pytest.mark.parametrize("shape", ["[]", '{"a":}'])
def test_nesting_is_allowed_up_to_the_limit_and_no_further(shape):
    opening, closing = shape[:-1], shape[-1]

    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert _parse(nested(5), depth_max=5)
    with pytest.raises(InvalidJsonError, match="5 levels"):
        _parse(nested(6), depth_max=5)
    with pytest.raises(InvalidJsonError, match="5 levels"):
        _parse(nested(100_000), depth_max=5)


def test_many_brackets_side_by_side_are_not_deep():
    assert len(_parse("[" + ",".join(["[]"] * 1_000) + "]", depth_max=2)) == 1_000


def test_a_bracket_in_a_text_is_no_nesting():
    assert _parse(json.dumps("[" * 100), depth_max=1) == "[" * 100


def test_decimals_and_large_integers_keep_every_digit_on_the_way_out():
    value = {"a": Decimal("1.10"), "b": [2**70, -(2**63) - 1], "c": Decimal("1E+400")}

    assert dump_json(value) == (
        b'{"a":1.10,"b":[1180591620717411303424,-9223372036854775809],"c":1E+400}'
    )


def test_a_value_may_be_nested_deeper_than_the_fast_writer_goes():
    value: list = []
    for _ in range(5_000):
        value = [value]

    assert dump_json(value) == b"[" * 5_001 + b"]" * 5_001


def test_a_result_is_written_as_the_interface_promises():
    result = QueryResult(
        columns=(Column(name="id", type="bigint"),), rows=[[1], [2**80]], row_count=2
    )

    assert dump_json(result) == (
        b'{"columns":[{"name":"id","type":"bigint"}],"rows":[[1],[1208925819614629174706176]],'
        b'"row_count":2}'
    )


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), object()])
def test_what_json_cannot_say_is_an_error_and_not_a_wrong_document(value):
    with pytest.raises(TypeError):
        dump_json([value])
