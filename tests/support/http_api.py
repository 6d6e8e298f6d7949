"""The HTTP interface in this process, over a real engine, for tests that speak HTTP to it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.install import Install
from tenancy.data_isolation.core import EngineConfig
from tenancy.data_isolation.engine.catalog_records import CredentialScope

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.engine import Engine
    from tenancy.data_isolation.serve.edge import Edge

_URL = "http://api.test"
USERS = (
    "create table users (id bigint primary key, email text not null unique, "
    "amount numeric, about jsonb)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpApi:
    """The application, its engine, and clients for it."""

    app: Edge
    engine: Engine
    admin: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    _stack: AsyncExitStack

    async def client(self, credential: str | None, **options: Any) -> httpx.AsyncClient:
        """A client that sends this credential."""
        return await self._stack.enter_async_context(_client(self.app, credential, **options))

    async def tenant(self, tenant_id: str, level: str | None = None) -> httpx.AsyncClient:
        """Make a tenant, and a client with a key of its own."""
        body = {"tenant_id": tenant_id} | ({"isolation_level": level} if level else {})
        made = await self.admin.post("/v1/tenants", json=body)
        assert made.status_code == 201, made.text
        return await self.client(await self.key(tenant_id))

    async def key(self, tenant_id: str) -> str:
        """A fresh API key of a tenant."""
        tenant = await self.engine.tenant(tenant_id)
        key = await self.engine.credentials.create(
            CredentialScope.TENANT, tenant_no=tenant.tenant_no
        )
        return key.text

    async def migrate(self, sql: str = USERS, name: str = "users") -> None:
        """Give all tenants a table."""
        done = await self.admin.post("/v1/schema/migrations", json={"name": name, "sql": sql})
        assert done.status_code == 201, done.text


MakeApi = Callable[..., Awaitable[HttpApi]]


@asynccontextmanager
async def api_over(engine: Engine) -> AsyncIterator[HttpApi]:
    """The interface over an engine that is open."""
    # Imported late, as below: most tests do without, and it takes a second.
    from tenancy.data_isolation.serve.api import create_api
    from tenancy.data_isolation.serve.composition import open_services

    async with AsyncExitStack() as stack:
        app = create_api(await open_services(engine, engine, stack))
        key = await engine.credentials.create(CredentialScope.ADMIN)
        yield HttpApi(
            app=app,
            engine=engine,
            admin=await stack.enter_async_context(_client(app, key.text)),
            anonymous=await stack.enter_async_context(_client(app, None)),
            _stack=stack,
        )


@pytest.fixture
async def make_api(install: Install) -> AsyncIterator[MakeApi]:
    """Opens the interface with settings of the test's choice; closed after the test."""
    from tenancy.data_isolation.engine.engine import Engine

    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> HttpApi:
            changed = dataclasses.replace(install.settings, **settings)
            config = EngineConfig(servers=install.config.servers, settings=changed)
            engine = await Engine.attach(config)
            stack.push_async_callback(engine.close)
            return await stack.enter_async_context(api_over(engine))

        yield make


@pytest.fixture
async def api(make_api: MakeApi) -> HttpApi:
    """The interface with the test's own installation."""
    return await make_api()


def _client(app: Edge, credential: str | None, **options: Any) -> httpx.AsyncClient:
    headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, raise_app_exceptions=False),
        base_url=_URL,
        headers=headers,
        **options,
    )
