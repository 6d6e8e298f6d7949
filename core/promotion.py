"""When a tenant has outgrown the shared tables. Pure.

A tenant that reaches a limit is proposed for another level. The proposal stands until the tenant
was seen below a share of every limit, so that one that goes up and down around a limit does not
come and go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.rules import STRATEGY_OF_LEVEL, StrategyName
from tenancy.data_isolation.core.types import IsolationLevel, TenantSize

#: A proposal is withdrawn below this share of every limit.
WITHDRAWN_SHARE: Final = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionLimits:
    """What a tenant may reach before another level is proposed for it."""

    level: IsolationLevel
    rows_min: int
    bytes_min: int
    load_ops_s_min: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What was measured of a tenant. `size` None = not measured yet."""

    load_ops_s: float = 0.0
    size: TenantSize | None = None
    #: When measuring the size was last tried, on the clock that measures intervals.
    tried_at_s: float | None = None

    def with_load(self, load_ops_s: float) -> Growth:
        """With a load that was measured anew."""
        return replace(self, load_ops_s=load_ops_s)

    def with_attempt(self, *, at_s: float) -> Growth:
        """With the time at which the size is measured anew, if it can be."""
        return replace(self, tried_at_s=at_s)

    def with_size(self, size: TenantSize) -> Growth:
        """With a size that was measured anew."""
        return replace(self, size=size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """A proposal to move a tenant to another level, with the reasons."""

    tenant_id: TenantId
    strategy: StrategyName
    level: IsolationLevel
    #: When it was first proposed (ISO 8601).
    since: str
    #: One sentence for each limit that was reached.
    reasons: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As metrics show it."""
        return {
            "tenant_id": self.tenant_id,
            "strategy": str(self.strategy),
            "isolation_level": str(self.level),
            "since": self.since,
            "reasons": list(self.reasons),
        }


def proposed(
    tenant_id: TenantId,
    growth: Growth,
    limits: PromotionLimits,
    *,
    before: Promotion | None,
    at: str,
) -> Promotion | None:
    """What is proposed for a tenant now; `before` is what was proposed last."""
    reasons = tuple(_reasons(growth, limits, share=1.0))
    if not reasons and before is not None and any(_reasons(growth, limits, share=WITHDRAWN_SHARE)):
        return before
    if not reasons:
        return None
    return Promotion(
        tenant_id=tenant_id,
        strategy=STRATEGY_OF_LEVEL[limits.level],
        level=limits.level,
        since=at if before is None else before.since,
        reasons=reasons,
    )


def _reasons(growth: Growth, limits: PromotionLimits, *, share: float) -> Iterator[str]:
    """The limits of which at least this share is reached, in words."""
    measured: list[tuple[str, float, float]] = [
        ("load_ops_s", growth.load_ops_s, limits.load_ops_s_min)
    ]
    if growth.size is not None:
        measured.append(("rows", growth.size.rows, limits.rows_min))
        measured.append(("bytes", growth.size.bytes, limits.bytes_min))
    for name, value, limit in measured:
        if value >= limit * share:
            yield f"{name} {value:,.15g} >= {limit:,.15g}"
