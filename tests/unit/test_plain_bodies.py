"""The fast reader of bodies reads what the careful one reads, or leaves it to that one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.json_documents import parse_json
from tenancy.data_isolation.serve.models import BatchBody, QueryBody
from tenancy.data_isolation.serve.plain_bodies import plain_batch, plain_statement
from tenancy.data_isolation.serve.request_bodies import checked

_DEPTH = 64


def _careful_statement(text: bytes) -> Any:
    body = checked(parse_json(text, depth_max=_DEPTH), QueryBody)
    return body.query, body.params


def _careful_batch(text: bytes) -> Any:
    body = checked(parse_json(text, depth_max=_DEPTH), BatchBody)
    return [(item.query, item.params) for item in body.operations], body.atomic


@pytest.mark.parametrize(
    "text",
    [
        '{"query":"select 1"}',
        '{"query":"select a::int from t where b = $1","params":["x:y",1,null,true]}',
        ' { "params" : [ 9223372036854775807, -1 ] , "query" : "" } ',
        '{"query":"é\U0001f600","params":[]}',
    ],
)
def test_a_plain_statement_is_read_at_once(text):
    data = text.encode()
    assert plain_statement(data, depth_max=_DEPTH) == _careful_statement(data)


def test_a_plain_batch_is_read_at_once():
    for text in (
        '{"operations":[]}',
        '{"operations":[{"query":"a"},{"params":[1],"query":"b"}],"atomic":true}',
        '{"atomic":false,"operations":[{"query":"a:b","params":[":"]}]}',
    ):
        assert plain_batch(text.encode(), depth_max=_DEPTH) == _careful_batch(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        # Twice, in every place; also with a text that would make up for the colon.
        '{"query":"a","query":"b"}',
        '{"query":"a","params":[1],"params":[2]}',
        '{"query":"a","query":"b","params":["\\u003a"]}',
        '{"query":"a:b","query":"b"}',
        # What a fast reader rounds, or takes.
        '{"query":"a","params":[1.5]}',
        '{"query":"a","params":[123456789012345678901234567890]}',
        '{"query":"a","params":[1e3]}',
        '{"query":"a","params":[-0.0]}',
        '{"query":"\\ud800"}',
        '{"query":"a\\nb"}',
        # Another shape.
        '{"query":"a","params":{"x":1}}',
        '{"query":"a","params":[[1]]}',
        '{"query":"a","params":[{}]}',
        '{"query":"a","params":null}',
        '{"query":null}',
        '{"query":"a","other":1}',
        '{"params":[]}',
        "[]",
        "1",
        "null",
        '"a"',
        "{",
        '{"query":"a"}x',
        '{"query":NaN}',
        '\ufeff{"query":"a"}',
    ],
)
def test_every_other_body_is_left_to_the_careful_reader(text):
    assert plain_statement(text.encode(), depth_max=_DEPTH) is None
    assert plain_batch(f'{{"operations":[{text}]}}'.encode(), depth_max=_DEPTH) is None


def test_a_batch_of_another_shape_is_left_to_the_careful_reader():
    for text in (
        '{"operations":[],"operations":[{"query":"a"}]}',
        '{"operations":[{"query":"a"}],"atomic":1}',
        '{"operations":[{"query":"a"}],"atomic":true,"atomic":false}',
        '{"operations":[{"query":"a"}],"other":true}',
        '{"operations":{}}',
        '{"atomic":true}',
        '{"operations":[1]}',
    ):
        assert plain_batch(text.encode(), depth_max=_DEPTH) is None, text


def test_what_is_not_utf8_is_left_to_the_careful_reader():
    assert plain_statement(b'{"query":"\xff"}', depth_max=_DEPTH) is None
    assert plain_statement(b"", depth_max=_DEPTH) is None
    assert plain_statement(b'{"query":"a"}', depth_max=2) is None


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@given(
    query=st.text(max_size=8),
    params=st.lists(_SCALARS, max_size=4),
    escaped=st.booleans(),
    repeated=st.booleans(),
)
def test_both_readers_agree_on_everything_that_the_fast_one_takes(query, params, escaped, repeated):
    text = json.dumps({"query": query, "params": params}, ensure_ascii=escaped)
    if repeated:
        text = text[:-1] + ',"query":"last"}'
    data = text.encode("utf-8", "surrogatepass")
    found = plain_statement(data, depth_max=_DEPTH)
    try:
        careful = _careful_statement(data)
    except InvalidInputError:
        careful = None

    if found is not None:
        assert repr(found) == repr(careful)
    batch = b'{"operations":[' + data + b"]}"
    several = plain_batch(batch, depth_max=_DEPTH)
    assert several is None if found is None else several == ([found], False)
