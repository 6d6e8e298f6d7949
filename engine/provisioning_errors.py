"""What goes wrong while a tenant is made or taken away, as errors of ours.

Every step of that can be repeated, so an interruption leaves nothing unknown: asking again ends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import (
    DiskFullError,
    OverloadedError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantId

_AGAIN: Final = "ask again: it goes on where it stopped"
#: What collides with another change of the catalogs and succeeds when it is tried again: internal
#: errors such as `tuple concurrently updated`, deadlocks, and objects that are in use.
_COLLISIONS: Final = (
    asyncpg.InternalServerError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.ObjectInUseError,
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateObjectError,
)
_GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    OSError,
)


@contextmanager
def provisioning(tenant_id: TenantId | str) -> Iterator[None]:
    """Let no error of the driver out of the work on a tenant within the block."""
    what = f"the work on tenant {tenant_id} was interrupted"
    try:
        yield
    except asyncpg.DiskFullError as error:
        raise DiskFullError(
            f"{what}, because the server's disk is full; free some space, then {_AGAIN}",
            error.sqlstate,
        ) from error
    except _COLLISIONS as error:
        raise OverloadedError(
            f"{what} by another change at the same time; {_AGAIN}", error.sqlstate, 1.0
        ) from error
    except _GONE as error:
        sqlstate = getattr(error, "sqlstate", None)
        raise ServerUnavailableError(
            f"{what}, because the PostgreSQL server went away; {_AGAIN}", sqlstate
        ) from error
    except asyncpg.PostgresError as error:
        raise TenancyError(f"{what}: {error}; mend that, then {_AGAIN}", error.sqlstate) from error
