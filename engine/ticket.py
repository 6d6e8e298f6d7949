"""One statement of a tenant on its way: what is to be run, until when, and who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tenancy.data_isolation.core.errors import ParameterError, TenancyError
from tenancy.data_isolation.core.identifiers import Epoch, TenantNo
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.pool import Request
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.values import WrongFormError

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.connection import Connection, Description

#: What a parameter takes beside its value, roughly.
_PARAMETER_BYTES: Final = 16


class Ticket(Request):
    """A statement with its parameters, or a `program` of several steps that needs a session.

    `future` gets the result or an error of ours. It belongs to whoever waits; when that one gives
    up, `abandon` says so.
    """

    __slots__ = (
        "arguments",
        "attempts",
        "deadline_at",
        "description",
        "encoded",
        "epoch",
        "flying",
        "future",
        "left",
        "program",
        "statement",
    )

    def __init__(
        self,
        key: SessionKey,
        tenant_no: TenantNo,
        epoch: Epoch,
        *,
        statement: Statement | None = None,
        arguments: Sequence[Any] = (),
        program: Callable[[Connection, Ticket], Awaitable[Any]] | None = None,
        deadline_at: float = float("inf"),
    ) -> None:
        super().__init__(key, tenant_no)
        #: When (event loop's time) the answer is of no use any more.
        self.deadline_at = deadline_at
        self.epoch = epoch
        self.statement = statement
        self.arguments = arguments
        self.program = program
        self.give_up_at = deadline_at
        self.size = size_of(arguments)
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        #: Times that it was tried again after nothing had been done.
        self.attempts = 0
        #: Whether nobody waits for it any more.
        self.left = False
        #: The session that works for it alone.
        self.flying: Connection | None = None
        self.description: Description | None = None
        self.encoded: list[bytes | None] = []

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.left or self.future.done()

    @property
    def text(self) -> str:
        """The statement's text."""
        assert self.statement is not None  # noqa: S101 - programs have no text and are not asked.
        return self.statement.text

    @property
    def writes(self) -> bool:
        """Whether the statement may change something."""
        return self.statement is None or self.statement.kind is not StatementKind.READ

    @property
    def returns_rows_of_a_write(self) -> bool:
        """Whether its result can be too large after it has changed something."""
        statement = self.statement
        return statement is not None and self.writes and statement.returns_rows

    def abandon(self) -> None:
        """Nobody waits any more: what runs for it alone is cancelled."""
        self.left = True
        if self.flying is not None:
            self.flying.cancel()

    def refuse(self, error: TenancyError) -> None:
        """It ends with an error."""
        if not self.future.done():
            self.future.set_exception(error)
            # An error that nobody is there to see is no fault of the program.
            self.future.exception()

    def answer(self, result: Any) -> None:
        """It ends with a result."""
        if not self.future.done():
            self.future.set_result(result)

    def encode(self, description: Description) -> None:
        """Make the parameters ready to be sent. Raises `ParameterError`."""
        self.description = description
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
    encoded: list[bytes | None] = []
    for position, (encode, value) in enumerate(
        zip(description.encoders, arguments, strict=True), start=1
    ):
        try:
            encoded.append(None if value is None else encode(value))
        except WrongFormError as error:
            kind = description.parameter_names[position - 1]
            raise ParameterError(
                f"parameter ${position} is of type {kind}, which takes {error}, "
                f"not {type(value).__name__}"
            ) from None
        except (ValueError, RecursionError):
            # A lone surrogate, which no UTF-8 text can hold, or a list inside itself.
            kind = description.parameter_names[position - 1]
            raise ParameterError(
                f"parameter ${position} cannot be sent as a value of type {kind}"
            ) from None
    return encoded
