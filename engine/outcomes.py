"""What an operation's error, or a batch's outcomes, say about what was done and what is known."""

from __future__ import annotations

from typing import Final, TypeGuard

from tenancy.data_isolation.core.errors import (
    UNKNOWN_NAMES,
    PlacementChangedError,
    TenancyError,
)
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine.driver_errors import INVALID_BINDING, REFUSED_LOGINS

#: What can be wrong only with what this process knows: names of the schema, and the signing key.
_OUT_OF_DATE: Final = UNKNOWN_NAMES | {INVALID_BINDING}


def is_worth_another_look(error: BaseException | None) -> bool:
    """Whether nothing was done, and what this process knows may be out of date."""
    if not isinstance(error, TenancyError):
        return False
    return isinstance(error, PlacementChangedError) or error.sqlstate in _OUT_OF_DATE


def is_refused_login(outcome: QueryResult | TenancyError) -> TypeGuard[PlacementChangedError]:
    """Whether no session was there, so that nothing was done."""
    return isinstance(outcome, PlacementChangedError) and outcome.sqlstate in REFUSED_LOGINS


def has_reached_a_server(outcome: QueryResult | TenancyError) -> bool:
    """Whether a server had to do with it: what was refused before says nothing of any load."""
    return isinstance(outcome, QueryResult) or outcome.sqlstate is not None
