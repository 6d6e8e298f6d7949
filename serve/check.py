"""One check of `tenancy doctor`: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tenancy.data_isolation.engine.findings import Finding, Severity


class Result(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check. `finding` is what it is about when it came from a server."""

    name: str
    result: Result
    detail: str
    remedy: str | None = None
    finding: Finding | None = None

    def document(self) -> dict[str, Any]:
        """The check as JSON has it. Keys are added, never changed."""
        found = self.finding
        return {
            "name": self.name,
            "result": self.result,
            "detail": self.detail,
            "remedy": self.remedy,
            "check": None if found is None else found.check,
            "severity": None if found is None else found.severity,
            "server": None if found is None else found.server,
            "database": None if found is None else found.database or None,
            "subject": None if found is None else found.subject,
            "problem": None if found is None else found.problem,
            "statements": [] if found is None else list(found.statements),
            "by_hand": False if found is None else found.by_hand,
        }


def fine(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name=name, result=Result.OK, detail=detail)


def warned(name: str, detail: str, remedy: str) -> Check:
    """It works, and should be mended all the same."""
    return Check(name=name, result=Result.WARN, detail=detail, remedy=remedy)


def failed(name: str, detail: str, remedy: str) -> Check:
    """It is unsafe, or something cannot work."""
    return Check(name=name, result=Result.FAIL, detail=detail, remedy=remedy)


def found(name: str, finding: Finding) -> Check:
    """What an inspection of a server found."""
    warning = finding.severity is Severity.WARNING
    where = f" (database {finding.database})" if finding.database else ""
    return Check(
        name=name,
        result=Result.WARN if warning else Result.FAIL,
        detail=f"{finding.subject} {finding.problem}{where}",
        remedy=finding.remedy,
        finding=finding,
    )
