"""What placement rules are: the facts they look at, the matrix, and when a rule applies.

The rules themselves are data (`core.rules_file` reads them); `core.choice` chooses by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Placement,
    Tenant,
    TenantContext,
    TenantType,
)

_Word = TypeVar("_Word", bound=StrEnum)


class StrategyName(StrEnum):
    """Every strategy that the product has words for, built or not."""

    ROW_LEVEL = "row_level"
    SCHEMA_LEVEL = "schema_level"
    DATABASE_LEVEL = "database_level"
    HYBRID = "hybrid"
    AI_DRIVEN = "ai_driven"
    ANALYTICS_DRIVEN = "analytics_driven"
    PREDICTIVE_SCALING = "predictive_scaling"
    REAL_TIME_ADAPTIVE = "real_time_adaptive"
    PERFORMANCE_OPTIMIZED = "performance_optimized"
    BLOCKCHAIN_SECURITY = "blockchain_security"
    EDGE_COMPUTING = "edge_computing"
    EVENT_DRIVEN = "event_driven"


class Latency(StrEnum):
    """The matrix's words for latency, best first; `VARIABLE` promises nothing."""

    ULTRA_LOW = "ultra low"
    VERY_LOW = "very low"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    VARIABLE = "variable"


class Workload(StrEnum):
    """What a tenant's load is like, in the words of the matrix's use cases."""

    TRANSACTIONAL = "transactional"
    ANALYTICS = "analytics"
    AUDIT = "audit"
    GLOBAL = "global"
    STREAMING = "streaming"
    READ_MOSTLY = "read_mostly"
    DYNAMIC = "dynamic"
    UNKNOWN = "unknown"


