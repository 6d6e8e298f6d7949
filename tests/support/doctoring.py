"""The doctor over a test's own installation, on a server that others have theirs on as well."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import asyncpg

from support.install import Install
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.mending import can_mend, mend
from tenancy.data_isolation.engine.server_look import ServerLook


async def whole_look(install: Install) -> ServerLook:
    """Everything that is found; what changed a moment ago counts as settled."""
    settings = dataclasses.replace(install.settings, control_timeout_s=0.001)
    async with _admin(install) as admin:
        (look,) = await inspection_of(settings, admin).look(install.master_key)
    return look


async def broken(install: Install) -> list[Finding]:
    """What is broken or unsafe.

    Other tests' installations are on the server, and it is set to be fast: those are warnings.
    """
    findings = (await whole_look(install)).findings
    return [finding for finding in findings if finding.severity is not Severity.WARNING]


async def mend_all(install: Install, findings: Iterable[Finding]) -> list[str]:
    """Mend what the doctor mends by itself; what was the matter where that failed."""
    async with _admin(install) as admin:
        matters = [
            await mend(admin, finding, key=install.master_key)
            for finding in filter(can_mend, findings)
        ]
    return [matter for matter in matters if matter is not None]


async def as_told(install: Install, finding: Finding) -> None:
    """Run the SQL of a finding as a person would: as the admin, statement by statement."""
    connection = await asyncpg.connect(install.server.dsn(finding.database or install.database))
    try:
        for statement in finding.statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def _admin(install: Install) -> AsyncIterator[AdminConnections]:
    admin = AdminConnections(settings=install.settings, servers=(install.server_config,))
    try:
        yield admin
    finally:
        await admin.close()
