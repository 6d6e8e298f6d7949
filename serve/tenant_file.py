"""A file of tenants to make: CSV (RFC 4180) in UTF-8, with names of columns on the first line.

Rules this module keeps: a column that is not known is refused, as is a file without the column of
ids; what is wrong with one line is found with its number and takes no other line along; a file of
any length is read in pieces.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.json_documents import parse_json
from tenancy.data_isolation.serve.models import TenantBody
from tenancy.data_isolation.serve.problems import InvalidFieldsError
from tenancy.data_isolation.serve.request_bodies import checked

#: The columns that there can be; only the first one has to be there.
COLUMNS: Final = (
    "tenant_id",
    "tenant_type",
    "isolation_level",
    "region",
    "compliance",
    "metadata",
)
#: Between the regimes of `compliance`; a comma would be the end of the column.
_SEPARATOR: Final = ";"
_DEPTH_MAX: Final = 64
#: What stands at the beginning of a file that some spreadsheets write.
_MARK: Final = "\ufeff"


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantLine:
    """One line: its number in the file, the tenant's id, and what to send, or what is wrong."""

    number: int
    tenant_id: str
    body: dict[str, Any] | None
    error: str | None = None


def read_tenants(lines: Iterable[str], defaults: Mapping[str, Any]) -> Iterator[TenantLine]:
    """The tenants of a file; `defaults` holds where a line says nothing.

    Bytes that are no UTF-8 are in `lines` as Python's `surrogateescape` has them: read with errors,
    a file would fail pieces ahead of its line. Raises `InvalidInputError` for what is no such file.
    """
    reader = csv.reader(_in_utf8(lines), strict=True)
    try:
        names = [name.removeprefix(_MARK).strip() for name in next(reader, [])]
        _check(names)
        for cells in reader:
            if cells:
                yield _line(reader.line_num, names, cells, defaults)
    except csv.Error as error:
        raise InvalidInputError(f"line {reader.line_num} is no CSV: {error}") from None


def _in_utf8(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"line {number} is not in UTF-8") from None
        yield line


def _check(names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            raise InvalidInputError(
                f"there is no column {name[:60]!r}; the columns are {', '.join(COLUMNS)}"
            )
        if names.count(name) > 1:
            raise InvalidInputError(f"column {name} is there twice")
    if COLUMNS[0] not in names:
        raise InvalidInputError(f"the first line has to name the column {COLUMNS[0]}")


def _line(
    number: int, names: list[str], cells: list[str], defaults: Mapping[str, Any]
) -> TenantLine:
    given = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
    name = given.get(COLUMNS[0], "")
    try:
        if len(cells) > len(names):
            raise InvalidInputError(f"it has {len(cells)} cells for {len(names)} columns")
        body = dict(defaults) | {column: _value(column, text) for column, text in given.items()}
        checked(body, TenantBody)
    except InvalidFieldsError as error:
        told = "; ".join(f"{field}: {detail}" for field, detail in error.fields)
        return TenantLine(number=number, tenant_id=name, body=None, error=told)
    except InvalidInputError as error:
        return TenantLine(number=number, tenant_id=name, body=None, error=error.detail)
    return TenantLine(number=number, tenant_id=name, body=body)


def _value(column: str, text: str) -> Any:
    match column:
        case "compliance":
            return [word.strip() for word in text.split(_SEPARATOR) if word.strip()]
        case "metadata":
            try:
                return parse_json(text.encode("utf-8", "surrogateescape"), depth_max=_DEPTH_MAX)
            except InvalidInputError as error:
                detail = error.detail.replace("the body", "it")
                raise InvalidInputError(f"metadata: {detail}") from None
        case _:
            return text
