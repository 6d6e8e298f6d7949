"""Tenants that are made and deleted at the same time do not get into each other's way."""

from __future__ import annotations

import asyncio

import pytest
from support.engines import TABLES, ask, opened
from support.install import Install

from tenancy.data_isolation.core.errors import TenantNotFoundError
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext

pytestmark = pytest.mark.migrated("0001_users", TABLES)


async def test_tenants_with_logins_of_their_own_come_and_go_together(install: Install):
    """The rights of all their logins on the shared database are one row of a catalog."""
    names = [f"t{n}" for n in range(16)]
    async with opened(install) as engine, install.connected() as admin:
        made = await asyncio.gather(
            *(
                engine.create_tenant(TenantContext(tenant_id=name), level=IsolationLevel.SCHEMA)
                for name in names
            )
        )
        results = await asyncio.gather(*(ask(engine, name, "select 1") for name in names))
        assert [result.rows for result in results] == [[[1]]] * len(names)

        await asyncio.gather(*(engine.delete_tenant(name) for name in names))
        with pytest.raises(TenantNotFoundError):
            await engine.tenant(names[0])
        roles = [tenant.placement.role for tenant in made if tenant.placement is not None]
        assert len(set(roles)) == len(names)
        assert not await admin.fetchval(
            "select exists (select from pg_roles where rolname = any ($1))", roles
        )
        rights = await admin.fetchval(
            "select datacl::text from pg_database where datname = $1", install.database
        )
        assert not any(role in rights for role in roles)
