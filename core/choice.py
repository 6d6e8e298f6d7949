"""The choice of a tenant's strategy by rules, with its reasons. Pure: equal facts, equal choice.

The rules that apply are turned into an order of candidates (what they prefer, then the placement
strategies from the weakest level up) and into demands that a candidate must meet. Firm demands
always hold. The others are added one by one, in the order of the rules, and one that would leave no
candidate is set aside; the reasons say so. The first candidate that exists and meets what is left
is chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.rules import (
    LEVEL_OF_STRATEGY,
    STRATEGY_OF_LEVEL,
    Facts,
    Latency,
    Profile,
    Rule,
    RuleBook,
    StrategyName,
    strength,
)
from tenancy.data_isolation.core.types import IsolationLevel


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A strategy for a tenant, the level its data lives at, and why."""

    strategy: StrategyName
    level: IsolationLevel
    #: Sentences for people: what was chosen, which rules took part, what was passed over and why.
    reasons: tuple[str, ...]
    #: Names of the rules that applied, in the order of the file.
    rules: tuple[str, ...] = ()
    #: Every strategy that was looked at, and what was found.
    considered: Mapping[StrategyName, str]
    #: The strategy that was wanted, when the fallback stands in for it.
    instead_of: StrategyName | None = None

    @property
    def placed_by(self) -> StrategyName:
        """The strategy that makes the tenant: the chosen one, if it places data itself."""
        if self.strategy in LEVEL_OF_STRATEGY:
            return self.strategy
        return STRATEGY_OF_LEVEL[self.level]


