"""Errors after which an operation is worth another look: nothing was done, and it may go well."""

from __future__ import annotations

from typing import Final

from tenancy.data_isolation.core.errors import PlacementChangedError, TenancyError
from tenancy.data_isolation.engine.driver_errors import INVALID_BINDING
from tenancy.data_isolation.engine.table_shape import UNKNOWN_NAMES

#: What can be wrong only with what this process knows: names of the schema, and the signing key.
_OUT_OF_DATE: Final = UNKNOWN_NAMES | {INVALID_BINDING}


def is_worth_another_look(error: BaseException | None) -> bool:
    """Whether nothing was done, and what this process knows may be out of date."""
    if not isinstance(error, TenancyError):
        return False
    return isinstance(error, PlacementChangedError) or error.sqlstate in _OUT_OF_DATE
