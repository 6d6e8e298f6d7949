"""A process that owns an embedded server, for tests that kill such a process.

Run as `python server_owner.py KIND MODE HOME [BIN]`: starts the server, says so in one line of
JSON, then, as MODE is

* `wait`: lives until its standard input ends, and then ends without stopping the server;
* `detach`: the same with a detached server;
* `write`: writes one row (one list item) after the other, and says each number when it is
  acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def write_rows(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table if not exists row_written (number int primary key)")
    number = 0
    while True:
        await connection.execute("insert into row_written values ($1)", number)
        say(number=number)
        number += 1


async def write_items(url: str) -> None:
    client = Redis.from_url(url)
    number = 0
    while True:
        await client.rpush("written", number)
        say(number=number)
        number += 1


async def main(kind: str, mode: str, home: str, binaries: str | None = None) -> None:
    settings = Settings(home=Path(home), postgres_bin=Path(binaries) if binaries else None)
    server: Any = {"postgres": EmbeddedPostgres, "redis": EmbeddedRedis}[kind](
        settings, detached=mode == "detach"
    )
    handle = await server.start()
    say(pid=handle.pid, port=handle.port)
    match mode, kind:
        case "write", "postgres":
            await write_rows(handle.dsn)
        case "write", _:
            await write_items(handle.url)
        case _:
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
