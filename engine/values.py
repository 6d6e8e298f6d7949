"""Values between PostgreSQL's text form and the wire form of `core.types.QueryResult`.

Rules this module keeps:

* Everything travels in PostgreSQL's own text form (manual, 55.2.4: format code 0), so that what
  a type means is decided by PostgreSQL alone and no type is unknown.
* Nothing is lost on the way out: a fraction in JSON that a double would round stays a `Decimal`,
  an integer of any size an `int`. Only the lower bounds of an array, which a list cannot carry, go.
* On the way in, a `str` is the text that PostgreSQL reads for the type, for every type but JSON,
  where it is a JSON string. Anything else must be of the type's own form; `WrongFormError` says
  which that is. Nothing is rounded, cut or guessed.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from tenancy.data_isolation.core.errors import StatementError
from tenancy.data_isolation.core.json_values import holds_surrogate, is_deeper

#: The wire form of a value that is not NULL, from PostgreSQL's text.
Decode = Callable[[bytes], Any]
#: PostgreSQL's text of a value that is not None.
Encode = Callable[[Any], bytes]

#: Digits of an integer beyond which Python's `int` refuses to read it (sys.int_info).
_INT_DIGITS_MAX = 4_000
_ARRAY_TOKEN = {
    delimiter: re.compile(
        rb'"((?:[^"\\]|\\.)*)"|([^"{}%s]+)|([{}])' % re.escape(delimiter), re.DOTALL
    )
    for delimiter in (b",", b";")
}
_QUOTED_FIELD = re.compile(rb'"((?:[^"\\]|""|\\.)*)"', re.DOTALL)
_ESCAPED_IN_FIELD = re.compile(rb'\\(.)|""', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


class WrongFormError(ValueError):
    """A parameter is not of a form that its type takes; the text says which forms it takes."""


# From PostgreSQL


def decode_text(raw: bytes) -> str:
    """Types that travel as the text that PostgreSQL writes."""
    return raw.decode()


def decode_bool(raw: bytes) -> bool:
    """Boolean."""
    return raw == b"t"


def decode_float(raw: bytes) -> float | str:
    """Real and double precision; what JSON has no number for stays text."""
    number = float(raw)
    return number if math.isfinite(number) else raw.decode()


def decode_json(raw: bytes) -> Any:
    """Type json and jsonb.

    Raises `StatementError` for what would not get through every part of the runtime: pickling
    recurses, and half of a surrogate pair (RFC 8259, 8.2) is not text.
    """
    try:
        value = _JSON.decode(raw.decode())
    except RecursionError:
        raise StatementError(_TOO_DEEP) from None
    if raw.count(b"[") + raw.count(b"{") > _JSON_DEPTH_MAX and is_deeper(value, _JSON_DEPTH_MAX):
        raise StatementError(_TOO_DEEP)
    if _SURROGATE.search(raw) and holds_surrogate(value):
        raise StatementError("a JSON value holds half of a surrogate pair; select it as text")
    return value


def array_decoder(element: Decode, delimiter: bytes = b",") -> Decode:
    """Arrays, as nested lists of the element's form (manual, 8.15.6)."""
    token = _ARRAY_TOKEN[delimiter]

    def decode_array(raw: bytes) -> list[Any]:
        if raw[:1] == b"[":  # Lower bounds that are not 1: `[0:1]={a,b}`.
            raw = raw[raw.index(b"=") + 1 :]
        if raw == b"{}":
            return []
        if b'"' in raw or raw.count(b"{") > 1:
            return _nested_array(raw, token, element)
        items = raw[1:-1].split(delimiter)
        return [None if item == b"NULL" else element(item) for item in items]

    return decode_array


def composite_decoder(attributes: list[Decode]) -> Decode:
    """Composite types, as lists of their attributes' forms (manual, 8.16.6)."""

    def decode_composite(raw: bytes) -> list[Any]:
        fields = list(_fields(raw))
        if len(fields) != len(attributes):
            raise StatementError("a composite type changed while it was read; try again")
        return [
            None if field is None else attribute(field)
            for field, attribute in zip(fields, attributes, strict=True)
        ]

    return decode_composite


def decode_record(raw: bytes) -> list[str | None]:
    """A row without a named type: nothing tells what its fields are, so they stay text."""
    return [None if field is None else field.decode() for field in _fields(raw)]


