"""A session of the runtime's on the test server, and statements on it without guard and pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.postgres import PostgresServer
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, SchemaName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.driver_errors import ServerReport, statement_error
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.ticket import encode_parameters
from tenancy.data_isolation.engine.type_map import TypeMap
from tenancy.data_isolation.engine.wire import Section, Step


async def open_session(
    server: PostgresServer,
    *,
    database: str = "postgres",
    schema: str = "public",
    role: str | None = None,
    password: str | None = None,
    types: TypeMap | None = None,
    **settings: Any,
) -> Connection:
    """A session of the superuser, or of another role."""
    return await Connection.open(
        SessionKey(
            ServerName("main"),
            DatabaseName(database),
            SchemaName(schema),
            RoleName(role or server.user),
        ),
        server=ServerConfig(dsn=server.admin_dsn),
        password=password or server.password,
        types=types or TypeMap(),
        settings=Settings(**settings),
    )


async def ask(connection: Connection, text: str, *arguments: Any) -> QueryResult:
    """Run one statement."""
    description = await connection.describe(text)
    name = connection.prepared(text)
    assert name is not None
    encoded = encode_parameters(description, arguments)
    step = Step(description.decoders)
    section = await run(connection, [wire.bind(name, encoded), wire.execute()], step)
    if section.error is not None:
        raise statement_error(ServerReport.of_fields(section.error))
    if step.problem is not None:
        raise step.problem
    return QueryResult(columns=description.columns or (), rows=step.rows, row_count=len(step.rows))


async def run(connection: Connection, messages: Sequence[bytes], *steps: Step) -> Section:
    """Send messages as one section."""
    section = Section(list(messages), list(steps))
    await connection.perform([section])
    return section
