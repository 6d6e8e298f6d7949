"""The fence of a tenant in one database: open, close, drain.

`tenancy.tenant()` reads it on every statement, under a shared lock of the tenant. Whoever closes
the fence and then gets the exclusive lock has seen the last statement end.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from tenancy.data_isolation.core.errors import OverloadedError
from tenancy.data_isolation.core.identifiers import Epoch, TenantNo
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("provisioning.sql")


async def open_fence(connection: asyncpg.Connection, tenant_no: TenantNo, epoch: Epoch) -> None:
    """Let statements bound at `epoch` work here, and no others."""
    await connection.execute(_SQL.statement("open_fence"), tenant_no, epoch)


async def open_fences(connection: asyncpg.Connection, epochs: Mapping[TenantNo, Epoch]) -> None:
    """The same for many tenants."""
    await connection.execute(
        _SQL.statement("open_fences"), list(epochs.keys()), list(epochs.values())
    )


async def raise_fence(connection: asyncpg.Connection, tenant_no: TenantNo, epoch: Epoch) -> None:
    """Let only statements bound at `epoch` work here, if any work here at all."""
    await connection.execute(_SQL.statement("raise_fence"), tenant_no, epoch)


async def close_fence(connection: asyncpg.Connection, tenant_no: TenantNo, wait_ms: int) -> None:
    """Refuse every statement that starts from now on, and wait for those that are at work.

    Raises `OverloadedError` when one of them takes longer than `wait_ms`; the fence stays closed.
    """
    await connection.execute(_SQL.statement("close_fence"), tenant_no)
    await drain(connection, tenant_no, wait_ms)


async def drain(connection: asyncpg.Connection, tenant_no: TenantNo, wait_ms: int) -> None:
    """Wait until no statement of the tenant is at work that began before this call."""
    await connection.execute(_SQL.statement("set_lock_timeout"), str(wait_ms))
    try:
        await connection.execute(_SQL.statement("drain"), tenant_no)
    except asyncpg.LockNotAvailableError:
        raise OverloadedError(
            f"a statement of the tenant still runs after {wait_ms} ms; try again when it has ended",
            None,
            wait_ms / 1000,
        ) from None
    finally:
        if not connection.is_closed():
            await connection.execute(_SQL.statement("set_lock_timeout"), "0")


async def fence_epoch(connection: asyncpg.Connection, tenant_no: TenantNo) -> Epoch | None:
    """The epoch that the fence is at; None when there is no fence."""
    found = await connection.fetchval(_SQL.statement("fence_epoch"), tenant_no)
    return None if found is None else Epoch(found)


async def remove_fence(connection: asyncpg.Connection, tenant_no: TenantNo) -> None:
    """Forget the tenant in this database: nobody can work for it there any more."""
    await connection.execute(_SQL.statement("remove_fence"), tenant_no)
