"""One statement of a tenant on its way: what is to be run, until when, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from tenancy.data_isolation.core.errors import ParameterError, TenancyError
from tenancy.data_isolation.core.identifiers import Epoch, TenantNo
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.session_line import Request
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.values import WrongFormError

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.connection import Connection, Description
    from tenancy.data_isolation.engine.result_budget import ResultBudget
    from tenancy.data_isolation.engine.routes import Route
    from tenancy.data_isolation.engine.tracing import Traced

#: What needs a session for several steps: gets it and its own ticket, and gives the result.
Program: TypeAlias = "Callable[[Connection, Ticket], Awaitable[Any]]"

#: What a parameter takes beside its value, roughly.
_PARAMETER_BYTES: Final = 16


class Waiter(Protocol):
    """Who is told how a ticket ends: a future, or what stands in its place."""

    def done(self) -> bool:
        """Whether nothing more is to be told."""
        ...

    def set_result(self, result: Any, /) -> None:
        """It ends with a result."""
        ...

    def set_exception(self, error: TenancyError, /) -> None:
        """It ends with an error."""
        ...

    def exception(self) -> BaseException | None:
        """The error that it has ended with."""
        ...

    def cancelled(self) -> bool:
        """Whether nobody waits any more."""
        ...


class Ticket(Request):
    """A statement with its parameters, or a `program` of several steps that needs a session.

    `future` gets the result or an error of ours. It belongs to whoever waits; when that one gives
    up, `abandon` says so.
    """

    __slots__ = (
        "arguments",
        "attempts",
        "began_s",
        "believed_until",
        "budget",
        "deadline_at",
        "description",
        "encoded",
        "epoch",
        "flying",
        "future",
        "left",
        "outcome",
        "plain",
        "program",
        "returns_rows",
        "route",
        "statement",
        "traced",
        "writes",
    )

    def __init__(
        self,
        key: SessionKey,
        tenant_no: TenantNo,
        epoch: Epoch,
        *,
        limits: TierLimits,
        statement: Statement | None = None,
        arguments: Sequence[Any] = (),
        deadline_at: float = float("inf"),
        believed_until: float = 0.0,
        waiter: Waiter | None = None,
    ) -> None:
        """`waiter` is told of the end; None = a future that can be awaited.

        `believed_until` (event loop's time) is how long the tenant is known to be there.

        Who waits longer for a session could come to a table that was emptied meanwhile, and where
        there is no row nothing is refused.
        """
        super().__init__(key, tenant_no, limits=limits, give_up_at=deadline_at)
        #: When (event loop's time) the answer is of no use any more.
        self.deadline_at = deadline_at
        self.epoch = epoch
        self.believed_until = believed_until
        self.statement = statement
        self.arguments = arguments
        self.program: Program | None = None
        #: What its result shares with those of its batch. It then travels with these alone.
        self.budget: ResultBudget | None = None
        #: Whether it was proven to leave nothing behind, and to look for nothing, in the session.
        self.plain = statement is not None and statement.plain
        #: Whether it may change something, and whether it gives rows.
        self.writes = statement is None or statement.kind is not StatementKind.READ
        self.returns_rows = statement is not None and statement.returns_rows
        #: A `Waiter`; where none was given, a future.
        self.future: Any = waiter or asyncio.get_running_loop().create_future()
        #: Times that it was tried again after nothing had been done.
        self.attempts = 0
        #: Whether nobody waits for it any more.
        self.left = False
        #: The session that works for it alone.
        self.flying: Connection | None = None
        self.description: Description | None = None
        self.encoded: Sequence[bytes | None] = ()
        #: When it came (`time.monotonic`: the loop's time stands still while the loop is at work),
        #: if what it takes is to be noted; 0 = it is not, or has been.
        self.began_s = 0.0
        #: The way that it takes, for who notes that; the trace that it is part of; how it ended.
        self.route: Route | None = None
        self.traced: Traced | None = None
        self.outcome: Any = None
        if arguments:
            self.size = size_of(arguments)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.left or self.future.done()

    @property
    def watched(self) -> bool:
        """Whether the tenant's fence is to be asked for first, whatever rows there are."""
        return asyncio.get_running_loop().time() >= self.believed_until

    @property
    def text(self) -> str:
        """The statement's text."""
        assert self.statement is not None  # noqa: S101 - programs have no text and are not asked.
        return self.statement.text

    def abandon(self) -> None:
        """Nobody waits any more: what runs for it alone is cancelled."""
        self.left = True
        if self.flying is not None:
            self.flying.cancel()

    def refuse(self, error: TenancyError) -> None:
        """It ends with an error."""
        if not self.future.done():
            self.outcome = error
            self.future.set_exception(error)
            # An error that nobody is there to see is no fault of the program.
            self.future.exception()

    def answer(self, result: Any) -> None:
        """It ends with a result."""
        if not self.future.done():
            self.outcome = result
            self.future.set_result(result)

    def encode(self, description: Description) -> None:
        """Make the parameters ready to be sent. Raises `ParameterError`."""
        self.description = description
        if description.encoders or self.arguments:
            self.encoded = encode_parameters(description, self.arguments)


def size_of(arguments: Sequence[Any]) -> int:
    """Roughly the bytes that parameters take."""
    return sum(
        _PARAMETER_BYTES + (len(value) if isinstance(value, str | bytes | list | dict) else 0)
        for value in arguments
    )


def encode_parameters(description: Description, arguments: Sequence[Any]) -> list[bytes | None]:
    """Parameters as PostgreSQL reads them. Raises `ParameterError`, which names the position."""
    if len(arguments) != len(description.encoders):
        raise ParameterError(
            f"the statement takes {len(description.encoders)} parameters, not {len(arguments)}"
        )
    try:
        return [
            None if value is None else encode(value)
            for encode, value in zip(description.encoders, arguments, strict=True)
        ]
    except (ValueError, RecursionError):
        raise _refusal(description, arguments) from None


def _refusal(description: Description, arguments: Sequence[Any]) -> ParameterError:
    """The error for the first parameter that cannot be sent."""
    for position, (encode, name, value) in enumerate(
        zip(description.encoders, description.parameter_names, arguments, strict=True), start=1
    ):
        try:
            if value is not None:
                encode(value)
        except WrongFormError as error:
            return ParameterError(
                f"parameter ${position} is of type {name}, which takes {error}, "
                f"not {type(value).__name__}"
            )
        except (ValueError, RecursionError):
            # A lone surrogate, which no UTF-8 text can hold, or a list inside itself.
            return ParameterError(f"parameter ${position} cannot be sent as a value of type {name}")
    return ParameterError("a parameter changed while it was sent")
