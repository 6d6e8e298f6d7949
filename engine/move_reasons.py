"""What an operator reads of what stands in the way of a move."""

from __future__ import annotations

import asyncpg

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.move import Move


def told_of(move: Move, error: Exception) -> str:
    """What an operator reads of an error of that move, and can do about it."""
    if not isinstance(error, asyncpg.DiskFullError):
        return told(error)
    return (
        f"the disk of a server is full ({error.sqlstate}: {error.args[0]}); free some space on "
        f"{move.target.server}, which needs as much as the tenant has, or on {move.source.server} "
        "where that is the one that is full; then start the move again"
    )


def told(error: Exception) -> str:
    """What an operator reads of an error."""
    if isinstance(error, TenancyError):
        return error.detail
    if isinstance(error, asyncpg.PostgresError):
        return f"PostgreSQL refused a step of the move ({error.sqlstate}): {error}"
    if isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError):
        return "the connection to a server of the move broke, or gave no answer in time"
    return f"the runtime failed ({type(error).__name__}); its log has the details"
