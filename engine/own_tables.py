"""The tables of the runtime's own: are they still plain tables?

The admin reads and writes them: whoever puts a view, a rule or a trigger in the place of one would
have his functions called by the admin. `tenancy_schema_version` belongs to the owner, as whom
users' migrations work, and so did the others in what an earlier release has set up. So this is
asked of the system catalogs before the admin touches one.
"""

from __future__ import annotations

import asyncpg

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.roles import findings_of
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("own_tables.sql")


async def own_table_findings(
    connection: asyncpg.Connection, *, server: ServerName
) -> list[Finding]:
    """What in the database of `connection` is not to be touched by the admin."""
    return await findings_of(connection, _SQL, "own_tables", server=server)
