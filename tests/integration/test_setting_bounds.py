"""The bounds of settings that are PostgreSQL's are those of the server itself."""

from __future__ import annotations

import asyncpg
import pytest
from support.postgres import PostgresServer

from tenancy.data_isolation.core.bounds import bounds

_KILOBYTE = 1024
#: A setting of ours, the server's, and how many of ours make one of the server's.
_PAIRS = [
    ("statement_timeout_ms", "statement_timeout", 1),
    ("transaction_timeout_ms", "idle_in_transaction_session_timeout", 1),
    ("migration_lock_timeout_ms", "lock_timeout", 1),
    ("statement_memory_bytes", "work_mem", _KILOBYTE),
    ("temp_file_bytes_max", "temp_file_limit", _KILOBYTE),
    ("server_connections_max", "max_connections", 1),
    ("connections_max", "max_connections", 1),
]


@pytest.mark.parametrize(("ours", "theirs", "unit"), _PAIRS)
async def test_the_most_is_what_the_server_takes(
    postgres_server: PostgresServer, ours: str, theirs: str, unit: int
):
    connection = await asyncpg.connect(postgres_server.admin_dsn)
    try:
        most = int(
            await connection.fetchval("select max_val from pg_settings where name = $1", theirs)
        )
        assert bounds(ours).most == most * unit
        if theirs != "max_connections":
            await connection.execute(f"set {theirs} = {most}")
            with pytest.raises(asyncpg.InvalidParameterValueError):
                await connection.execute(f"set {theirs} = {most + 1}")
    finally:
        await connection.close()
