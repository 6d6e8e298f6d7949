"""The throw-away server that the other integration tests build on."""

from __future__ import annotations

import asyncpg
import pytest
from support.postgres import PostgresServer


async def test_the_server_answers_and_is_of_the_version_it_claims(postgres_server: PostgresServer):
    connection = await asyncpg.connect(postgres_server.admin_dsn)
    try:
        number = await connection.fetchval("select current_setting('server_version_num')::int")
    finally:
        await connection.close()

    assert number // 10_000 == postgres_server.major_version


async def test_the_server_asks_for_a_password(postgres_server: PostgresServer):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres_server.dsn(password="wrong"))
