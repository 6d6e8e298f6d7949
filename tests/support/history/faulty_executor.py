"""An executor that is wrong once on purpose, to see whether it is found out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from support.history.executor import Executor
from tenancy.data_isolation.core.errors import OverloadedError, TenancyError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, QueryResult


class Fault(StrEnum):
    """What goes wrong."""

    #: An item is acknowledged and not added.
    DROP = "drop"
    #: A list is appended to twice.
    TWICE = "twice"
    #: A list is shown as it was long before.
    STALE = "stale"
    #: Half of a transfer happens.
    HALF = "half"
    #: A transfer happens, and the answer is that it was refused.
    DENY = "deny"
    #: Registers are not set, some times in a row, though it is acknowledged: once could be
    #: explained by another write at the same time.
    FORGET = "forget"


#: What the statement that a fault meets has in it.
_MARKS: Final = {
    Fault.DROP: "into history_items",
    Fault.TWICE: "into history_lists",
    Fault.STALE: "from history_lists",
    Fault.HALF: "into history_journal",
    Fault.DENY: "into history_journal",
    Fault.FORGET: "into history_registers",
}
#: By how many values a list that is shown again must have grown: more than appends can be under
#: way, so that some had been acknowledged.
_GROWTH: Final = 12
#: Writes of registers that are forgotten: more than can be under way.
_FORGOTTEN: Final = 12


class FaultyExecutor:
    """Wraps an executor. After some statements that it could meet the fault happens, once."""

    def __init__(self, executor: Executor, fault: Fault, *, after: int = 10) -> None:
        self._executor = executor
        self._fault = fault
        self._chances = after
        self._claimed = False
        self._lists: dict[int, QueryResult] = {}
        #: Set when the fault has happened.
        self.happened = asyncio.Event()

    async def execute(self, tenant_id: TenantId | str, operation: Operation) -> QueryResult:
        async def run(given: Operation) -> QueryResult:
            return await self._executor.execute(tenant_id, given)

        if self._fault is Fault.STALE and _MARKS[self._fault] in operation.query:
            return self._list_of_before(await run(operation), operation)
        if not self._is_due(operation.query):
            return await run(operation)
        if self._fault is Fault.TWICE:
            await run(Operation(query=operation.query, params=operation.params))
            result = await run(operation)
        else:
            result = QueryResult(columns=(), rows=[], row_count=1)
        if self._fault is not Fault.FORGET or self._chances < -_FORGOTTEN:
            self.happened.set()
        return result

    async def execute_batch(
        self,
        tenant_id: TenantId | str,
        operations: Sequence[Operation],
        *,
        atomic: bool = False,
    ) -> list[QueryResult | TenancyError]:
        async def run(given: Sequence[Operation]) -> list[QueryResult | TenancyError]:
            return await self._executor.execute_batch(tenant_id, given, atomic=atomic)

        if not self._is_due(operations[-1].query):
            return await run(operations)
        try:
            done = await run(operations[1:] if self._fault is Fault.HALF else operations)
        except TenancyError:
            # Refused in truth: the fault is still to come.
            self._claimed = False
            raise
        self.happened.set()
        if self._fault is Fault.DENY:
            raise OverloadedError
        return [done[0], *done]

    def _is_due(self, query: str) -> bool:
        if _MARKS[self._fault] not in query:
            return False
        self._chances -= 1
        if self._chances >= 0 or (self._claimed and self._fault is not Fault.FORGET):
            return False
        self._claimed = True
        return True

    def _list_of_before(self, result: QueryResult, operation: Operation) -> QueryResult:
        key = operation.params[0]  # type: ignore[index]
        before = self._lists.setdefault(key, result)
        grown = _length(result) - _length(before) >= _GROWTH
        if grown and not self.happened.is_set():
            self.happened.set()
            return before
        return result


def _length(result: QueryResult) -> int:
    return len(result.rows[0][0]) if result.rows else 0