def choose(
    book: RuleBook,
    facts: Facts,
    *,
    available: Collection[StrategyName],
    closed: Mapping[StrategyName, str] | None = None,
    fallback: StrategyName | None = None,
    compliance_validation: bool = True,
) -> Choice:
    """The strategy that `book` gives a tenant with these facts.

    `available` are the strategies that exist; `closed` are those of them that may not be used now,
    with the reason. `fallback` takes the place of a wanted one that is missing in either way.
    Without `compliance_validation`, the caller's wish counts for more than what the rules demand.
    Raises `ConflictError`, naming what contradicts what, when nothing fits.
    """
    applied = [
        (rule, evidence) for rule in book.rules if (evidence := rule.evidence(facts)) is not None
    ]
    search = _Search(
        book=book,
        missing=_missing(book, available, closed or {}),
        demands=_demands(facts, applied, compliance_validation=compliance_validation),
        fallback=fallback,
    )
    strategy, reasons, considered = search.first(_order(applied))
    profile = book.profiles[strategy]
    level = profile.level
    if level is None:
        below, level_reasons, _ = search.first(_placements(_order(applied)))
        level = book.profiles[below].level
        reasons += level_reasons
    assert level is not None  # noqa: S101 - a placement strategy has a level by definition.
    return Choice(
        strategy=strategy,
        level=level,
        reasons=tuple([_praise(profile), *(_applied_text(*item) for item in applied), *reasons]),
        rules=tuple(rule.name for rule, _ in applied),
        considered=considered,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demand:
    """Something that a candidate must meet. `text` completes "needs ..."."""

    text: str
    firm: bool
    levels: frozenset[IsolationLevel] | None = None
    security: int = 0
    cost: int = 0
    latency: Latency | None = None
    avoid: frozenset[StrategyName] = frozenset()

    def met_by(self, profile: Profile) -> bool:
        """Whether a strategy meets it. One that works over any level meets a demand for a level."""
        return (
            (self.levels is None or profile.level is None or profile.level in self.levels)
            and profile.security >= self.security
            and profile.cost >= self.cost
            and (self.latency is None or profile.promises(self.latency))
            and profile.strategy not in self.avoid
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """One search: candidates in order, demands set aside as far as is needed."""

    book: RuleBook
    missing: Mapping[StrategyName, str]
    demands: list[_Demand]
    fallback: StrategyName | None

    def first(
        self, order: list[StrategyName]
    ) -> tuple[StrategyName, list[str], dict[StrategyName, str]]:
        """The best candidate, the reasons, and what was found of each one."""
        kept = [item for item in self.demands if item.firm]
        found, considered = self._walk(order, kept)
        if found is None:
            listed = "; ".join(f"{name}: {verdict}" for name, verdict in considered.items())
            raise ConflictError(
                f"no strategy fits what is asked for and what the rules demand ({listed}); "
                "change the wish or the rules"
            )
        notes = []
        for soft in (item for item in self.demands if not item.firm):
            candidate, verdicts = self._walk(order, [*kept, soft])
            if candidate is None:
                notes.append(f"Set aside, because nothing that exists fits it too: {soft.text}.")
                continue
            kept.append(soft)
            found, considered = candidate, verdicts
        passed = [
            f"{name} was passed over: {verdict}."
            for name, verdict in considered.items()
            if not verdict.startswith(_FITS)
        ]
        return found, passed + notes, considered

    def _walk(
        self, order: list[StrategyName], demands: list[_Demand]
    ) -> tuple[StrategyName | None, dict[StrategyName, str]]:
        considered: dict[StrategyName, str] = {}
        chosen: StrategyName | None = None
        for name in self._with_fallback(order, demands):
            if name in considered:
                continue
            unmet = self._unmet(name, demands)
            if unmet or name in self.missing:
                considered[name] = unmet or self.missing[name]
            elif chosen is None:
                chosen = name
                considered[name] = f"{_FITS} and is chosen"
            else:
                considered[name] = f"{_FITS}, but {chosen} comes first"
        return chosen, considered

    def _with_fallback(
        self, order: list[StrategyName], demands: list[_Demand]
    ) -> Iterator[StrategyName]:
        """The candidates, with the fallback behind the first that fits but is missing."""
        for name in order:
            yield name
            if name in self.missing and self.fallback and not self._unmet(name, demands):
                yield self.fallback

    def _unmet(self, name: StrategyName, demands: list[_Demand]) -> str:
        """Which demands a strategy does not meet; empty when it meets all."""
        profile = self.book.profiles.get(name)
        if profile is None:
            return "it has no row in the matrix"
        texts = [item.text for item in demands if not item.met_by(profile)]
        return f"it does not meet: {', '.join(texts)}" if texts else ""


_FITS = "it fits"


def _missing(
    book: RuleBook, available: Collection[StrategyName], closed: Mapping[StrategyName, str]
) -> dict[StrategyName, str]:
    existing = ", ".join(available)
    absent = {
        name: f"it does not exist yet (there are {existing})"
        for name in book.profiles
        if name not in available
    }
    return absent | dict(closed)


def _order(applied: list[tuple[Rule, list[str]]]) -> list[StrategyName]:
    """What the rules prefer, in their order, then every placement strategy, weakest first."""
    wanted = [name for rule, _ in applied for name in rule.prefer]
    return list(dict.fromkeys([*wanted, *STRATEGY_OF_LEVEL.values()]))


def _placements(order: list[StrategyName]) -> list[StrategyName]:
    return [name for name in order if name in STRATEGY_OF_LEVEL.values()]


def _demands(
    facts: Facts, applied: list[tuple[Rule, list[str]]], *, compliance_validation: bool
) -> list[_Demand]:
    """Everything that a candidate must meet, the strongest demands first."""
    found = []
    if facts.placement is not None:
        found.append(
            _Demand(
                text=f"level {facts.placement}, where the tenant's data is",
                firm=True,
                levels=frozenset({facts.placement}),
            )
        )
    if facts.wish is not None:
        found.append(
            _Demand(
                text=f"level {facts.wish}, which the caller asked for",
                firm=True,
                levels=frozenset({facts.wish}),
            )
        )
    if facts.required_security is not None:
        found.append(
            _Demand(
                text=f"security {facts.required_security} or more, which the caller requires",
                firm=True,
                security=facts.required_security,
            )
        )
    binding = compliance_validation or facts.wish is None
    found += [item for rule, _ in applied if (item := _demand(rule, firm=rule.firm and binding))]
    if facts.required_latency is not None:
        found.append(
            _Demand(
                text=f"latency '{facts.required_latency}' or better, which the caller requires",
                firm=False,
                latency=facts.required_latency,
            )
        )
    return found


def _demand(rule: Rule, *, firm: bool) -> _Demand | None:
    """What a rule demands; None when it only prefers."""
    text = _deeds(rule, prefers=False)
    if not text:
        return None
    levels: Any = None
    if rule.at_least is not None:
        floor = strength(rule.at_least)
        levels = frozenset(level for level in IsolationLevel if strength(level) >= floor)
    return _Demand(
        text=f"{text} (rule '{rule.name}')",
        firm=firm,
        levels=levels,
        security=rule.security_at_least or 0,
        cost=rule.cost_at_least or 0,
        avoid=frozenset(rule.avoid),
    )


def _deeds(rule: Rule, *, prefers: bool = True) -> str:
    """What a rule does, in words."""
    parts = []
    if rule.prefer and prefers:
        parts.append(f"{' before '.join(rule.prefer)} preferred")
    if rule.at_least is not None:
        parts.append(f"at least level {rule.at_least}")
    if rule.avoid:
        parts.append(f"not {' or '.join(rule.avoid)}")
    if rule.security_at_least is not None:
        parts.append(f"security {rule.security_at_least} or more")
    if rule.cost_at_least is not None:
        parts.append(f"cost rating {rule.cost_at_least} or more (5 is cheapest)")
    return ", ".join(parts)


def _applied_text(rule: Rule, evidence: list[str]) -> str:
    told = f" ({'; '.join(evidence)})" if evidence else ""
    return f"Rule '{rule.name}' applies{told}: {_deeds(rule)}. {rule.because}"


def _praise(profile: Profile) -> str:
    return (
        f"{profile.strategy} is chosen: {profile.use_case}; latency {profile.latency}, security "
        f"{profile.security}, scalability {profile.scalability}, cost {profile.cost} of 5."
    )
