"""What came of every attack, as a table, as JSON and as a page of the documentation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from attacks.answer import Blocker
from attacks.attack import Attack
from attacks.catalogue import ATTACKS, ELSEWHERE, NOT_APPLICABLE
from attacks.channels import CHANNELS
from attacks.product_stage import Level, Way

#: One letter for each thing that an attack stops at.
_LETTERS: Final = {
    Blocker.GUARD: "G",
    Blocker.PRIVILEGES: "P",
    Blocker.ROW_SECURITY: "S",
    Blocker.BINDING: "B",
    Blocker.KEYS: "K",
    Blocker.NAMES: "N",
    Blocker.PROTOCOL: "1",
    Blocker.RULES: "R",
    Blocker.RUNTIME: "T",
    Blocker.SCHEMA: "M",
    Blocker.NOTHING: "o",
}
_ACCEPTED, _REACHED, _NOT_TRIED = "a", "!", "."


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What came of one attack at one level by one way."""

    attack: Attack
    level: Level
    way: Way
    reached: bool
    blocker: Blocker
    channel: str | None

    @property
    def letter(self) -> str:
        """The finding in one letter."""
        if self.reached:
            return _ACCEPTED if self.channel else _REACHED
        return _LETTERS[self.blocker]


@dataclass(kw_only=True)
class Report:
    """Findings, as they come."""

    server: str = "?"
    findings: list[Finding] = field(default_factory=list)
    #: Attacks that succeeded on the weak setup.
    controls: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """The table, with what its letters mean."""
        width = max(len(attack.title) for attack in ATTACKS)
        name = max(len(attack.name) for attack in ATTACKS)
        head = f"{'':{name}}  {'attack':{width}}  " + "  ".join(f"{level:8}" for level in Level)
        found = self._cells()
        rows = [
            f"{attack.name:{name}}  {attack.title:{width}}  "
            + "  ".join(f"{found.get((attack.name, level), ''):8}" for level in Level)
            + ("  control ok" if attack.name in self.controls else "  NO CONTROL")
            for attack in ATTACKS
            if any((attack.name, level) in found for level in Level)
        ]
        ways = ", ".join(Way)
        return [
            f"PostgreSQL {self.server}. Each cell: {ways}.",
            *_legend(),
            "",
            head.rstrip(),
            *rows,
            "",
            *self._summary(),
        ]

    def json(self) -> str:
        """All of it, for machines."""
        return json.dumps(
            {
                "postgresql": self.server,
                "findings": [
                    {
                        "attack": item.attack.name,
                        "title": item.attack.title,
                        "level": item.level,
                        "way": item.way,
                        "verdict": _verdict(item),
                        "by": item.channel if item.reached else item.blocker,
                        "control": item.attack.name in self.controls,
                    }
                    for item in self.findings
                ],
            }
        )

    def _cells(self) -> dict[tuple[str, Level], str]:
        letters: dict[tuple[str, Level], dict[Way, str]] = defaultdict(dict)
        for item in self.findings:
            letters[item.attack.name, item.level][item.way] = item.letter
        return {
            place: " ".join(by_way.get(way, _NOT_TRIED) for way in Way)
            for place, by_way in letters.items()
        }

    def _summary(self) -> Iterable[str]:
        accepted = [item for item in self.findings if item.reached and item.channel]
        reached = [item for item in self.findings if item.reached and not item.channel]
        names = {item.attack.name for item in self.findings}
        stopped = len(self.findings) - len(accepted) - len(reached)
        yield (
            f"{len(self.findings)} attempts of {len(names)} attacks: {stopped} stopped, "
            f"{len(accepted)} by an accepted channel, {len(reached)} SUCCEEDED"
        )
        for item in reached:
            yield f"SUCCEEDED: {item.attack.name} at level {item.level}, {item.way}"


def page(report: Report) -> str:
    """The page `docs/attacks.md`."""
    table = ["| id | attack | " + " | ".join(Level) + " |", "|---" * (2 + len(Level)) + "|"]
    found = report._cells()
    table += [
        f"| {attack.name} | {attack.title} | "
        + " | ".join(f"`{found.get((attack.name, level), '')}`" for level in Level)
        + " |"
        for attack in ATTACKS
    ]
    return "\n".join(
        [
            *_INTRODUCTION,
            "",
            *_legend("- "),
            "",
            f"As `make attack-report` found it on PostgreSQL {report.server}:",
            "",
            *table,
            "",
            "## Accepted channels",
            "",
            "What a tenant may learn or do in spite of everything (`a` in the table).",
            "",
            *(f"- **{name}**: {text}" for name, text in CHANNELS.items()),
            "",
            "## Tried elsewhere",
            "",
            "| id | attack | test |",
            "|---|---|---|",
            *(f"| {key} | {title} | `{test}` |" for key, (title, test) in ELSEWHERE.items()),
            "",
            "## Not applicable",
            "",
            *(f"- **{key}** {reason}" for key, reason in NOT_APPLICABLE.items()),
            "",
        ]
    )


_INTRODUCTION: Final = (
    "# Attacks on the boundary",
    "",
    "This page is made by `make attack-report`; the attacks are in `tests/attacks`. Each is tried",
    "at every level and by three ways in: as operations of the tenant (guarded), the same with the",
    "guard switched off, in sessions that the victim's operations use before and after (handed),",
    "and straight on a connection of the tenant's own login (direct). After each attempt the",
    "victim's rows and what it sees of them are compared with what they were, and every answer is",
    "searched for rows of the victim. The same attack has to succeed on a setup without the",
    "product (one login, the tenant in a setting), else the test fails: an attack that never works",
    "proves nothing.",
    "",
    "Letters in the table, in the order guarded, handed, direct:",
)


def _legend(mark: str = "  ") -> list[str]:
    meanings = {letter: str(blocker) for blocker, letter in _LETTERS.items()}
    meanings |= {_ACCEPTED: "accepted channel", _NOT_TRIED: "the way in makes no difference"}
    quote = "`" if mark.strip() else ""
    return [f"{mark}{quote}{letter}{quote} {text}" for letter, text in meanings.items()]


def _verdict(item: Finding) -> str:
    if not item.reached:
        return "blocked"
    return "accepted" if item.channel else "succeeded"
