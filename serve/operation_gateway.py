"""The way to tenants as the orchestrator gets it behind HTTP.

It differs from the gateway below in two things: a request's options (deadline, idempotency key) go
with the operation that the orchestrator makes of it, and no tenant is made on first use, since over
HTTP a tenant that does not exist is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tenancy.data_isolation.core.errors import SetupError, TenancyError, TenantSuspendedError
from tenancy.data_isolation.core.identifiers import ServerName, TenantId
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
)
from tenancy.data_isolation.serve.request_options import RequestOptions
from tenancy.data_isolation.strategies.base import TenantGateway
from tenancy.data_isolation.strategies.performance_optimized_strategy import ResultKeeping

_options: ContextVar[RequestOptions] = ContextVar("tenancy_request_options")


@contextmanager
def following(options: RequestOptions) -> Iterator[None]:
    """Give these options to the operations that this task makes meanwhile."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


class OperationGateway:
    """A `TenantGateway` over another one, which it does not close."""

    def __init__(self, gateway: TenantGateway) -> None:
        self._gateway = gateway

    async def create_tenant(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        """Make none: say that there is none, or that it is not ready."""
        tenant = await self._gateway.tenant(TenantId(context.tenant_id))
        raise TenantSuspendedError(f"the tenant is {tenant.status}; it takes no operations now")

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """Make none, as `create_tenant`."""
        found: list[Tenant | TenancyError] = []
        for context in contexts:
            try:
                found.append(await self.create_tenant(context, level=IsolationLevel.ROW))
            except TenancyError as error:
                found.append(error)
        return found

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant of that name, or `TenantNotFoundError`."""
        return await self._gateway.tenant(tenant_id)

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """Tenants in the order of their names, from the one behind `after`."""
        return await self._gateway.tenants(after=after, limit=limit)

    async def suspend_tenant(self, tenant_id: TenantId) -> Tenant:
        """Refuse the tenant's operations from now on."""
        return await self._gateway.suspend_tenant(tenant_id)

    async def resume_tenant(self, tenant_id: TenantId) -> Tenant:
        """Take the tenant's operations again."""
        return await self._gateway.resume_tenant(tenant_id)

    async def delete_tenant(self, tenant_id: TenantId) -> None:
        """Erase the tenant's data, then its name."""
        await self._gateway.delete_tenant(tenant_id)

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        """Run one operation, with the options of the request that it is of."""
        options = _options.get(None)
        if options is not None:
            operation = dataclasses.replace(
                operation,
                deadline_s=options.deadline_s,
                idempotency_key=options.idempotency_key,
            )
        return await self._gateway.execute(tenant_id, operation)

    async def execute_batch(
        self, tenant_id: TenantId, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        """Run several; `atomic` = all or none."""
        return await self._gateway.execute_batch(tenant_id, operations, atomic=atomic)

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """The statement that a named operation stands for; `anew`: look at the tables now."""
        return await self._gateway.resolve_operation(name, data, anew=anew)

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """How many tenants each strategy that places data holds."""
        return await self._gateway.strategy_counts()

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        """How much data the tenant has, counted until `rows_max` rows."""
        return await self._gateway.tenant_size(tenant_id, rows_max=rows_max)

    async def keep_results(self, tenant_id: TenantId, wanted: bool) -> Tenant:
        """Keep the tenant's results from now on, or do not."""
        if not isinstance(self._gateway, ResultKeeping):
            raise SetupError(f"{type(self._gateway).__name__} keeps no results")
        return await self._gateway.keep_results(tenant_id, wanted)

    async def cache_statistics(self) -> Mapping[str, int]:
        """What keeping results came to."""
        if not isinstance(self._gateway, ResultKeeping):
            return {}
        return await self._gateway.cache_statistics()

    async def close(self) -> None:
        """Nothing: the gateway below belongs to someone else."""
