"""An open engine over a test's own installation, with tables and tenants."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.install import Install
from tenancy.data_isolation.core.identifiers import ServerName, parse_tenant_id
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    QueryResult,
    Tenant,
    TenantContext,
)
from tenancy.data_isolation.engine.engine import Engine

TABLES = """
create table users (
    id     integer primary key,
    email  text not null unique,
    plan   integer,
    joined timestamptz not null default now()
);
create table plans (id integer primary key, name text not null);
comment on table users is '@sensitive';
alter table users add foreign key (plan) references plans on delete cascade;
create table late (id integer primary key, user_id integer
    references users deferrable initially deferred);
"""


@asynccontextmanager
async def opened(
    install: Install, *, tables: bool = True, **settings: Any
) -> AsyncIterator[Engine]:
    """An engine, with other settings where they are given."""
    config = EngineConfig(
        servers=install.config.servers, settings=dataclasses.replace(install.settings, **settings)
    )
    async with await Engine.attach(config) as engine:
        if tables:
            await engine.apply_migration("0001_users", TABLES)
        yield engine


async def make_tenant(
    engine: Engine,
    name: str = "acme",
    level: IsolationLevel = IsolationLevel.ROW,
    users: int = 3,
    *,
    hybrid: bool = False,
    server: ServerName | None = None,
) -> Tenant:
    """A tenant with some users, whose e-mail addresses have the tenant's name in them."""
    context = TenantContext(tenant_id=name)
    tenant = await engine.create_tenant(context, level=level, hybrid=hybrid, server=server)
    if users:
        await ask(
            engine,
            name,
            "insert into users (id, email) select n, n || '@' || $1::text "
            "from generate_series(1, $2::integer) n",
            name,
            users,
        )
    return tenant


async def ask(engine: Engine, tenant: str, query: str, *params: Any, **options: Any) -> QueryResult:
    """Run one statement for a tenant."""
    return await engine.execute(tenant, Operation(query=query, params=params, **options))


async def known_as_quick(engine: Engine, tenant: str, query: str, *params: Any) -> None:
    """Run a statement until the engine has seen that it is quick, so that it travels with others.

    On a machine that is busy it may take longer than that the first time.
    """
    while not await may_travel(engine, tenant, query, *params):
        await engine.execute(tenant, Operation(query=query, params=params))


async def may_travel(engine: Engine, tenant: str, query: str, *params: Any) -> bool:
    """Whether a statement of a tenant would travel with those of others now."""
    route = await engine._routes.route(parse_tenant_id(tenant))
    executor = engine._executor
    operation = Operation(query=query, params=params)
    return executor.flights.may_travel(
        executor.ticket(route, operation, engine.shapes.at(route.key))
    )
