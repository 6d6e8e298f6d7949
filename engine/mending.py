"""Carries out the mends of findings.

Only what SQL mends and no person has to decide: a mend that removes data, or that has more to it
than SQL, is left. Statements run one by one as the admin role, in the database of the finding; one
that fails is told, and the others go on.
"""

from __future__ import annotations

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.login_roles import ensure_login_role
from tenancy.data_isolation.engine.password_audit import CHECK as PASSWORDS


def can_mend(finding: Finding) -> bool:
    """Whether `mend` would carry it out."""
    return not finding.by_hand and (bool(finding.statements) or finding.check == PASSWORDS)


async def mend(admin: AdminConnections, finding: Finding, *, key: MasterKey) -> str | None:
    """Mend one finding; why that failed, or None. Raises what the admin connections raise."""
    server = ServerName(finding.server)
    database = DatabaseName(finding.database) if finding.database else None
    async with admin.session(server, database) as connection:
        try:
            if finding.check == PASSWORDS:
                role = RoleName(finding.subject.removeprefix("role "))
                await ensure_login_role(connection, master_key=key, server=server, role=role)
            for statement in finding.statements:
                await connection.execute(statement)
        except asyncpg.PostgresError as error:
            return str(error)
        finally:
            if not connection.is_closed():
                await connection.execute("reset role")
    return None