def _nested_array(raw: bytes, token: re.Pattern[bytes], element: Decode) -> list[Any]:
    found: list[Any] = []
    open_lists: list[list[Any]] = [found]
    for match in token.finditer(raw):
        quoted, bare, brace = match.groups()
        if brace == b"{":
            inner: list[Any] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
        elif brace == b"}":
            open_lists.pop()
        elif quoted is not None:
            text = _ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted
            open_lists[-1].append(element(text))
        else:
            open_lists[-1].append(None if bare == b"NULL" else element(bare))
    result: list[Any] = found[0]
    return result


def _fields(raw: bytes) -> Iterator[bytes | None]:
    """The fields of a row's text, which PostgreSQL writes quoted as a whole or not at all."""
    if raw == b"()":
        return
    position, end = 1, len(raw) - 1
    while True:
        quoted = (
            _QUOTED_FIELD.match(raw, position) if raw[position : position + 1] == b'"' else None
        )
        if quoted is not None:
            yield _ESCAPED_IN_FIELD.sub(lambda found: found[1] or b'"', quoted[1])
            position = quoted.end()
        else:
            comma = raw.find(b",", position, end)
            stop = end if comma < 0 else comma
            yield raw[position:stop] or None
            position = stop
        if position >= end:
            return
        position += 1


def _json_integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _INT_DIGITS_MAX else Decimal(text)


def _json_fraction(text: str) -> float | Decimal | str:
    """The double that means the same number, else the exact number."""
    number = float(text)
    try:
        exact = Decimal(text)
    except InvalidOperation:
        return text  # Type json takes exponents that no number type can hold.
    return number if math.isfinite(number) and Decimal(repr(number)) == exact else exact


#: Lists and objects within each other. Pickling, which is how results leave an actor, recurses and
#: ends at about 900; the whole reply would be lost, with the answers of others in it.
_JSON_DEPTH_MAX = 500
_TOO_DEEP = f"a JSON value is nested more than {_JSON_DEPTH_MAX} levels deep; select it as text"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON = json.JSONDecoder(parse_float=_json_fraction, parse_int=_json_integer)


# To PostgreSQL


def encode_text(value: Any) -> bytes:
    """Text types, and every type that has no other form."""
    if isinstance(value, str):
        return value.encode()
    raise WrongFormError("a text")


def encode_bool(value: Any) -> bytes:
    """Boolean."""
    if value is True:
        return b"t"
    if value is False:
        return b"f"
    return _text_or(value, "true or false")


def encode_integer(value: Any) -> bytes:
    """Integer types."""
    if type(value) is int or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            return b"%d" % value
        except ValueError:
            raise WrongFormError("an integer of fewer digits") from None
    return _text_or(value, "an integer")


def encode_float(value: Any) -> bytes:
    """Real and double precision."""
    return _number(value) or _text_or(value, "a number")


def encode_numeric(value: Any) -> bytes:
    """Type numeric, and money."""
    return _number(value) or _text_or(value, "a number, or a text of its digits")


def encode_bytea(value: Any) -> bytes:
    """Type bytea."""
    if isinstance(value, bytes | bytearray | memoryview):
        return b"\\x" + bytes(value).hex().encode()
    return _text_or(value, "bytes, or a text of the form \\x0a1b")


def encode_uuid(value: Any) -> bytes:
    """Type uuid."""
    return str(value).encode() if isinstance(value, uuid.UUID) else _text_or(value, "a UUID")


def encode_date(value: Any) -> bytes:
    """Type date."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat().encode()
    return _text_or(value, "a date, or a text of the form 2013-01-31")


def encode_timestamp(value: Any) -> bytes:
    """Type timestamp. PostgreSQL would drop an offset without a word, so none is taken."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            raise WrongFormError("a datetime without a time zone")
        return value.isoformat().encode()
    return _text_or(value, "a datetime, or a text of the form 2013-01-31 12:00:00")


def encode_timestamptz(value: Any) -> bytes:
    """Type timestamptz. A datetime without a zone is in UTC, as is every session."""
    if isinstance(value, datetime.datetime):
        return value.isoformat().encode()
    return _text_or(value, "a datetime, or a text of the form 2013-01-31 12:00:00+00")


def encode_time(value: Any) -> bytes:
    """Type time."""
    if isinstance(value, datetime.time):
        if value.tzinfo is not None:
            raise WrongFormError("a time without a time zone")
        return value.isoformat().encode()
    return _text_or(value, "a time, or a text of the form 12:00:00")


