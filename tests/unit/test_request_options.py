"""Options that a request's headers ask for."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.request_options import RequestOptions

_SETTINGS = Settings(statement_timeout_ms=30_000)


def _options(*pairs: tuple[str, str]) -> RequestOptions:
    raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    return RequestOptions.of(Headers(raw=raw), _SETTINGS)


def test_without_headers_there_are_no_options():
    assert _options(("Accept", "*/*")) == RequestOptions()


@pytest.mark.parametrize(
    ("value", "deadline_s"),
    [
        ("wait=5", 5),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("respond-async, wait=7", 7),
        ("return=minimal; foo=bar, wait=7; x=y", 7),
        ("wait=100", 30),
        ("wait=999999999", 30),
        ("return=minimal", None),
        ("", None),
    ],
)
def test_the_preference_to_wait_is_followed_up_to_the_limit(value, deadline_s):
    assert _options(("Prefer", value)).deadline_s == deadline_s


def test_the_preference_is_found_in_any_of_several_headers():
    assert _options(("Prefer", "return=minimal"), ("Prefer", "wait=3")).deadline_s == 3


@pytest.mark.parametrize("value", ["wait", "wait=", "wait=0", "wait=-1", "wait=1.5", "wait=soon"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(value):
    with pytest.raises(InvalidInputError, match="wait"):
        _options(("Prefer", value))


def test_what_was_followed_is_told():
    assert _options(("Prefer", "wait=5")).answer_headers() == {"Preference-Applied": "wait=5"}
    assert _options(("Prefer", "return=minimal")).answer_headers() == {}


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("abc-1", "abc-1"),
        ('"abc 1"', "abc 1"),
        (r'"a\"b\\c"', r'a"b\c'),
        (" abc ", "abc"),
        ("x" * 200, "x" * 200),
    ],
)
def test_an_idempotency_key_is_taken_with_or_without_quotes(value, key):
    assert _options(("Idempotency-Key", value)).idempotency_key == key


@pytest.mark.parametrize("value", ["", '""', '"', '"a', "a b", "ä", "x" * 201, 'a"b', "a, b"])
def test_a_text_that_is_no_idempotency_key_is_refused(value):
    with pytest.raises(InvalidInputError, match="Idempotency-Key"):
        _options(("Idempotency-Key", value))


def test_two_idempotency_keys_are_refused():
    with pytest.raises(InvalidInputError, match="Idempotency-Key"):
        _options(("Idempotency-Key", "a"), ("Idempotency-Key", "b"))
