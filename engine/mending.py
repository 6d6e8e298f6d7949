"""Carries out the mends of findings.

Only what SQL mends and no person has to decide: a mend that removes data, or that has more to it
than SQL, is left. A mend runs in the database of the finding and in one transaction, where
PostgreSQL allows that; one that fails is told, and the others go on.

The admin carries out what touches roles and rights. What can call functions of users is run by the
owner (`findings.by_owner`), and only after a look at the function that does so: whoever replaced it
by one that does not change the role would be the admin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.findings import OWNERS_CALL, RELOAD, Finding
from tenancy.data_isolation.engine.layout import OWNER_ROLE
from tenancy.data_isolation.engine.login_roles import ensure_login_role
from tenancy.data_isolation.engine.move_traces import STRANDED
from tenancy.data_isolation.engine.password_audit import CHECK as PASSWORDS
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("namespace.sql")
_MENDING_SQL = SqlFile("mending.sql")
#: What PostgreSQL refuses inside a transaction.
_ALONE: Final = ("alter system", "drop database", "drop subscription")

#: How often, and with what pause, a session is asked whether it has read its configuration again.
_RELOAD_LOOKS_MAX: Final = 250
_RELOAD_PAUSE_S: Final = 0.02


def can_mend(finding: Finding) -> bool:
    """Whether it is mended without a person: by `mend`, or what is stranded by `move_rescue`."""
    return not finding.by_hand and (
        bool(finding.statements) or finding.check in (PASSWORDS, STRANDED)
    )


async def mend(admin: AdminConnections, finding: Finding, *, key: MasterKey) -> str | None:
    """Mend one finding; why that failed, or None. Raises what the admin connections raise."""
    server = ServerName(finding.server)
    database = DatabaseName(finding.database) if finding.database else None
    async with admin.session(server, database) as connection:
        try:
            if finding.check == PASSWORDS:
                role = RoleName(finding.subject.removeprefix("role "))
                await ensure_login_role(connection, master_key=key, server=server, role=role)
            return await carry_out(connection, finding.statements)
        except asyncpg.PostgresError as error:
            return str(error)
        finally:
            if not connection.is_closed():
                await connection.execute("reset role")


async def carry_out(connection: asyncpg.Connection, statements: Sequence[str]) -> str | None:
    """Run the statements of a finding as the admin; why they were not run, or None."""
    alone = any(statement.startswith(_ALONE) for statement in statements)
    async with nullcontext() if alone else connection.transaction():
        as_owner = any(statement.startswith(OWNERS_CALL) for statement in statements)
        if as_owner and not await connection.fetchval(_SQL.statement("is_safe_runner"), OWNER_ROLE):
            return "function tenancy.run(text) does not work as the owner; mend it first"
        for statement in statements:
            if statement == RELOAD:
                await _reload(connection)
            else:
                await connection.execute(statement)
            if statement.startswith(OWNERS_CALL):
                # What users' code has set would hold for what the admin does next.
                await connection.execute("reset search_path")
    return None


async def _reload(connection: asyncpg.Connection) -> None:
    """Have the server read its configuration, and wait until sessions have it; a few seconds.

    `pg_reload_conf` only asks for it, and who looks at once would see the old settings.
    """
    query = _MENDING_SQL.statement("configuration_read_at")
    before = await connection.fetchval(query)
    await connection.execute(RELOAD)
    for _ in range(_RELOAD_LOOKS_MAX):
        if await connection.fetchval(query) != before:
            return
        await asyncio.sleep(_RELOAD_PAUSE_S)
