"""The names of settings, as variables of the environment, and what a misspelt one may mean."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from tenancy.data_isolation.core.errors import SettingError

#: What all of them begin with.
PREFIX: Final = "TENANCY_"
#: Settings that a misspelt one is told it may have been meant for.
_NEAR_MAX: Final = 3


def variable_of(name: str) -> str:
    """The variable that a field of the settings is set by."""
    return PREFIX + name.upper()


def unknown_variable(variable: str, names: Sequence[str]) -> SettingError:
    """The error for a variable that is none of `names`."""
    # What all begin with would make everything look alike.
    known = [name.removeprefix(PREFIX) for name in names]
    near = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=_NEAR_MAX)
    *others, last = [PREFIX + name for name in near] or [""]
    named = f"{', '.join(others)} or {last}" if others else last
    meant = f"did you mean {named}? " if named else ""
    return SettingError(f"{variable[:100]} is not a setting; {meant}`tenancy settings` lists all")
