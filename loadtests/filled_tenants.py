"""Tenants of level row with rows in them, made from a file: what the load tests work on."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from own_runtime import OwnRuntime

SCHEMA = "create table users (id integer primary key, email text not null, bal bigint not null)"
#: $1 = the tenant's number, by which each balance can be told from others', and $2 = how many rows.
FILL = (
    "insert into users select n, 'user' || n || '@example.com', $1::bigint * 1000 + n "
    "from generate_series(1, $2::integer) n"
)
_AT_ONCE = 8


def tenant_name(number: int) -> str:
    """The tenant of that number."""
    return f"t{number:04}"


async def make_filled_tenants(
    runtime: OwnRuntime,
    tenants: int,
    rows: int,
    also: Callable[[httpx.AsyncClient, str], Awaitable[None]] | None = None,
) -> None:
    """The tenants, with so many rows each; `also` is done for each with the operator's client.

    Premium ones: enterprises would get actors of their own.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tenants.csv"
        names = "".join(f"{tenant_name(number)},premium,row\n" for number in range(tenants))
        file.write_text("tenant_id,tenant_type,isolation_level\n" + names)
        runtime.tenancy("tenant", "create", "--from", str(file))
    headers = {"Authorization": f"Bearer {runtime.key}"}
    turns = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(base_url=runtime.url, headers=headers, timeout=60) as client:
        body = {"name": "0001_users", "sql": SCHEMA}
        (await client.post("/v1/schema/migrations", json=body)).raise_for_status()

        async def fill(number: int) -> None:
            async with turns:
                path = f"/v1/tenants/{tenant_name(number)}/query"
                wish = {"query": FILL, "params": [number, rows]}
                (await client.post(path, json=wish)).raise_for_status()
                if also is not None:
                    await also(client, tenant_name(number))

        await asyncio.gather(*map(fill, range(tenants)))
