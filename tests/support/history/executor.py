"""What the clients of a history need of a tenant's runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, QueryResult


class Executor(Protocol):
    """`engine.Engine` is one."""

    async def execute(self, tenant_id: TenantId | str, operation: Operation) -> QueryResult: ...

    async def execute_batch(
        self,
        tenant_id: TenantId | str,
        operations: Sequence[Operation],
        *,
        atomic: bool = False,
    ) -> list[QueryResult | TenancyError]: ...
