"""The function that runs SQL of users' migrations, `tenancy.run`.

It is SECURITY DEFINER to work as the owner, so it belongs to the owner, alone in the schema of the
keeper. What a migration calls can therefore alter it, drop it or give it away, and must not get
far: each call looks at it first (sql/namespace.sql, `run`), and each transaction at its end.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import SchemaRefusedError
from tenancy.data_isolation.engine.installed_functions import release_functions
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("namespace.sql")
_BODY: Final = release_functions((("keeper.sql", "keeper_4"),))["tenancy.run"].body


async def check_runner(connection: asyncpg.Connection) -> None:
    """Raise `SchemaRefusedError` unless the function is as the release made it."""
    if not await connection.fetchval(_SQL.statement("runner_is_ours"), _BODY):
        raise SchemaRefusedError(
            "function tenancy.run(text) is not as the runtime made it. If the migration did that, "
            "nothing was changed; otherwise `tenancy doctor --mend` puts it back"
        )
