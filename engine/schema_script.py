"""What one migration comes to on scoped tables: the recorded script.

A migration is worked out once, in the reference, and then runs everywhere as recorded; so all
namespaces get the same tables, and a new one is made without reading catalogs at every step. The
script names nothing by schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from tenancy.data_isolation.engine.migration import Migration


class StepSort(StrEnum):
    """What a step is for."""

    #: DDL, once per namespace.
    DEFINITION = "definition"
    #: Row security of a table forced or lifted around a definition; needless where no row is.
    PROTECTION = "protection"
    #: DML, once per tenant.
    DATA = "data"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One statement, and the line of the migration that it comes from."""

    sort: StepSort
    text: str
    line: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """All steps of a migration, in order."""

    steps: tuple[Step, ...]

    def groups(self) -> Iterator[tuple[bool, tuple[Step, ...]]]:
        """Runs of steps that all change rows (True) or all change definitions (False)."""
        group: list[Step] = []
        for step in self.steps:
            if group and (step.sort is StepSort.DATA) != (group[-1].sort is StepSort.DATA):
                yield group[-1].sort is StepSort.DATA, tuple(group)
                group = []
            group.append(step)
        if group:
            yield group[-1].sort is StepSort.DATA, tuple(group)

    def definitions(self) -> str:
        """All definitions as one text, for a schema without rows."""
        return joined([step.text for step in self.steps if step.sort is StepSort.DEFINITION])

    def to_json(self) -> str:
        """The form in which the catalog keeps it."""
        return json.dumps([[step.sort, step.line, step.text] for step in self.steps])

    @classmethod
    def from_json(cls, document: str) -> Script:
        """The script that `to_json` wrote."""
        return cls(
            steps=tuple(
                Step(sort=StepSort(sort), line=line, text=text)
                for sort, line, text in json.loads(document)
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredMigration:
    """A migration that the reference has taken, with what it came to."""

    migration: Migration
    script: Script


def joined(statements: Iterable[str]) -> str:
    """Statements as one text. The semicolon has its own line, since a comment may come before."""
    return "".join(f"{statement}\n;\n" for statement in statements)
