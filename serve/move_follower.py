"""Following a move for a command that waits, which may end before the move does.

Whoever stops waiting, because of Ctrl-C, of `--timeout` or of a runtime that is away for long, is
told where the move stands, and what was to be asked of it and was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich import progress as bars
from rich.console import Console

from tenancy.data_isolation.serve.move_words import (
    backlog_words,
    bytes_words,
    next_step,
    rate_words,
    standing,
    time_left,
    words,
)
from tenancy.data_isolation.serve.runtime_client import AnswerError, RuntimeClient
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    STATUS_INTERRUPTED,
    STATUS_UNSETTLED,
    CommandError,
    note,
    visible,
)

MOVES_PATH: Final = "/v1/moves"
#: Phases in which somebody has to decide, or nothing is left to do.
OPEN: Final = frozenset({"open", "settled"})
SETTLED: Final = frozenset({"settled"})
#: Rows from which on it is told how fast they were copied.
RATE_ROWS_MIN: Final = 1_000

_POLL_S: Final = 0.25
#: How long the runtime may be away while somebody waits for a move: long enough to start again.
_AWAY_MAX_S: Final = 120.0


class TimeOverError(CommandError):
    """The move was not where it was waited for when the time was over. `found` is how it was."""

    def __init__(self, message: str, hint: str | None, found: dict[str, Any]) -> None:
        super().__init__(message, hint, STATUS_UNSETTLED)
        self.found = found


class MoveFollower:
    """Follows one move, telling on standard error how far it has come.

    With `confirm` it is confirmed as soon as it is open. `timeout_s` counts from now; None = no
    limit.
    """

    def __init__(
        self, client: RuntimeClient, *, timeout_s: float | None = None, confirm: bool = False
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        #: Whether it is still to be confirmed; None = it was asked for, and no answer came yet.
        self._unconfirmed: bool | None = confirm

    def until(self, found: dict[str, Any], phases: Collection[str]) -> dict[str, Any]:
        """The move once it is in one of `phases`, or confirmed and settled when that was asked for.

        Raises `CommandError` when the wait ends before, `TimeOverError` after `timeout_s`; the
        move goes on.
        """
        seen = [found]
        try:
            with _telling() as told:
                self._follow(seen, phases, told)
                if self._unconfirmed and seen[-1]["state"] == "open":
                    seen[:] = [self._confirmed(seen[-1])]
                    self._follow(seen, SETTLED, told)
        except KeyboardInterrupt:
            raise self._ended("interrupted", seen[-1], STATUS_INTERRUPTED) from None
        return seen[-1]

    def _follow(
        self,
        seen: list[dict[str, Any]],
        phases: Collection[str],
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        """Keep in `seen` how the move is, until it is in one of `phases`."""
        told(seen[-1])
        while seen[-1]["phase"] not in phases:
            if self._left_s() <= 0:
                raise self._time_over(seen[-1])
            time.sleep(min(_POLL_S, self._left_s()))
            seen[:] = [self._asked(seen[-1])]
            told(seen[-1])

    def _confirmed(self, found: dict[str, Any]) -> dict[str, Any]:
        self._unconfirmed = None
        try:
            answer: dict[str, Any] = self._client.post(f"{MOVES_PATH}/{found['move_id']}/confirm")
        except CommandError as error:
            if isinstance(error, AnswerError) and not error.retryable:
                raise
            raise self._ended(str(error), found, STATUS_ERROR) from None
        self._unconfirmed = False
        return answer

    def _asked(self, found: dict[str, Any]) -> dict[str, Any]:
        """The move as it is now; a runtime that is away for a while is waited for."""
        away_until = time.monotonic() + _AWAY_MAX_S
        while True:
            try:
                left_s = self._left_s()
                now: dict[str, Any] = self._client.get(
                    f"{MOVES_PATH}/{found['move_id']}",
                    timeout_s=None if left_s == float("inf") else max(left_s, _POLL_S),
                )
                return now
            except CommandError as error:
                known = isinstance(error, AnswerError) and not error.retryable
                if known or time.monotonic() > away_until:
                    raise CommandError(
                        f"{error}; move {found['move_id']} goes on when the runtime does"
                        f"{self._confirmation()}",
                        f"tenancy move show {found['move_id']}",
                    ) from None
                if self._left_s() <= 0:
                    raise self._time_over(found, f"{error}; ") from None
            time.sleep(_POLL_S)

    def _left_s(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def _time_over(self, found: dict[str, Any], why: str = "") -> TimeOverError:
        told = self._ended(f"{why}{self._timeout_s:g} s are over", found, STATUS_UNSETTLED)
        return TimeOverError(str(told), told.hint, found)

    def _ended(self, why: str, found: dict[str, Any], status: int) -> CommandError:
        hint = next_step(found)
        if self._unconfirmed and found["phase"] != "open":
            # The hint of one that is open begins with it.
            hint = f"{hint}; once it is open: tenancy move confirm {found['move_id']}"
        how = found["progress"]
        rows = f", {how['rows_copied']:,} of {how['rows_total']:,} rows copied"
        far = rows if found["phase"] == "copying" else ""
        return CommandError(f"{why}; {standing(found)}{far}{self._confirmation()}", hint, status)

    def _confirmation(self) -> str:
        """What a message says of the confirmation that was to be."""
        match self._unconfirmed:
            case True:
                return ", and is NOT confirmed"
            case None:
                return ", and whether it was confirmed is not known"
            case False:
                return ""


@contextmanager
def asking(what: str, look: str, then: str = "") -> Iterator[None]:
    """Say that it is not known whether `what`, when Ctrl-C comes before the answer.

    `look` says where to look, and `then` what else is to be known.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted; whether {what} is not known{then}", look, STATUS_INTERRUPTED
        ) from None


@contextmanager
def _telling() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on a terminal; elsewhere a line for each phase, and for what is in the way."""
    if not sys.stderr.isatty():
        lines: list[str] = []

        def tell(found: dict[str, Any]) -> None:
            matter = f"; {visible(found['error'])}" if found["error"] else ""
            line = f"{found['move_id']}: {words(found['phase'])}{matter}"
            if lines[-1:] != [line]:
                lines.append(line)
                note(line)

        yield tell
        return
    with bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:,} of {task.fields[rows]:,} rows", markup=False),
        bars.TextColumn("{task.fields[more]}", markup=False),
        bars.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None, rows=0, more="")

        def report(found: dict[str, Any]) -> None:
            how = found["progress"]
            progress.update(
                task,
                description=f"{found['move_id']} {words(found['phase'])}",
                completed=how["rows_copied"],
                total=how["rows_total"] or None,
                rows=how["rows_total"],
                more=visible(found["error"]) if found["error"] else _more(how),
            )

        yield report


def _more(how: dict[str, Any]) -> str:
    # Within one database rows do not travel.
    parts = [bytes_words(how["bytes_copied"])] if how["bytes_copied"] else []
    if how["rows_copied"] >= RATE_ROWS_MIN:
        parts.append(rate_words(how))
    backlog = backlog_words(how)
    if backlog is not None:
        parts.append(f"{backlog} behind")
    left = time_left(how)
    if left is not None:
        parts.append(f"{left} left")
    return ", ".join(parts)
