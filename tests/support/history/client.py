"""One client of a tenant: it makes one call after the other and notes what it was told."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from support.history.call import Action, Call, Entry, Outcome, ReadJournal, Transfer
from support.history.executor import Executor
from support.history.pace import pause
from support.history.statements import journal_page, request
from tenancy.data_isolation.core.errors import (
    ConstraintError,
    LimitError,
    OutcomeUnknownError,
    SerializationError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.types import Operation, QueryResult

#: Errors whose class says that nothing was done.
_REFUSALS: Final = (LimitError, UnavailableError, SerializationError, ConstraintError)
#: How long the answer of one attempt may take before it counts as an error.
_ANSWER_S: Final = 15.0
#: Attempts at a write of unknown outcome with its idempotency key, and the pause between them.
_REPEATS_MAX: Final = 100
_REPEAT_PAUSE_S: Final = 0.02
_CHECK_VIOLATION: Final = "23514"


@dataclass(frozen=True, slots=True)
class _Attempt:
    outcome: Outcome
    answer: Any = None
    error: str | None = None
    unexpected: str | None = None


class Client:
    """A client. `calls` is where it notes its calls, whole, when they have ended."""

    def __init__(
        self, name: str, executor: Executor, tenant: str, calls: list[Call], stop: asyncio.Event
    ) -> None:
        self.name = name
        self._executor = executor
        self._tenant = tenant
        self._calls = calls
        self._stop = stop
        self._made = 0
        # A tenant keeps its keys, and may have had a client of this name before.
        self._run = uuid.uuid4()

    async def call(
        self, action: Action, *, keyed: bool = False, patience_s: float | None = None
    ) -> Call:
        """Make a call and note it.

        `keyed` gives a write an idempotency key, with which it is sent again while its outcome is
        unknown. After `patience_s` the client gives the first attempt up.
        """
        self._made += 1
        key = f"{self._run} {self.name} {self._made}" if keyed else None
        errors: list[str] = []
        invoked_ns = time.monotonic_ns()
        attempt = _Attempt(Outcome.UNKNOWN, error="CancelledError")
        try:
            attempt = await self._persist(action, key, patience_s, errors)
        finally:
            # A client that is cancelled notes its call as well: it may have happened.
            if attempt.error is not None and not errors:
                errors.append(attempt.error)
            made = Call(
                client=self.name,
                action=action,
                invoked_ns=invoked_ns,
                completed_ns=time.monotonic_ns(),
                outcome=attempt.outcome,
                answer=attempt.answer,
                errors=tuple(errors),
                unexpected=attempt.unexpected,
            )
            self._calls.append(made)
        return made

    async def _persist(
        self, action: Action, key: str | None, patience_s: float | None, errors: list[str]
    ) -> _Attempt:
        attempt = await self._attempt(action, key, patience_s)
        unknown = attempt.outcome is Outcome.UNKNOWN
        for _ in range(_REPEATS_MAX):
            if attempt.error is not None:
                errors.append(attempt.error)
            if attempt.unexpected or key is None or not unknown or attempt.outcome is Outcome.OK:
                break
            await pause(self._stop, _REPEAT_PAUSE_S)
            attempt = await self._attempt(action, key, None)
        if unknown and attempt.outcome is Outcome.REFUSED:
            # That the last attempt was refused says nothing of the first.
            return dataclasses.replace(attempt, outcome=Outcome.UNKNOWN)
        return attempt

    async def _attempt(self, action: Action, key: str | None, patience_s: float | None) -> _Attempt:
        try:
            async with asyncio.timeout(_ANSWER_S if patience_s is None else patience_s):
                return _Attempt(Outcome.OK, await self._answer(action, key))
        except TenancyError as error:
            return _judged(action, error)
        except (ConnectionError, EOFError) as error:
            return _Attempt(Outcome.UNKNOWN, error=type(error).__name__)
        except TimeoutError:
            late = None if patience_s is not None else f"no answer within {_ANSWER_S} s"
            return _Attempt(Outcome.UNKNOWN, error="TimeoutError", unexpected=late)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            return _Attempt(Outcome.UNKNOWN, error=type(error).__name__, unexpected=what)

    async def _answer(self, action: Action, key: str | None) -> Any:
        if isinstance(action, ReadJournal):
            return await self._journal()
        asked = request(action)
        operations = list(asked.operations)
        if key is not None:
            operations[0] = dataclasses.replace(operations[0], idempotency_key=key)
        return asked.answer(await self._execute(operations))

    async def _journal(self) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        last: int | None = 0
        while last is not None:
            page = journal_page(last)
            found, last = page.answer(await self._execute(page.operations))
            entries += found
        return tuple(entries)

    async def _execute(self, operations: Sequence[Operation]) -> list[QueryResult]:
        if len(operations) == 1:
            return [await self._executor.execute(self._tenant, operations[0])]
        outcomes = await self._executor.execute_batch(self._tenant, operations, atomic=True)
        results = [item for item in outcomes if isinstance(item, QueryResult)]
        assert len(results) == len(operations), outcomes
        return results


def _judged(action: Action, error: TenancyError) -> _Attempt:
    """What an error says of the outcome, and whether clients should ever see it."""
    name = _name(error)
    what = f"{name}: {error.detail} (SQLSTATE {error.sqlstate})"
    if isinstance(error, OutcomeUnknownError):
        return _Attempt(Outcome.UNKNOWN, error=name)
    if not isinstance(error, _REFUSALS):
        return _Attempt(Outcome.UNKNOWN, error=name, unexpected=what)
    if isinstance(error, ConstraintError) and not (
        isinstance(action, Transfer) and error.sqlstate == _CHECK_VIOLATION
    ):
        return _Attempt(Outcome.REFUSED, error=name, unexpected=what)
    return _Attempt(Outcome.REFUSED, error=name)


def _name(error: TenancyError) -> str:
    """The class of the error; Ray raises one of another process as a class derived from it."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("tenancy."):
            return kind.__name__
    return type(error).__name__
