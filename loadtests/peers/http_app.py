"""What a team writes with FastAPI: by hand on asyncpg, and with fastapi-tenancy.

Served by one uvicorn worker: `uvicorn --factory peers.http_app:by_hand`. `PEERS_TARGET` has the
connection strings.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header

_TARGET: dict[str, Any] = json.loads(os.environ.get("PEERS_TARGET", "{}"))


def by_hand() -> FastAPI:
    """`acquire`, transaction, `set_config`, query: with a pool of ten."""
    import asyncpg

    from peers.by_hand import BIND, POOL, READ

    pools: list[asyncpg.Pool] = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        dsn = _TARGET["dsn"]["app"]
        async with asyncpg.create_pool(dsn, min_size=POOL, max_size=POOL) as pool:
            pools.append(pool)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/users/{row}")
    async def user(row: int, x_tenant_id: Annotated[str, Header()]) -> dict[str, int]:
        async with pools[0].acquire() as connection, connection.transaction():
            await connection.execute(BIND, _number(x_tenant_id))
            return {"bal": await connection.fetchval(READ, row)}

    @app.post("/users/batch")
    async def batch(
        ids: Annotated[list[int], Body(embed=True)], x_tenant_id: Annotated[str, Header()]
    ) -> dict[str, list[int]]:
        async with pools[0].acquire() as connection, connection.transaction():
            await connection.execute(BIND, _number(x_tenant_id))
            return {"bals": [await connection.fetchval(READ, row) for row in ids]}

    return app


def fastapi_tenancy() -> FastAPI:
    """Its middleware, its store in memory, its dependency."""
    from fastapi_tenancy import TenancyManager, TenancyMiddleware
    from fastapi_tenancy.dependencies import make_tenant_db_dependency
    from fastapi_tenancy.storage.memory import InMemoryTenantStore
    from sqlalchemy.ext.asyncio import AsyncSession

    from peers.fastapi_tenancy_peer import READ, config, tenants

    store = InMemoryTenantStore()
    manager = TenancyManager(config(_TARGET, _TARGET["isolation"]), store)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await manager.initialize()
        for tenant in tenants():
            await store.create(tenant)
        yield
        await manager.close()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(TenancyMiddleware, manager=manager)
    session_of_tenant = make_tenant_db_dependency(manager)

    async def user(row: int, db: AsyncSession = Depends(session_of_tenant)) -> dict[str, int]:  # noqa: B008
        return {"bal": (await db.execute(READ, {"id": row})).scalar_one()}

    # Its types are of this function: what FastAPI reads are names of the module.
    user.__annotations__ = {"row": int, "db": AsyncSession, "return": dict[str, int]}
    app.get("/users/{row}")(user)
    return app


def _number(name: str) -> str:
    return name.removeprefix("tenant-")