def encode_timetz(value: Any) -> bytes:
    """Type timetz. A time without a zone is in UTC, as is every session."""
    if isinstance(value, datetime.time):
        return value.isoformat().encode()
    return _text_or(value, "a time, or a text of the form 12:00:00+00")


def encode_interval(value: Any) -> bytes:
    """Type interval."""
    if isinstance(value, datetime.timedelta):
        # Python keeps only the days negative; PostgreSQL reads each part with its own sign.
        return b"%d days %d seconds %d microseconds" % (
            value.days,
            value.seconds,
            value.microseconds,
        )
    return _text_or(value, "a timedelta, or a text of the form 1 day 02:00:00")


def encode_network(value: Any) -> bytes:
    """Types inet and cidr."""
    if isinstance(value, _NETWORKS):
        return str(value).encode()
    return _text_or(value, "an IP address or network")


def encode_json(value: Any) -> bytes:
    """Types json and jsonb: any value that JSON has."""
    try:
        try:
            return _JSON_WRITER.encode(value).encode()
        except _DecimalInJson:
            return "".join(_json_pieces(value)).encode()
    except WrongFormError:
        raise
    except TypeError as error:
        raise WrongFormError(f"a JSON value ({error})") from None
    except (ValueError, RecursionError):
        raise WrongFormError("a JSON value that is finite and not nested in itself") from None


def array_encoder(element: Encode, *, leaf_lists: bool, delimiter: bytes = b",") -> Encode:
    """Arrays. `leaf_lists` says that a list is an element (JSON, composite types), not an array."""

    def encode_array(value: Any) -> bytes:
        if isinstance(value, list | tuple):
            return b"{" + delimiter.join(encode_item(item) for item in value) + b"}"
        return _text_or(value, "a list")

    def encode_item(item: Any) -> bytes:
        if item is None:
            return b"NULL"
        if isinstance(item, list | tuple) and not leaf_lists:
            return encode_array(item)
        return _quoted(element(item))

    return encode_array


def composite_encoder(names: list[str], attributes: list[Encode]) -> Encode:
    """Composite types, from a list of all attributes in their order, or an object of some."""

    def encode_composite(value: Any) -> bytes:
        if isinstance(value, Mapping):
            if not names or set(value) - set(names):
                raise WrongFormError(f"an object of the attributes {', '.join(names)}")
            value = [value.get(name) for name in names]
        if not isinstance(value, list | tuple):
            return _text_or(value, "a list of its attributes")
        if len(value) != len(attributes):
            raise WrongFormError(f"a list of {len(attributes)} attributes, not {len(value)}")
        fields = (
            b"" if field is None else _quoted(attribute(field))
            for field, attribute in zip(value, attributes, strict=True)
        )
        return b"(" + b",".join(fields) + b")"

    return encode_composite


class _DecimalInJson(Exception):
    """Signals the fast writer's limit; never leaves this module."""


_NETWORKS = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def _text_or(value: Any, forms: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    raise WrongFormError(forms)


def _number(value: Any) -> bytes | None:
    """The text of a number; None for what is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, float) and math.isinf(value):
        return b"Infinity" if value > 0 else b"-Infinity"
    try:
        return (repr(value) if isinstance(value, float) else str(value)).encode()
    except ValueError:
        raise WrongFormError("a number of fewer digits") from None


def _quoted(text: bytes) -> bytes:
    """An array's element or a row's field, quoted so that its content cannot matter."""
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _not_json(value: Any) -> Any:
    if isinstance(value, Decimal):
        raise _DecimalInJson
    raise TypeError(f"{type(value).__name__} is not one")


_JSON_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_not_json)


def _json_pieces(value: Any) -> Iterator[str]:
    """JSON text with every digit of the `Decimal`s in it."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise WrongFormError("a JSON value that is finite")
        yield str(value)
    elif isinstance(value, dict):
        yield "{"
        for position, (name, item) in enumerate(value.items()):
            yield f"{',' if position else ''}{_JSON_WRITER.encode(str(name))}:"
            yield from _json_pieces(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for position, item in enumerate(value):
            yield "," if position else ""
            yield from _json_pieces(item)
        yield "]"
    else:
        yield _JSON_WRITER.encode(value)
