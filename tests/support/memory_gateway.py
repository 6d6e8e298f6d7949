"""A `TenantGateway` that keeps tenants in memory, for tests of what stands above the engine.

It has no data: every operation answers with its own text. `failures` are raised, one per call, by
the method they are filed under; `gate` holds back whoever it is set for.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tenancy.data_isolation.core import (
    Column,
    IsolationLevel,
    Operation,
    Placement,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
    TenantStatus,
)
from tenancy.data_isolation.core.errors import (
    TenancyError,
    TenantExistsError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    SchemaName,
    ServerName,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.core.rules import StrategyName, placed_by


class MemoryGateway:
    def __init__(self) -> None:
        self.known: dict[TenantId, Tenant] = {}
        self.calls: Counter[str] = Counter()
        self.creations: list[dict[str, Any]] = []
        self.failures: dict[str, deque[BaseException]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.sizes: dict[TenantId, TenantSize] = {}
        self.closed = 0

    def fail(self, method: str, *errors: BaseException) -> None:
        self.failures.setdefault(method, deque()).extend(errors)

    def hold(self, method: str) -> asyncio.Event:
        """Calls of the method wait until the event that this returns is set."""
        self.gates[method] = asyncio.Event()
        return self.gates[method]

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        found: list[Tenant | TenancyError] = []
        for context in contexts:
            try:
                found.append(
                    await self.create_tenant(context, level=IsolationLevel.ROW, server=server)
                )
            except TenancyError as error:
                found.append(error)
        return found

    async def create_tenant(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        await self._called("create_tenant")
        tenant_id = TenantId(context.tenant_id)
        if tenant_id in self.known:
            raise TenantExistsError
        self.creations.append(
            {"level": level, "server": server, "prefix": database_prefix, "hybrid": hybrid}
        )
        self.known[tenant_id] = tenant(tenant_id, level, context, hybrid=hybrid)
        return self.known[tenant_id]

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        await self._called("tenant")
        return self._find(tenant_id)

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        names = sorted(name for name in self.known if after is None or name > after)
        return [self.known[name] for name in names[:limit]]

    async def suspend_tenant(self, tenant_id: TenantId) -> Tenant:
        self.known[tenant_id] = replace(self._find(tenant_id), status=TenantStatus.SUSPENDED)
        return self.known[tenant_id]

    async def resume_tenant(self, tenant_id: TenantId) -> Tenant:
        self.known[tenant_id] = replace(self._find(tenant_id), status=TenantStatus.ACTIVE)
        return self.known[tenant_id]

    async def delete_tenant(self, tenant_id: TenantId) -> None:
        self._find(tenant_id)
        del self.known[tenant_id]

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        await self._called("execute")
        if self._find(tenant_id).status is not TenantStatus.ACTIVE:
            raise TenantSuspendedError
        return QueryResult(
            columns=(Column(name="query", type="text"),), rows=[[operation.query]], row_count=1
        )

    async def execute_batch(
        self, tenant_id: TenantId, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        return [await self.execute(tenant_id, operation) for operation in operations]

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        await self._called("resolve_operation")
        return Operation(query=data.get("query", name), params=data.get("params", ()))

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        await self._called("strategy_counts")
        placements = [item.placement for item in self.known.values()]
        return Counter(placed_by(item) for item in placements if item is not None)

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        await self._called("tenant_size")
        self._find(tenant_id)
        return self.sizes.get(tenant_id, TenantSize(rows=0, bytes=0, complete=True))

    async def close(self) -> None:
        self.closed += 1

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        if method in self.gates:
            await self.gates[method].wait()
        if self.failures.get(method):
            raise self.failures[method].popleft()

    def _find(self, tenant_id: TenantId) -> Tenant:
        if tenant_id not in self.known:
            raise TenantNotFoundError(f"there is no tenant {tenant_id}")
        return self.known[tenant_id]


def tenant(
    tenant_id: TenantId,
    level: IsolationLevel,
    context: TenantContext | None = None,
    *,
    hybrid: bool = False,
) -> Tenant:
    """A tenant that is active at a level."""
    context = context or TenantContext(tenant_id=tenant_id)
    return Tenant(
        tenant_id=tenant_id,
        tenant_no=TenantNo(1),
        tenant_type=context.tenant_type,
        status=TenantStatus.ACTIVE,
        region=None,
        compliance=tuple(context.compliance),
        placement=Placement(
            level=level,
            server=ServerName("main"),
            database=DatabaseName("tenancy"),
            schema=SchemaName("app"),
            role=RoleName("tenancy_rows"),
            epoch=Epoch(1),
            sensitive_schema=SchemaName("t_own") if hybrid else None,
        ),
    )
