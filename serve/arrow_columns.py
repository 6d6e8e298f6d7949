"""Columns of results as Arrow arrays, without loss (Arrow columnar format, 1.5).

Rules this module keeps:

* A PostgreSQL type has the Arrow type that holds all its values. Where there is none it is text, as
  PostgreSQL writes it; composite types and others that have structure are JSON.
* A column of one result that has a value which its Arrow type cannot hold (NaN in `numeric(p,s)`,
  `infinity` and years before 1 or beyond 9999 in dates and timestamps, `24:00:00`, arrays of
  several dimensions) is text or JSON as a whole. The field's metadata says so: `tenancy.form`.

Imports pyarrow, which takes long: to be imported when it is needed.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from tenancy.data_isolation.core.types import Column
from tenancy.data_isolation.serve.json_documents import dump_json

#: What the fields' metadata say.
TYPE_KEY: Final = b"postgresql.type"
FORM_KEY: Final = b"tenancy.form"

Convert = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowColumn:
    """How one column of one result is written. `convert` takes values that are not null.

    `form` says what a text stands for, where the Arrow type does not: `text` or `json`.
    """

    type: pa.DataType
    convert: Convert | None = None
    form: str | None = None
    #: Values of the type always fit.
    certain: bool = True

    def field(self, column: Column) -> pa.Field:
        """The column's field."""
        metadata = {TYPE_KEY: column.type}
        if self.form is not None:
            metadata[FORM_KEY] = self.form
        return pa.field(column.name, self.type, metadata=metadata)

    def array(self, values: Sequence[Any]) -> pa.Array:
        """Values in wire form as an array. Raises what `fits` would find."""
        convert = self.convert
        if convert is not None:
            values = [None if value is None else convert(value) for value in values]
        return pa.array(values, self.type)

    def fits(self, values: Sequence[Any]) -> bool:
        """Whether all values can be written."""
        try:
            self.array(values)
        except (ValueError, TypeError, ArithmeticError, AttributeError, pa.ArrowException):
            return False
        return True


def typed_column(column: Column) -> ArrowColumn | None:
    """How a column is written by its type alone, if its values fit; None when none is known."""
    return _of_type(column.type)


def untyped_column(*, plain: bool) -> ArrowColumn:
    """How any column can be written. `plain` says that its values are texts."""
    return _TEXT if plain else _JSON


def _decimal(value: Any) -> Decimal:
    found = Decimal(value)
    if not found.is_finite():
        raise ValueError(value)
    return found


def _bytes(value: str) -> bytes:
    if not value.startswith("\\x"):
        raise ValueError(value)
    return bytes.fromhex(value[2:])


def _timestamptz(value: str) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(value)
    return found.astimezone(datetime.UTC)


def _timestamp(value: str) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(value)
    if found.tzinfo is not None:
        raise ValueError(value)
    return found


_TEXT: Final = ArrowColumn(type=pa.string(), form="text")
_JSON: Final = ArrowColumn(
    type=pa.string(), form="json", convert=lambda value: dump_json(value).decode()
)
_STRING: Final = ArrowColumn(type=pa.string())

#: By what `format_type` spells, without modifiers.
_SCALARS: Final[dict[str, ArrowColumn]] = {
    "boolean": ArrowColumn(type=pa.bool_()),
    "smallint": ArrowColumn(type=pa.int16()),
    "integer": ArrowColumn(type=pa.int32()),
    "bigint": ArrowColumn(type=pa.int64()),
    # NaN and infinities are texts.
    "real": ArrowColumn(type=pa.float32(), convert=float),
    "double precision": ArrowColumn(type=pa.float64(), convert=float),
    "text": _STRING,
    "character varying": _STRING,
    "character": _STRING,
    "name": _STRING,
    '"char"': _STRING,
    "json": _JSON,
    "jsonb": _JSON,
    "bytea": ArrowColumn(type=pa.binary(), convert=_bytes, certain=False),
    "date": ArrowColumn(type=pa.date32(), convert=datetime.date.fromisoformat, certain=False),
    "timestamp without time zone": ArrowColumn(
        type=pa.timestamp("us"), convert=_timestamp, certain=False
    ),
    "timestamp with time zone": ArrowColumn(
        type=pa.timestamp("us", "UTC"), convert=_timestamptz, certain=False
    ),
    "time without time zone": ArrowColumn(
        type=pa.time64("us"), convert=datetime.time.fromisoformat, certain=False
    ),
}
#: A modifier stands behind the first word: `timestamp(3) with time zone`, `character varying(20)`.
_MODIFIER: Final = re.compile(r"\(([0-9]+)(?:,(-?[0-9]+))?\)")


def _of_type(name: str) -> ArrowColumn | None:
    """How values of a type are written; None for what is not known here."""
    if name.endswith("[]"):
        element = _of_type(name[:-2])
        return _array_of(element if element is not None else _STRING)
    modifier = _MODIFIER.search(name)
    base = name if modifier is None else name[: modifier.start()] + name[modifier.end() :]
    if base == "numeric":
        return _numeric(modifier)
    return _SCALARS.get(base)


def _numeric(modifier: re.Match[str] | None) -> ArrowColumn | None:
    """Decimals have digits of a fixed number; numeric without a modifier has not."""
    if modifier is None:
        return None
    precision, scale = int(modifier[1]), int(modifier[2] or 0)
    if not 0 <= scale <= precision <= 76:
        return None
    kind = pa.decimal128 if precision <= 38 else pa.decimal256
    return ArrowColumn(type=kind(precision, scale), convert=_decimal, certain=False)


def _array_of(element: ArrowColumn) -> ArrowColumn:
    """Arrays of one dimension; PostgreSQL has the same type for all dimensions."""
    convert = element.convert

    def converted(value: Any) -> list[Any]:
        if any(isinstance(item, list) for item in value) and element.form != "json":
            raise ValueError("several dimensions")
        if convert is None:
            return list(value)
        return [None if item is None else convert(item) for item in value]

    return ArrowColumn(
        type=pa.list_(element.type), convert=converted, form=element.form, certain=False
    )
