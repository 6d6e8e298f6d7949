"""sqlalchemy-tenants: a role of PostgreSQL per tenant, which a session becomes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy_tenants.aio import PostgresManager

READ = text("select bal from users where id = :id")


class SqlalchemyTenants:
    """A session per operation, read only, so nothing is committed; a pool of ten."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._dsn = target["dsn"]["sat"].replace("postgresql://", "postgresql+asyncpg://")

    async def open(self) -> None:
        """Make the manager."""
        self._engine = create_async_engine(self._dsn, pool_size=10, max_overflow=0)
        self._manager = PostgresManager.from_engine(self._engine, schema_name="sa")

    async def read(self, tenant: int, row: int) -> int:
        """One operation."""
        async with self._manager.new_tenant_session(tenant, create_if_missing=False) as session:
            return int((await session.execute(READ, {"id": row})).scalar_one())

    async def close(self) -> None:
        """Let the connections go."""
        await self._engine.dispose()
