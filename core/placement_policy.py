"""What the orchestrator's options make of the rules: fallback, compliance, tenants with data.

Pure. `closed` tells the strategies that take no new tenants now, and for how many seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from tenancy.data_isolation.core.choice import Choice, choose
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.rules import (
    Facts,
    RuleBook,
    StrategyName,
    placed_by,
    strength,
)
from tenancy.data_isolation.core.types import IsolationLevel, Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPolicy:
    """Rules, the strategies that exist, and the options that bear on the choice."""

    book: RuleBook
    available: tuple[StrategyName, ...]
    fallback: StrategyName | None = None
    compliance_validation: bool = True

    def for_new(
        self, tenant_id: TenantId, facts: Facts, closed: Mapping[StrategyName, float]
    ) -> Choice:
        """The choice for a tenant that has no data yet.

        Raises `ConflictError` when its wish contradicts its compliance, `InvalidInputError` for a
        regime that no rule knows, and `UnavailableError` when the strategy takes no tenants now and
        the fallback cannot take its place.
        """
        self._check_compliance(tenant_id, facts)
        choice = self._choose(facts)
        shut = _shut(choice, closed)
        if shut is None:
            return choice
        if self.fallback is not None:
            with suppress(ConflictError):
                second = self._choose(facts, closed)
                if second.strategy == self.fallback and _shut(second, closed) is None:
                    return dataclasses.replace(second, instead_of=choice.strategy)
        helpless = (
            f"the fallback {self.fallback} cannot take this tenant"
            if self.fallback
            else "no fallback_strategy is set"
        )
        raise UnavailableError(
            f"{shut} takes no new tenants now, because its circuit breaker is open, and {helpless}",
            retry_after_s=closed[shut],
        )

    def for_placed(self, tenant_id: TenantId, facts: Facts, placement: Placement) -> Choice:
        """The choice for a tenant that has data: the strategy that holds it.

        The reasons tell what the rules would give a new one. Raises like `check_placed`.
        """
        self.check_placed(tenant_id, facts, placement.level)
        reasons = [where_it_is(tenant_id, placement)]
        with suppress(ConflictError):
            fresh = self._choose(dataclasses.replace(facts, placement=None, wish=None))
            reasons += [f"The rules would give a new tenant like this {fresh.strategy}:"]
            reasons += fresh.reasons
        name = placed_by(placement)
        return Choice(
            strategy=name,
            level=placement.level,
            reasons=tuple(reasons),
            considered={name: "the tenant's data is here"},
        )

    def check_placed(self, tenant_id: TenantId, facts: Facts, level: IsolationLevel) -> None:
        """Raise `ConflictError` when a tenant's level is not what is wished or demanded."""
        if facts.wish is not None and facts.wish is not level:
            raise ConflictError(
                f"tenant {tenant_id} is at level {level} and {facts.wish} is asked for; leave "
                f"isolation_level out, set it to {level}, or move the tenant first"
            )
        if not self.compliance_validation or not facts.compliance:
            return
        demand = self.book.demand(facts)
        if demand is not None and strength(level) < strength(demand[0]):
            raise ConflictError(
                f"tenant {tenant_id} is at level {level}, and rule '{demand[1].name}' demands at "
                f"least {demand[0]} for its compliance; move it there, or set "
                "compliance_validation=False"
            )

    def _choose(self, facts: Facts, closed: Mapping[StrategyName, float] | None = None) -> Choice:
        return choose(
            self.book,
            facts,
            available=self.available,
            closed={
                name: f"its circuit breaker is open for {seconds:.0f} more seconds"
                for name, seconds in (closed or {}).items()
            },
            fallback=self.fallback,
            compliance_validation=self.compliance_validation,
        )

    def _check_compliance(self, tenant_id: TenantId, facts: Facts) -> None:
        """Refuse regimes that no rule knows, and a wish below what the known ones demand."""
        if not self.compliance_validation or not facts.compliance:
            return
        known = self.book.regimes()
        strange = [word for word in facts.compliance if word not in known]
        if strange:
            raise InvalidInputError(
                f"tenant {tenant_id}: no rule knows compliance {', '.join(strange)}; known are "
                f"{', '.join(known)}; add a rule or set compliance_validation=False"
            )
        demand = self.book.demand(facts)
        if facts.wish is not None and demand and strength(facts.wish) < strength(demand[0]):
            raise ConflictError(
                f"tenant {tenant_id} asks for level {facts.wish}, and rule '{demand[1].name}' "
                f"demands at least {demand[0]} for its compliance; ask for {demand[0]}, or set "
                "compliance_validation=False"
            )


def where_it_is(tenant_id: TenantId, placement: Placement) -> str:
    """The reason for the strategy of a tenant that has data."""
    apart = "" if placement.sensitive_schema is None else ", sensitive tables apart"
    return (
        f"Tenant {tenant_id} exists at level {placement.level}{apart}, and is used where its data "
        "is."
    )


def _shut(choice: Choice, closed: Mapping[StrategyName, float]) -> StrategyName | None:
    """The strategy of the choice that takes no new tenants, if any."""
    for name in (choice.strategy, choice.placed_by):
        if name in closed:
            return name
    return None
