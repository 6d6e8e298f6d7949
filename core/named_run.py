"""A named operation for a tenant: what it stands for, and running that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tenancy.data_isolation.core.errors import UNKNOWN_NAMES, StatementError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, QueryResult


class Resolver(Protocol):
    """Who can say what a name stands for, and run it."""

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """The statement that a named operation stands for; `anew`: look at the tables now."""
        ...

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        """Run one operation."""
        ...


async def run_named(
    resolver: Resolver, tenant_id: TenantId, name: str, data: Mapping[str, Any]
) -> QueryResult:
    """Run a named operation for a tenant.

    Who resolves a name may not have heard of a migration that the tenant's tables have already.
    Then the statement names what is not there, has done nothing, and is made anew.
    """
    operation = await resolver.resolve_operation(name, data)
    try:
        return await resolver.execute(tenant_id, operation)
    except StatementError as error:
        if error.sqlstate not in UNKNOWN_NAMES:
            raise
        again = await resolver.resolve_operation(name, data, anew=True)
        if again == operation:
            raise
    return await resolver.execute(tenant_id, again)
