"""What pinned tenants ask for the most, so that it can be answered ahead. No I/O.

Bounded: pinned tenants, questions of each, and the size of one. A question is a statement's text as
it was given, with its parameters; it is of the tenant alone, and forgotten with its pin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.types import Operation
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.values import decode_json, encode_json

#: Questions that are counted for each one that is kept: what is new has to come up somewhere.
_COUNTED_PER_KEPT: Final = 2
#: Longest text of a statement that is remembered.
_TEXT_CHARS_MAX: Final = 4_000
#: Most that the questions of one tenant may take where processes share them.
_PACKED_BYTES_MAX: Final = 256 * 1024


@dataclass(slots=True)
class _Question:
    operation: Operation
    asked: int


class HotQuestions:
    """Questions by tenant, with how often they were asked lately."""

    def __init__(self, questions_max: int) -> None:
        self._questions_max = questions_max
        self._asked: dict[TenantNo, dict[str, _Question]] = {}
        #: The tenants that are pinned, each with the name under which its questions are shared.
        self._pinned: Mapping[TenantNo, str] = {}

    def __contains__(self, tenant_no: TenantNo) -> bool:
        return tenant_no in self._pinned

    @property
    def pinned(self) -> Mapping[TenantNo, str]:
        """The tenants whose questions are counted."""
        return self._pinned

    def pin(self, pinned: Mapping[TenantNo, str]) -> None:
        """Count the questions of exactly these tenants."""
        self._pinned = dict(pinned)
        self._asked = {number: self._asked.get(number, {}) for number in pinned}

    def note(self, tenant_no: TenantNo, statement: Statement, arguments: Sequence[Any]) -> None:
        """A pinned tenant asks for this."""
        asked = self._asked.get(tenant_no)
        if asked is None or len(statement.source) > _TEXT_CHARS_MAX:
            return
        operation = _operation(statement, arguments)
        found = asked.get(_key(operation))
        if found is None:
            self._add(asked, _Question(operation, 1))
        else:
            found.asked += 1

    def top(self, tenant_no: TenantNo) -> list[Operation]:
        """What the tenant asked for the most, that first."""
        asked = self._asked.get(tenant_no, {})
        ordered = sorted(asked.values(), key=lambda item: -item.asked)
        return [item.operation for item in ordered[: self._questions_max]]

    def cool_down(self) -> None:
        """Let what was asked count for half: what was hot is so only as long as it goes on."""
        for asked in self._asked.values():
            for item in asked.values():
                item.asked -= item.asked // 2

    def packed(self, tenant_no: TenantNo) -> bytes:
        """The tenant's questions for another process, as many as there is room for."""
        parts: list[bytes] = []
        size = 2
        for operation in self.top(tenant_no):
            try:
                part = encode_json([operation.query, operation.params])
            except (ValueError, TypeError, TenancyError):
                continue  # A value that JSON has no form for.
            size += len(part) + 1
            if size > _PACKED_BYTES_MAX:
                break
            parts.append(part)
        return b"[" + b",".join(parts) + b"]"

    def learn(self, tenant_no: TenantNo, packed: bytes) -> None:
        """Take in what another process has seen; what cannot be read is passed over."""
        asked = self._asked.get(tenant_no)
        if asked is None or not packed:
            return
        try:
            for query, params in decode_json(packed)[: self._questions_max]:
                if isinstance(query, str) and isinstance(params, list | dict):
                    self._add(asked, _Question(Operation(query=query, params=params), 1))
        except (ValueError, TypeError, TenancyError):
            return

    def _add(self, asked: dict[str, _Question], question: _Question) -> None:
        key = _key(question.operation)
        if key in asked:
            return
        if len(asked) >= _COUNTED_PER_KEPT * self._questions_max:
            least = min(asked, key=lambda name: asked[name].asked)
            # What is new takes over the count, or it would be the next to go for ever (Metwally et
            # al., "Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005).
            question.asked += asked.pop(least).asked
        asked[key] = question


def _key(operation: Operation) -> str:
    """The same for the same question."""
    return repr((operation.query, operation.params))


def _operation(statement: Statement, arguments: Sequence[Any]) -> Operation:
    names = statement.parameter_names
    params: Sequence[Any] | Mapping[str, Any] = list(arguments)
    if names is not None:
        params = dict(zip(names, arguments, strict=True))
    return Operation(query=statement.source, params=params)
