"""A small schema of tenants, and tenants that use it."""

from __future__ import annotations

from typing import Any

from tenancy.data_isolation.core.identifiers import Region
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext, TenantType
from tenancy.data_isolation.engine.migration import Migration

SCHEMA = (
    Migration(
        number=1,
        name="orders",
        sql="create table orders (id bigint primary key, note text not null);",
    ),
)


async def make_tenants(
    engine: Any,
    *names: str,
    kind: TenantType = TenantType.STANDARD,
    level: IsolationLevel = IsolationLevel.ROW,
    region: Region | None = None,
) -> None:
    """Bring the schema everywhere and make tenants of those names."""
    await engine.fleet.register(SCHEMA)
    await engine.fleet.apply()
    for name in names:
        context = TenantContext(
            tenant_id=name, tenant_type=kind, isolation_level=level, region=region
        )
        await engine.create_tenant(context, level=level)
