"""Sessions for a tenant that are ready before it comes.

A session that is opened, and the tables and statements that it has never seen, cost a tenant more
than the moment in which it changes its place. Nobody can work there for the tenant yet: what is
asked is refused, or says what the tenant is not shown, and is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import quote_identifier
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.overheard import Overheard
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.tenant_column import is_runtime_name
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: As many as a pool opens as soon as it has work for them.
_SESSIONS: Final = 4
#: Tables that one statement looks at.
_TABLES_MAX: Final = 50
#: How long it is listened to what the tenant asks for, before that is prepared at the new place.
_LISTENING_S: Final = 0.25


async def warm(
    executor: Executor, route: Route, schema: VisibleSchema, overheard: Overheard
) -> None:
    """Have sessions where `route` leads, which know the tenant's tables and what it asks for.

    Raises nothing.
    """
    await bind(executor, route, schema, _SESSIONS)
    await asyncio.sleep(_LISTENING_S)
    await learn(executor, route, overheard.take(route.tenant.tenant_no), _SESSIONS)


async def bind(executor: Executor, route: Route, schema: VisibleSchema, sessions: int) -> None:
    """Have so many sessions bound to the tenant, which know its tables. Raises nothing."""
    statement = _look(schema)
    await _tried(executor.ask(route, statement, ()) for _ in range(sessions))


async def learn(executor: Executor, route: Route, texts: Sequence[str], sessions: int) -> None:
    """Have these texts prepared and planned in so many sessions. Raises nothing."""
    if texts:
        await _tried(executor.learn(route, texts) for _ in range(sessions))


async def _tried(works: Iterable[Awaitable[Any]]) -> None:
    """Wait for all of them; what the tenant would be told of errors is told to nobody."""
    for answer in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, TenancyError):
            raise answer


def _look(schema: VisibleSchema) -> Statement:
    """A statement that reads at most one row of each table."""
    tables = [
        name
        for name, item in sorted(schema.relations.items())
        if not item.view and not is_runtime_name(name)
    ][:_TABLES_MAX]
    looks = [f"exists (select from {quote_identifier(name)})" for name in tables]
    text = f"select {', '.join(looks) or 'true'}"
    return Statement(
        source=text,
        text=text,
        kind=StatementKind.READ,
        fingerprint="",
        tables=frozenset(tables),
        functions=frozenset(),
        parameter_names=None,
        parameter_count=0,
        returns_rows=True,
        plain=True,
    )
