"""Rules files: the matrix and the rules as TOML text, or as a mapping of the same shape.

`[strategies.<name>]` is the matrix: one row per strategy with its use case, latency, security,
scalability and cost (5 = cheapest). `[[rules]]` are the rules, in order:

- `name`, and `because`: one sentence for the user;
- `when`: the facts that make it apply (all of them; a list means any of its words; no `when` =
  always). Words: compliance, tenant_type, workload, budget, wish, placement, operation. Numbers,
  with `_min` (at least) or `_max` (at most): size_bytes, size_rows, load_ops_s, databases (tenants
  that have one), hybrid_room (hybrid tenants that the servers still have room for). A rule that
  asks for a fact that is not known does not apply;
- what it does, at least one of: `prefer` (strategies, best first), `at_least` (an isolation level),
  `avoid` (strategies), `security_at_least`, `cost_at_least` (ratings of the matrix);
- `firm`: true when the demand is never set aside; others give way when nothing fits them all.

Reading is strict: an unknown key, strategy or word is a `SettingError` that names the line.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.rules import (
    RATING_MAX,
    STRATEGY_OF_LEVEL,
    Budget,
    Latency,
    Profile,
    Rule,
    RuleBook,
    StrategyName,
    Workload,
    regime,
)
from tenancy.data_isolation.core.types import IsolationLevel, TenantType

_Word = TypeVar("_Word", bound=StrEnum)


def read_rules(
    content: str | Mapping[str, Any], source: str, *, defaults: RuleBook | None = None
) -> RuleBook:
    """The book that TOML text or a mapping spells. Raises `SettingError`.

    Rows of the matrix that are not given come from `defaults`. `source` is what an error calls it.
    """
    if not isinstance(content, str):
        return _Reader(source=source, text=None).book(content, defaults)
    try:
        parsed = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source} is not valid TOML: {error}") from None
    return _Reader(source=source, text=content).book(parsed, defaults)


_WORDS: dict[str, type[StrEnum] | None] = {
    "compliance": None,
    "tenant_type": TenantType,
    "workload": Workload,
    "budget": Budget,
    "wish": IsolationLevel,
    "placement": IsolationLevel,
    "operation": None,
}
_NUMBERS = ("size_bytes", "size_rows", "load_ops_s", "databases", "hybrid_room")
_BOUNDS = tuple(f"{name}_{end}" for name in _NUMBERS for end in ("min", "max"))
_DEEDS = ("prefer", "avoid", "at_least", "security_at_least", "cost_at_least")
_RULE_KEYS = ("name", "because", "when", *_DEEDS, "firm")
_PROFILE_KEYS = ("use_case", "latency", "security", "scalability", "cost")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Turns the content of a rules file into a book; an error names the line and the key."""

    source: str
    text: str | None

    def book(self, content: Mapping[str, Any], defaults: RuleBook | None) -> RuleBook:
        self._keys(content, ("strategies", "rules"), "the file", "")
        profiles = dict(defaults.profiles) if defaults else {}
        matrix = self._table(content.get("strategies", {}), "strategies", "")
        for name, row in matrix.items():
            strategy = self._member(StrategyName, name, "strategies", rf"\[strategies\.{name}\]")
            profiles[strategy] = self._profile(strategy, row)
        absent = [str(name) for name in STRATEGY_OF_LEVEL.values() if name not in profiles]
        if absent:
            raise self._wrong("strategies", f"lacks {', '.join(absent)}", "")
        given = content.get("rules", [])
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise self._wrong("rules", "must be a list of tables ([[rules]])", "")
        rules = tuple(self._rule(number, item, profiles) for number, item in enumerate(given))
        names = [rule.name for rule in rules]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise self._wrong("name", f"{name!r} is used twice", number)
        return RuleBook(source=self.source, profiles=profiles, rules=rules)

    def _profile(self, strategy: StrategyName, row: Any) -> Profile:
        place = rf"\[strategies\.{strategy}\]"
        row = self._table(row, f"strategies.{strategy}", place)
        self._keys(row, _PROFILE_KEYS, f"strategies.{strategy}", place)
        for key in _PROFILE_KEYS:
            if key not in row:
                raise self._wrong(f"strategies.{strategy}.{key}", "is missing", place)
        return Profile(
            strategy=strategy,
            use_case=self._sentence(row["use_case"], f"strategies.{strategy}.use_case", place),
            latency=self._member(Latency, row["latency"], f"strategies.{strategy}.latency", place),
            **{
                key: self._rating(row[key], f"strategies.{strategy}.{key}", place)
                for key in ("security", "scalability", "cost")
            },
        )

    def _rule(self, number: int, item: Any, profiles: Collection[StrategyName]) -> Rule:
        item = self._table(item, "rules", number)
        self._keys(item, _RULE_KEYS, "a rule", number)
        if not any(key in item for key in _DEEDS):
            raise self._wrong("rules", f"says nothing: give one of {', '.join(_DEEDS)}", number)
        firm = item.get("firm", False)
        if not isinstance(firm, bool):
            raise self._wrong("firm", "must be true or false", number)
        words, least, most = self._when(item.get("when", {}), number)
        rule = Rule(
            name=self._sentence(item.get("name"), "name", number),
            because=self._sentence(item.get("because"), "because", number),
            words=words,
            least=least,
            most=most,
            prefer=self._strategies(item, "prefer", profiles, number),
            avoid=self._strategies(item, "avoid", profiles, number),
            firm=firm,
        )
        return dataclasses.replace(rule, **self._demands(item, number))

    def _demands(self, item: Mapping[str, Any], number: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "at_least" in item:
            found["at_least"] = self._member(IsolationLevel, item["at_least"], "at_least", number)
        for key in ("security_at_least", "cost_at_least"):
            if key in item:
                found[key] = self._rating(item[key], key, number)
        return found

    def _when(
        self, when: Any, number: int
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, float], dict[str, float]]:
        when = self._table(when, "when", number)
        self._keys(when, (*_WORDS, *_BOUNDS), "when", number)
        words: dict[str, tuple[str, ...]] = {}
        bounds: dict[str, dict[str, float]] = {"min": {}, "max": {}}
        for key, value in when.items():
            if key in _WORDS:
                words[key] = self._words(key, value, number)
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise self._wrong(f"when.{key}", "must be a number, 0 or more", number)
            name, end = key.rsplit("_", 1)
            bounds[end][name] = value
        return words, bounds["min"], bounds["max"]

    def _words(self, key: str, value: Any, number: int) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, Sequence) or not given:
            raise self._wrong(f"when.{key}", "must be a word or a list of words", number)
        kind = _WORDS[key]
        if kind is None:
            words = [self._sentence(word, f"when.{key}", number) for word in given]
            return tuple(regime(word) if key == "compliance" else word for word in words)
        return tuple(str(self._member(kind, word, f"when.{key}", number)) for word in given)

    def _strategies(
        self, item: Mapping[str, Any], key: str, profiles: Collection[StrategyName], number: int
    ) -> tuple[StrategyName, ...]:
        given = item.get(key, ())
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise self._wrong(key, "must be a list of strategies", number)
        names = tuple(self._member(StrategyName, name, key, number) for name in given)
        for name in names:
            if name not in profiles:
                raise self._wrong(key, f"names {name}, which has no row in the matrix", number)
        return names

    def _table(self, value: Any, key: str, place: str | int) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(key, "must be a table", place)
        return value

    def _keys(
        self, table: Mapping[str, Any], known: Sequence[str], what: str, place: str | int
    ) -> None:
        for key in table:
            if key not in known:
                raise self._wrong(
                    str(key), f"is not a key of {what}; it has {', '.join(known)}", place
                )

    def _member(self, kind: type[_Word], value: Any, key: str, place: str | int) -> _Word:
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(kind)
            raise self._wrong(key, f"does not know {value!r}; there are {known}", place) from None

    def _rating(self, value: Any, key: str, place: str | int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= RATING_MAX:
            raise self._wrong(key, f"must be a whole number from 1 to {RATING_MAX}", place)
        return value

    def _sentence(self, value: Any, key: str, place: str | int) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "must be a text that is not empty", place)
        return value.strip()

    def _wrong(self, key: str, complaint: str, place: str | int) -> SettingError:
        """The error for `key`; `place` is a rule's number or a pattern of its table's header."""
        line = self._line(place, key.rsplit(".", 1)[-1])
        rule = f"rule {place + 1}, " if isinstance(place, int) else ""
        return SettingError(f"{self.source}{line}: {rule}{key} {complaint}")

    def _line(self, place: str | int, key: str) -> str:
        if self.text is None:
            return ""
        header, nth = (r"\[\[rules\]\]", place) if isinstance(place, int) else (place, 0)
        lines = self.text.splitlines()
        starts = [n for n, line in enumerate(lines) if re.match(rf"\s*{header}", line)]
        first = starts[nth] if header and nth < len(starts) else 0
        named = re.compile(rf"(.*[\s{{,])?[\"']?{re.escape(key)}[\"']?\s*[=\]]")
        for number in range(first, len(lines)):
            if number > first and header and lines[number].lstrip().startswith("["):
                break
            if named.match(lines[number]):
                return f", line {number + 1}"
        return f", line {first + 1}"
