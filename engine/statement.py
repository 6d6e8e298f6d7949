"""A tenant's statement after the guard has read it: what it is and how its parameters bind.

Rules this module keeps:

* A `Statement` is immutable and holds no parameter values, so it can be cached and shared.
* Parameters fit exactly or `ParameterError` says which one does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenancy.data_isolation.core.errors import ParameterError
from tenancy.data_isolation.core.types import StatementKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """One statement that tenants may run.

    `source` is the text as it came and `text` the one to run, with `$n` placeholders.
    `kind` is WRITE when the statement needs a transaction that may write.
    `fingerprint` is the same for statements that differ only in values (libpg_query's).
    `tables` are the relations that it names and `functions` the functions that it calls.
    `parameter_names` are the names behind `$1`, `$2`, ... when the source uses `:name`.
    `plain` says that it was proven to leave nothing behind in the session: it names only relations
    that run no code of the schema and calls only built-in functions of the allow-list.
    `repeatable` says that its result follows from its parameters and the rows of its tables, and
    `changes` are the tables that it may change, None = any (`repeatable`).
    """

    source: str
    text: str
    kind: StatementKind
    fingerprint: str
    tables: frozenset[str]
    functions: frozenset[str]
    parameter_names: tuple[str, ...] | None
    parameter_count: int
    returns_rows: bool
    plain: bool
    repeatable: bool = False
    changes: frozenset[str] | None = None

    def bind(
        self, params: Sequence[Any] | Mapping[str, Any] | None = (), *, allow_extra: bool = False
    ) -> tuple[Any, ...]:
        """The values for `$1`, `$2`, ... in their order.

        `params` is a sequence for `$n` placeholders and a mapping for `:name` placeholders; an
        empty one of either kind, or None, fits a statement without placeholders. `allow_extra` lets
        a mapping have keys that the statement does not use. Raises `ParameterError`.
        """
        if isinstance(params, Mapping):
            return self._bind_names(params, allow_extra)
        values = self._values(params)
        if self.parameter_names is not None:
            names = ", ".join(f":{name}" for name in self.parameter_names)
            raise ParameterError(
                f"the statement has named placeholders; give their values by name ({names})"
            )
        if len(values) != self.parameter_count:
            raise ParameterError(
                f"the statement has {_counted(self.parameter_count, 'placeholder')}, "
                f"but {_counted(len(values), 'value')} came"
            )
        return values

    @staticmethod
    def _values(params: object) -> tuple[Any, ...]:
        if params is None:
            return ()
        if isinstance(params, str | bytes | bytearray) or not isinstance(params, Sequence):
            raise ParameterError(
                "parameters are a list for $1, $2, ... or an object for :name placeholders, "
                f"not {type(params).__name__}"
            )
        return tuple(params)

    def _bind_names(self, params: Mapping[str, Any], allow_extra: bool) -> tuple[Any, ...]:
        names = self.parameter_names or ()
        if not names and self.parameter_count:
            raise ParameterError(
                f"the statement has {_counted(self.parameter_count, 'numbered placeholder')}; "
                "give the values as a list"
            )
        missing = [name for name in names if name not in params]
        if missing:
            raise ParameterError(f"no value came for {_shown(missing)}")
        if not allow_extra:
            extra = [str(name) for name in params if name not in names]
            if extra:
                raise ParameterError(f"the statement does not use {_shown(extra)}")
        return tuple(params[name] for name in names)


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _shown(names: list[str]) -> str:
    """Names for a message, which stays a line long."""
    some = [f":{name[:63]}" for name in names[:5]]
    return ", ".join(some) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
