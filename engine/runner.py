"""The function that runs SQL of users' migrations, `tenancy.run`.

It is SECURITY DEFINER to work as the owner, so it belongs to the owner, alone in the schema of the
keeper. What a migration calls can therefore alter it, drop it or give it away, and must not get
far: each call looks at it first (sql/namespace.sql, `run`), and each transaction at its end.

The runtime's own tables in a users' schema belong to the owner as well. What they call when they
are read or written can have been altered, so that happens inside the function too (`ask`).
"""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.errors import SchemaError, SchemaRefusedError
from tenancy.data_isolation.engine.installed_functions import release_functions
from tenancy.data_isolation.engine.pinning import pinned
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("namespace.sql")
#: The column of `ask` that has the answer.
_ANSWER: Final = 2
_BODY: Final = release_functions((("keeper.sql", "keeper_4"),))["tenancy.run"].body


async def ask(connection: asyncpg.Connection, statement: str, *values: Any) -> list[dict[str, Any]]:
    """The rows that a statement of ours answers with; it works as the owner and cannot change that.

    Raises `SchemaError` when something in the schema has spoilt the answer.
    """
    answer = await connection.fetchval(
        _SQL.statement("ask"), statement, json.dumps(values), column=_ANSWER
    )
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise SchemaError(
            "a table of the runtime in the schema gives no answer; `tenancy doctor` says what was "
            "changed there"
        )
    return found


async def ask_query(connection: asyncpg.Connection, query: str) -> list[dict[str, Any]]:
    """The rows of a query that reads users' tables; otherwise as `ask`."""
    return await ask(connection, answered(f"with answer as ({query})"))


def answered(parts: str) -> str:
    """A statement whose WITH part `answer` is the answer, as `ask` wants it."""
    text = "(select coalesce(jsonb_agg(to_jsonb(a)), '[]')::text from answer as a)"
    return pinned(f"{parts} select set_config('tenancy.answer', {text}, true)")


async def leave_owner(connection: asyncpg.Connection) -> None:
    """Go on as the admin, to the end of the transaction; otherwise as `check_runner`."""
    row = await connection.fetchrow(_SQL.statement("leave_owner"), _BODY)
    _check(is_ours=row is not None and row["is_ours"])


async def check_runner(connection: asyncpg.Connection) -> None:
    """Raise `SchemaRefusedError` unless the function is as the release made it."""
    _check(is_ours=await connection.fetchval(_SQL.statement("runner_is_ours"), _BODY))


def _check(*, is_ours: bool) -> None:
    if not is_ours:
        raise SchemaRefusedError(
            "function tenancy.run(text) is not as the runtime made it. If the migration did that, "
            "nothing was changed; otherwise `tenancy doctor --mend` puts it back"
        )
