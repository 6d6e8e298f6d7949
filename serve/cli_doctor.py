"""`tenancy doctor`: is everything as it must be?

Exit status 0: nothing is unsafe or broken (there may be warnings). 1: something is, or with
`--strict` there is a warning. 2: the command was used wrongly.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    AsJson,
    confirmed,
    note,
    print_json,
    say,
    visible,
)

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.findings import Finding
    from tenancy.data_isolation.serve.check import Check

#: Findings of one kind that are printed one by one; `--json` has all.
_LISTED_MAX = 10
_NAME_WIDTH = 14
_REMEDY_LINES_MAX = 4
_SQL_LINES_MAX = 60


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(doctor)


def doctor(
    accept: Annotated[
        bool, typer.Option("--accept", help="Take what has changed as it is from now on.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="Carry out the SQL that mends what was found.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Mend without asking.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 for warnings as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the machine, the servers and the runtime. Exit status 1 when a check fails."""
    settings = Settings.from_env()
    # Imported late: it loads the drivers of the servers.
    from tenancy.data_isolation.serve.check import Result
    from tenancy.data_isolation.serve.doctor import check_machine
    from tenancy.data_isolation.serve.server_checks import DoctorOptions, check_servers

    def agreed(findings: Sequence[Finding]) -> bool:
        if not yes:
            for finding in findings:
                note(visible(f"{finding.subject} {finding.problem}: {finding.remedy}"))
        confirmed(f"Mend these {len(findings)}?", yes=yes)
        return True

    async def ask_servers() -> None:
        options = DoctorOptions(
            accept=accept, mend=agreed if mend else None, progress=_progress(as_json)
        )
        async for check in check_servers(settings, options):
            report.add(check)

    report = _Report(as_json)
    for check in check_machine(settings):
        report.add(check)
    asyncio.run(ask_servers())
    failed = any(check.result is Result.FAIL for check in report.checks)
    warned = any(check.result is Result.WARN for check in report.checks)
    report.end()
    if as_json:
        print_json({"ok": not failed, "checks": [item.document() for item in report.checks]})
    if failed or (strict and warned):
        raise typer.Exit(STATUS_ERROR)


class _Report:
    """Prints checks as they come, and keeps them."""

    def __init__(self, silent: bool) -> None:
        self.checks: list[Check] = []
        self._silent = silent
        self._told: Counter[str] = Counter()

    def add(self, check: Check) -> None:
        """The next one."""
        self.checks.append(check)
        kind = f"{check.name} {check.finding.check if check.finding else ''}"
        self._told[kind] += 1
        if self._silent or (check.finding is not None and self._told[kind] > _LISTED_MAX):
            return
        detail = visible(" ".join(check.detail.split()))
        say(f"{check.result:<4}  {check.name:<{_NAME_WIDTH}}  {detail}")
        if check.remedy is not None:
            margin = f"{'':<{_NAME_WIDTH + 6}}  "
            first, *rest = _told(check, check.remedy).splitlines()
            say(f"{margin}-> {visible(first)}")
            for line in rest:
                say(f"{margin}   {visible(line)}")

    def end(self) -> None:
        """What was left out."""
        left = sum(max(count - _LISTED_MAX, 0) for count in self._told.values())
        if left and not self._silent:
            say(f"and {left} more findings of these kinds; --json has all of them")


def _told(check: Check, remedy: str) -> str:
    """A remedy for people; SQL of many lines is told in full to who has to run it."""
    finding = check.finding
    if finding is None or not finding.by_hand or "\n" not in finding.mend:
        return _shortened(remedy)
    lines = finding.mend.splitlines()
    where = f" in database {finding.database}" if finding.database else ""
    if len(lines) > _SQL_LINES_MAX:
        return f"{finding.advice}: {len(lines)} lines of SQL{where}, which --json has"
    return "\n".join((f"{finding.advice}; as the admin{where}:", *lines))


def _shortened(remedy: str) -> str:
    """A remedy as it is, unless it is a whole function."""
    lines = remedy.splitlines()
    if len(lines) <= _REMEDY_LINES_MAX:
        return remedy
    return f"tenancy doctor --mend (or the {len(lines)} lines of SQL that --json has): {lines[0]} …"


def _progress(as_json: bool) -> Callable[[str], None] | None:
    """Told on one line of a terminal; nothing where nobody looks."""
    if as_json or not sys.stderr.isatty():
        return None
    return lambda text: print(f"\r\x1b[2K{text}\r", end="", file=sys.stderr, flush=True)
