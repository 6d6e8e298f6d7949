"""Writes that happen once, however often they are sent: the idempotency key.

The key, a hash of the request and the answer are rows in the tenant's own data, written in the
transaction of the write itself. So they are there exactly when the write is, and they move along
with the tenant. A duplicate that comes while the first is at work waits for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from tenancy.data_isolation.core.errors import (
    IdempotencyConflictError,
    InvalidInputError,
    SerializationError,
    TenancyError,
)
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.core.types import Column, QueryResult, StatementKind
from tenancy.data_isolation.engine.flight_plan import too_large
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.transaction import Transaction, UndoneError
from tenancy.data_isolation.engine.values import decode_json, encode_json

_SQL = SqlFile("idempotency.sql")
_KEY_CHARS_MAX: Final = 255
#: How much longer an answer gets when it is written as a JSON text of JSON, and how many times as
#: large as the results when they came from the server it may be.
_WRITTEN_AGAIN: Final = 2
_ANSWER_FACTOR: Final = 4
#: What a row and a value of it take on their way from the server, beside the value (manual, 55.7).
_ROW_BYTES: Final = 7
_VALUE_BYTES: Final = 4
#: A list or an object is written with quotation marks and spaces here, and may not be there.
_QUOTED_AND_SPACED: Final = 4
#: Keys that the runtime keeps for itself begin like this.
_RESERVED: Final = "tenancy:"


def check_key(key: str) -> None:
    """Raise `InvalidInputError` when a caller may not use the key."""
    if not isinstance(key, str) or not 1 <= len(key) <= _KEY_CHARS_MAX or not key.isprintable():
        raise InvalidInputError(
            f"an idempotency key is a text of 1 to {_KEY_CHARS_MAX} printable characters"
        )
    if key.startswith(_RESERVED):
        raise InvalidInputError(f"idempotency keys that begin with {_RESERVED!r} are reserved")


def statement_ticket(lead: Ticket, name: str, *arguments: Any) -> Ticket:
    """A statement of this module for the tenant of `lead`."""
    text = _SQL.statement(name)
    statement = Statement(
        source=text,
        text=text,
        kind=StatementKind.WRITE,
        fingerprint="",
        tables=frozenset(),
        functions=frozenset(),
        parameter_names=None,
        parameter_count=len(arguments),
        returns_rows=name in ("take_key", "answer"),
        plain=True,
    )
    return Ticket(
        lead.key,
        lead.tenant_no,
        lead.epoch,
        limits=lead.limits,
        statement=statement,
        arguments=arguments,
        believed_until=lead.believed_until,
    )


class IdempotentWrite:
    """One request with a key: the steps around its own statements."""

    def __init__(self, lead: Ticket, key: str, tickets: Sequence[Ticket], keep_s: float) -> None:
        """`tickets` are the request's own statements."""
        self._key = key
        self._tickets = list(tickets)
        digest = _hash(tickets)
        self._digest = digest
        self._take = [
            statement_ticket(lead, "forget_key", key, keep_s),
            statement_ticket(lead, "take_key", key, digest),
        ]
        self._answer = statement_ticket(lead, "answer", key)
        self._answer.limits = _for_answers(lead.limits)
        self._keep = statement_ticket(lead, "keep_answer", key, "")

    @property
    def own_tickets(self) -> list[Ticket]:
        """Statements beside the request's own, which have to be prepared before `run`."""
        return [*self._take, self._answer, self._keep]

    async def run(self, transaction: Transaction) -> list[QueryResult]:
        """The results, of now or of the first time. Raises `UndoneError`, and
        `IdempotencyConflictError` when the key was used with another request."""
        _, taken = await transaction.run(self._take)
        if not taken.rows:
            (found,) = await transaction.run([self._answer])
            await transaction.undo()
            answer = self._first_answer(found)
            budget = self._tickets[0].budget
            if budget is not None and not budget.take(_size(answer)):
                raise UndoneError(too_large(self._tickets[0]), None)
            return answer
        results = await transaction.run(self._tickets)
        packed = _packed(results)
        if len(packed.encode()) * _WRITTEN_AGAIN > self._answer.limits.result_bytes_max:
            # Who sends the request again could not be told what became of it.
            raise UndoneError(too_large(self._tickets[0]), None)
        self._keep.arguments = (self._key, packed)
        if self._keep.description is not None:
            self._keep.encode(self._keep.description)
        await transaction.run([self._keep])
        await transaction.commit()
        return results

    def _first_answer(self, found: QueryResult) -> list[QueryResult]:
        if not found.rows:
            # The transaction that this one waited for has taken the key and was undone since.
            raise SerializationError("the first request with this idempotency key was undone")
        digest, packed = found.rows[0]
        if digest != "\\x" + self._digest.hex():
            raise IdempotencyConflictError
        if packed is None:
            raise TenancyError("the first request with this idempotency key left no answer")
        return _unpacked(packed)


def _hash(tickets: Sequence[Ticket]) -> bytes:
    """The same for the same statements with the same parameters."""
    digest = hashlib.sha256()
    for ticket in tickets:
        for part in (ticket.text.encode(), repr(ticket.arguments).encode(errors="replace")):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _for_answers(limits: TierLimits) -> TierLimits:
    """The limits of a tenant for answers, which are all results of a request as one text."""
    most = max(limits.result_bytes_max, limits.batch_result_bytes_max)
    return replace(limits, result_bytes_max=_ANSWER_FACTOR * most)


def _size(results: Sequence[QueryResult]) -> int:
    """Roughly the bytes that the results took on their way from the server, and not more.

    What was within the limit the first time must be so again.
    """
    return sum(
        _ROW_BYTES + sum(_VALUE_BYTES + _value_size(value) for value in row)
        for result in results
        for row in result.rows
    )


def _value_size(value: Any) -> int:
    match value:
        case None:
            return 0
        case bool():
            return 1  # `t` or `f`.
        case str():
            return len(value.encode(errors="surrogatepass"))
        case float():
            return len(repr(value).removesuffix(".0"))
        case list() | dict():
            return len(repr(value)) // _QUOTED_AND_SPACED
        case _:
            return len(repr(value))


def _packed(results: Sequence[QueryResult]) -> str:
    return encode_json(
        [
            [[[column.name, column.type] for column in item.columns], item.rows, item.row_count]
            for item in results
        ]
    ).decode()


def _unpacked(text: str) -> list[QueryResult]:
    packed = decode_json(json.loads(text).encode())
    return [
        QueryResult(
            columns=tuple(Column(name=name, type=kind) for name, kind in columns),
            rows=rows,
            row_count=row_count,
        )
        for columns, rows, row_count in packed
    ]
