"""JSON as the HTTP interface reads and writes it: strict on the way in, exact on the way out.

Rules this module keeps (RFC 8259, and where that leaves a choice, the careful one):

* UTF-8 only; one document; no NaN or Infinity; no name twice in one object; nesting is bounded;
* a number keeps its value: an integer of any size is an `int`, and a fraction that a double would
  round is a `Decimal`;
* a text holds no lone surrogate, since neither UTF-8 nor PostgreSQL can hold one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import orjson

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.json_values import holds_surrogate, is_deeper

_INT64 = range(-(2**63), 2**64)


class InvalidJsonError(InvalidInputError):
    """The body is not a JSON document; correct it and try again."""

    slug = "invalid-json"


def parse_json(text: bytes, *, depth_max: int) -> Any:
    """The value of the JSON document `text`; `InvalidJsonError` says what is wrong with it."""
    try:
        value = _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidJsonError("the body is not UTF-8 text") from None
    except RecursionError:
        raise InvalidJsonError(_too_deep(depth_max)) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidJsonError(f"the body is not JSON: {error.msg.lower()} ({place})") from None
    except ValueError as error:
        # Of Python's own: an integer of thousands of digits. Others were raised below.
        if isinstance(error, _RefusedError):
            raise InvalidJsonError(str(error)) from None
        raise InvalidJsonError("a number in the body has too many digits") from None
    # A document cannot be deeper than it has opening brackets; most have fewer than the limit.
    if text.count(b"[") + text.count(b"{") > depth_max and is_deeper(value, depth_max):
        raise InvalidJsonError(_too_deep(depth_max))
    if (b"\\ud" in text or b"\\uD" in text) and holds_surrogate(value):
        raise InvalidJsonError("a text in the body holds half of a surrogate pair")
    return value


def dump_json(value: Any) -> bytes:
    """`value` as JSON. Integers and `Decimal` of any size keep every digit."""
    try:
        return orjson.dumps(value, default=_number)
    except TypeError:
        # Integers beyond 64 bits and deep nesting: rare, so written at leisure.
        return "".join(_written(value)).encode()


def dump_line(value: Any) -> bytes:
    """`value` as `dump_json` writes it, and a line feed."""
    try:
        return orjson.dumps(value, default=_number, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return dump_json(value) + b"\n"


class _RefusedError(ValueError):
    """JSON that Python would accept and this module does not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"the name {json.dumps(twice[:80])} stands twice in one object")
    return found


def _fraction(text: str) -> float | Decimal:
    """The double that means the same number, or the exact number when no double does."""
    number = float(text)
    try:
        exact = Decimal(text)
        return number if Decimal(repr(number)) == exact else exact
    except InvalidOperation:
        raise _RefusedError("a number in the body has an exponent that is too large") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is not JSON; send the text {json.dumps(name)} instead")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_fraction, parse_constant=_refuse_constant
)


def _too_deep(depth_max: int) -> str:
    return f"the body is nested more than {depth_max} levels deep"


def _number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _written(value: Any) -> Iterator[str]:
    """The pieces of `value` as JSON. A loop and no recursion, so depth has no limit here."""
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Piece):
            yield item
        elif isinstance(item, dict):
            waiting.append(_Piece("}"))
            # Taken from the end, so written in reverse.
            for position, (name, part) in reversed(list(enumerate(item.items()))):
                head = f"{',' if position else ''}{json.dumps(name, ensure_ascii=False)}:"
                waiting += [part, _Piece(head)]
            waiting.append(_Piece("{"))
        elif isinstance(item, list | tuple):
            waiting.append(_Piece("]"))
            for position, part in reversed(list(enumerate(item))):
                waiting += [part, _Piece("," if position else "")]
            waiting.append(_Piece("["))
        elif isinstance(item, int) and not isinstance(item, bool) and item not in _INT64:
            yield str(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            names = [field.name for field in dataclasses.fields(item)]
            waiting.append({name: getattr(item, name) for name in names})
        else:
            yield orjson.dumps(item, default=_number).decode()


class _Piece(str):
    """Text that is JSON already."""

    __slots__ = ()