class Budget(StrEnum):
    """What a tenant may cost."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


#: The strategy that places data at each level.
STRATEGY_OF_LEVEL = {
    IsolationLevel.ROW: StrategyName.ROW_LEVEL,
    IsolationLevel.SCHEMA: StrategyName.SCHEMA_LEVEL,
    IsolationLevel.DATABASE: StrategyName.DATABASE_LEVEL,
}
#: The level of every strategy that places data. A hybrid tenant is at level ROW, but for its tables
#: that are marked sensitive.
LEVEL_OF_STRATEGY = {
    **{strategy: level for level, strategy in STRATEGY_OF_LEVEL.items()},
    StrategyName.HYBRID: IsolationLevel.ROW,
}
_LEVELS = tuple(IsolationLevel)
_LATENCIES = tuple(Latency)
RATING_MAX = 5


def placed_by(placement: Placement) -> StrategyName:
    """The strategy that holds data where the placement says."""
    if placement.sensitive_schema is not None:
        return StrategyName.HYBRID
    return STRATEGY_OF_LEVEL[placement.level]


def distribution(counts: Mapping[StrategyName, int]) -> dict[str, int]:
    """Tenants per strategy that places data, those that have none included."""
    return {str(name): counts.get(name, 0) for name in LEVEL_OF_STRATEGY}


def strength(level: IsolationLevel) -> int:
    """How strongly a level keeps tenants apart: row 0, schema 1, database 2."""
    return _LEVELS.index(level)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a tenant when its strategy is chosen. None = not known."""

    tenant_type: TenantType = TenantType.STANDARD
    compliance: tuple[str, ...] = ()
    #: The level that the caller asked for.
    wish: IsolationLevel | None = None
    #: The level at which the tenant's data is now.
    placement: IsolationLevel | None = None
    size_bytes: float | None = None
    size_rows: float | None = None
    load_ops_s: float | None = None
    workload: Workload | None = None
    budget: Budget | None = None
    #: Smallest rating that the matrix must give for security (1 to 5).
    required_security: int | None = None
    #: Worst latency that the matrix may give.
    required_latency: Latency | None = None
    #: Databases of tenants that exist already, and hybrid tenants that there is still room for.
    databases: int | None = None
    hybrid_room: int | None = None
    #: Name of the operation that made the choice necessary.
    operation: str | None = None

    @classmethod
    def of(
        cls,
        context: TenantContext,
        *,
        tenant: Tenant | None = None,
        databases: int | None = None,
        hybrid_room: int | None = None,
        operation: str | None = None,
    ) -> Facts:
        """The facts that a caller's context tells, and the catalog when it knows the tenant.

        `metadata` may hold `size_bytes`, `size_rows`, `load_ops_s`, `workload`, `budget`,
        `required_security` and `required_latency`; its other keys are the user's own. Raises
        `InvalidInputError` when one of these has a value that means nothing.
        """
        told = context.metadata
        words = {*context.compliance, *(tenant.compliance if tenant else ())}
        placement = tenant.placement.level if tenant and tenant.placement else None
        return cls(
            tenant_type=tenant.tenant_type if tenant else context.tenant_type,
            compliance=tuple(sorted({regime(word) for word in words})),
            wish=context.isolation_level,
            placement=placement,
            size_bytes=_told_number(told, "size_bytes"),
            size_rows=_told_number(told, "size_rows"),
            load_ops_s=_told_number(told, "load_ops_s"),
            workload=_told_word(told, "workload", Workload),
            budget=_told_word(told, "budget", Budget),
            required_security=_told_rating(told, "required_security"),
            required_latency=_told_word(told, "required_latency", Latency),
            databases=databases,
            hybrid_room=hybrid_room,
            operation=operation,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A strategy's row of the matrix. `level` is set when it places data itself."""

    strategy: StrategyName
    use_case: str
    latency: Latency
    security: int
    scalability: int
    cost: int

    @property
    def level(self) -> IsolationLevel | None:
        """The level of a strategy that places data; None for one that works over any level."""
        return LEVEL_OF_STRATEGY.get(self.strategy)

    def promises(self, latency: Latency) -> bool:
        """Whether the matrix gives this strategy `latency` or better."""
        if self.latency is Latency.VARIABLE:
            return latency is Latency.VARIABLE
        return _LATENCIES.index(self.latency) <= _LATENCIES.index(latency)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule of the file."""

    name: str
    because: str
    words: Mapping[str, tuple[str, ...]]
    least: Mapping[str, float]
    most: Mapping[str, float]
    prefer: tuple[StrategyName, ...] = ()
    avoid: tuple[StrategyName, ...] = ()
    at_least: IsolationLevel | None = None
    security_at_least: int | None = None
    cost_at_least: int | None = None
    firm: bool = False

    def evidence(self, facts: Facts) -> list[str] | None:
        """The facts that make the rule apply, in words; None when it does not apply."""
        found = []
        for name, wanted in self.words.items():
            had = [word for word in _told(facts, name) if word in wanted]
            if not had:
                return None
            found.append(f"{name} {', '.join(had)}")
        for bounds, sign in ((self.least, ">="), (self.most, "<=")):
            for name, bound in bounds.items():
                value = getattr(facts, name)
                if value is None or (value < bound if sign == ">=" else value > bound):
                    return None
                found.append(f"{name} {value:,.15g} {sign} {bound:,.15g}")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleBook:
    """The matrix and the rules, checked. `source` is what an error or a reason calls it."""

    source: str
    profiles: Mapping[StrategyName, Profile]
    rules: tuple[Rule, ...]

    def regimes(self) -> tuple[str, ...]:
        """Every compliance regime that some rule knows."""
        return tuple(sorted({word for rule in self.rules for word in rule.words.get(_REGIMES, ())}))

    def demand(self, facts: Facts) -> tuple[IsolationLevel, Rule] | None:
        """The weakest level that the tenant's compliance allows, and the firm rule that says so."""
        found = [
            (rule.at_least, rule)
            for rule in self.rules
            if rule.firm
            and rule.at_least
            and _REGIMES in rule.words
            and rule.evidence(facts) is not None
        ]
        return max(found, key=lambda item: strength(item[0]), default=None)


_REGIMES = "compliance"


def regime(word: str) -> str:
    """A compliance regime in the spelling of the rules: `PCI-DSS` is `pci_dss`."""
    return re.sub(r"[\s-]+", "_", word.strip().lower())


def _told(facts: Facts, name: str) -> tuple[str, ...]:
    """The words that the facts hold under `name`: none, one, or several."""
    value = getattr(facts, name)
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _told_number(metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    # `not >= 0` also holds for a NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInputError(f"metadata {key} is {value!r}; a number, 0 or more, is needed")
    return value


def _told_rating(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= RATING_MAX:
        raise InvalidInputError(
            f"metadata {key} is {value!r}; a whole number from 1 to {RATING_MAX} is needed"
        )
    return value


def _told_word(metadata: Mapping[str, Any], key: str, kind: type[_Word]) -> _Word | None:
    value = metadata.get(key)
    if value is None:
        return None
    try:
        return kind(value.replace("_", " ") if kind is Latency else value)
    except (ValueError, AttributeError):
        known = ", ".join(kind)
        raise InvalidInputError(f"metadata {key} is {value!r}; it must be one of {known}") from None
