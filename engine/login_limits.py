"""Limits that hang on a login: how many sessions, and how much in temporary files.

A tenant cannot change either: CONNECTION LIMIT takes a role that may make roles, and
`temp_file_limit` a superuser or a grant (manual, 20.4.2). An admin without those leaves the second
one as the server has it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import asyncpg

from tenancy.data_isolation.core.bounds import INT4_MAX
from tenancy.data_isolation.core.identifiers import RoleName
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.watch_rules import HANDOVER_FACTOR

_SQL = SqlFile("watchdog.sql")
#: PostgreSQL's spelling of "as many as the server has".
UNLIMITED: Final = -1
#: What is asked needs no lock that a tenant could hold.
_ASK_TIMEOUT_S: Final = 5.0
#: PostgreSQL counts in kB up to this.
_KB_MAX: Final = INT4_MAX


def login_connections_max(limits: TierLimits) -> int:
    """The CONNECTION LIMIT of a tenant's own login."""
    return limits.connections_max * HANDOVER_FACTOR


def temp_file_limit(limits: TierLimits) -> str:
    """The value of `temp_file_limit`, as the server spells it in `pg_db_role_setting`."""
    return f"{min(max(1, limits.temp_file_bytes_max // 1024), _KB_MAX)}kB"


def limit_texts(limits: TierLimits) -> frozenset[str]:
    """The limits of a tenant's own login, as a fingerprint (`drift`) has them."""
    return frozenset(
        {
            f"connections {login_connections_max(limits)}",
            f"temp_file_limit={temp_file_limit(limits)}",
        }
    )


async def connection_limit_text(connection: asyncpg.Connection, role: RoleName, most: int) -> str:
    """What lets the login have so many sessions, or `UNLIMITED`; those it has stay."""
    text: str = await connection.fetchval(
        _SQL.statement("set_connection_limit_text"), role, most, timeout=_ASK_TIMEOUT_S
    )
    return text


async def temp_file_limit_text(
    connection: asyncpg.Connection, role: RoleName, limits: TierLimits
) -> str:
    """What caps the temporary files of the login's sessions from now on, where the admin may."""
    text: str = await connection.fetchval(
        _SQL.statement("set_temp_file_limit_text"),
        role,
        temp_file_limit(limits),
        timeout=_ASK_TIMEOUT_S,
    )
    return text


async def limit_temp_files(
    connection: asyncpg.Connection, role: RoleName, limits: TierLimits
) -> None:
    """Cap the temporary files of the login's sessions from now on, where the admin may."""
    text = await temp_file_limit_text(connection, role, limits)
    with suppress(asyncpg.InsufficientPrivilegeError):
        await connection.execute(text)
