"""What a tenant may take, by its type: one frozen object for each.

Every limit `<name>` of a type is a variable of its own, `TENANCY_<TYPE>_<NAME>`, as in
`TENANCY_FREE_STATEMENT_TIMEOUT_MS`. Settings of the same name that are not of a type
(`TENANCY_STATEMENT_TIMEOUT_MS`) are the runtime's ceilings: of the two the lower one holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tenancy.data_isolation.core.bounds import CONNECTIONS_MAX, bounds, not_a_number
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.types import TenantType

_MEBIBYTE: Final = 1024 * 1024
#: More than any ceiling: what the runtime allows holds.
_AS_THE_CEILING: Final = 1_000_000_000
_PREFIX: Final = "TENANCY_"


@dataclass(frozen=True, kw_only=True, slots=True)
class TierLimits:
    """The limits of one tenant. All are positive; how far they go is in `bounds`."""

    #: Time of one statement.
    statement_timeout_ms: int = _AS_THE_CEILING
    #: Result of one statement.
    result_rows_max: int = _AS_THE_CEILING
    result_bytes_max: int = _AS_THE_CEILING
    #: Results of one batch together.
    batch_result_bytes_max: int = _AS_THE_CEILING
    #: Memory of one sort or hash of a statement, before it goes to temporary files (work_mem).
    statement_memory_bytes: int = 8 * _MEBIBYTE
    #: Temporary files of one session, where the tenant has a login of its own (temp_file_limit).
    temp_file_bytes_max: int = 1024 * _MEBIBYTE
    #: Locks that one session holds or waits for.
    locks_max: int = 1_000
    #: Age of a transaction, and how long it may wait for its next statement.
    transaction_timeout_ms: int = 60_000
    idle_transaction_timeout_ms: int = 10_000
    #: Sessions on PostgreSQL.
    connections_max: int = CONNECTIONS_MAX
    #: Statements that take long (`TENANCY_LONG_STATEMENT_MS`), at the same time.
    long_statements_max: int = 2
    #: Operations per second, how many may come at once after a pause, and how many are under way.
    operations_per_s: float = 5_000
    operations_burst: int = 10_000
    operations_in_flight_max: int = 2_000

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check(item.name, getattr(self, item.name))

    def under(self, ceilings: Mapping[str, float]) -> TierLimits:
        """These limits, none of them above the ceiling of its name."""
        lower = {
            name: ceiling for name, ceiling in ceilings.items() if getattr(self, name) > ceiling
        }
        return dataclasses.replace(self, **lower) if lower else self  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class TierTable:
    """The limits of every type of tenant."""

    free: TierLimits = field(
        default_factory=lambda: TierLimits(
            statement_timeout_ms=10_000,
            result_rows_max=5_000,
            result_bytes_max=2 * _MEBIBYTE,
            batch_result_bytes_max=2 * _MEBIBYTE,
            statement_memory_bytes=4 * _MEBIBYTE,
            temp_file_bytes_max=128 * _MEBIBYTE,
            locks_max=500,
            transaction_timeout_ms=20_000,
            idle_transaction_timeout_ms=5_000,
            connections_max=4,
            long_statements_max=1,
            operations_per_s=500,
            operations_burst=1_000,
            operations_in_flight_max=200,
        )
    )
    standard: TierLimits = field(default_factory=TierLimits)
    premium: TierLimits = field(
        default_factory=lambda: TierLimits(
            statement_memory_bytes=16 * _MEBIBYTE,
            temp_file_bytes_max=4 * 1024 * _MEBIBYTE,
            locks_max=2_000,
            long_statements_max=4,
            operations_per_s=20_000,
            operations_burst=40_000,
            operations_in_flight_max=5_000,
        )
    )
    enterprise: TierLimits = field(
        default_factory=lambda: TierLimits(
            statement_memory_bytes=32 * _MEBIBYTE,
            temp_file_bytes_max=16 * 1024 * _MEBIBYTE,
            locks_max=4_000,
            long_statements_max=8,
            operations_per_s=100_000,
            operations_burst=200_000,
            operations_in_flight_max=10_000,
        )
    )

    def of(self, tenant_type: TenantType) -> TierLimits:
        """The limits of a type of tenant."""
        found: TierLimits = getattr(self, tenant_type.value)
        return found

    @property
    def widest(self) -> TierLimits:
        """For whoever's type is not known: of each limit the largest."""
        rows = [self.of(kind) for kind in TenantType]
        names = [item.name for item in dataclasses.fields(TierLimits)]
        return TierLimits(**{name: max(getattr(row, name) for row in rows) for name in names})

    def under(self, ceilings: Mapping[str, float]) -> TierTable:
        """The table with no limit above the ceiling of its name."""
        return TierTable(**{kind.value: self.of(kind).under(ceilings) for kind in TenantType})

    def plain(self) -> dict[str, dict[str, float]]:
        """The table as mappings of numbers, which `of_plain` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def of_plain(cls, table: Mapping[str, Mapping[str, float]]) -> TierTable:
        """A table of mappings; what they leave out is as it is by default."""
        usual = cls()
        try:
            rows = {
                name: dataclasses.replace(getattr(usual, name), **row)
                for name, row in table.items()
            }
            return cls(**rows)
        except (TypeError, AttributeError):
            raise SettingError(
                f"limits are given for {', '.join(TenantType)} and are called "
                + ", ".join(item.name for item in dataclasses.fields(TierLimits))
            ) from None

    def changed(self, variables: Mapping[str, str]) -> TierTable:
        """The table with the limits that variables set. Raises `SettingError`, naming one."""
        rows: dict[str, dict[str, Any]] = {}
        for variable, text in variables.items():
            kind, name = _VARIABLES[variable]
            rows.setdefault(kind, {})[name] = _parse(variable, name, text)
        return dataclasses.replace(
            self,
            **{
                kind: dataclasses.replace(self.of(TenantType(kind)), **row)
                for kind, row in rows.items()
            },
        )


def limit_variable(tenant_type: TenantType, name: str) -> str:
    """The variable that sets a limit of a type."""
    return f"{_PREFIX}{tenant_type}_{name}".upper()


def _parse(variable: str, name: str, text: str) -> float:
    try:
        value = float(text) if name == "operations_per_s" else int(text)
    except ValueError:
        raise not_a_number(variable, text) from None
    _check(name, value, variable)
    return value


def _check(name: str, value: Any, variable: str | None = None) -> None:
    """Raise `SettingError` for what is no limit."""
    told = variable or name
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{told} is {value!r}; a number is needed")
    if name != "operations_per_s" and not isinstance(value, int):
        raise SettingError(f"{told} is {value!r}; a whole number is needed")
    bounds(name).check(told, value)


_VARIABLES: Final[dict[str, tuple[str, str]]] = {
    limit_variable(kind, item.name): (kind.value, item.name)
    for kind in TenantType
    for item in dataclasses.fields(TierLimits)
}
#: The variables that set limits of types.
LIMIT_VARIABLES: Final = frozenset(_VARIABLES)
