"""What PostgreSQL and the driver say, as errors of ours.

Rules this module keeps:

* The class follows from the SQLSTATE alone (manual, appendix A), never from the words.
* What a tenant reads is what a plain database would have said: without the column that tells
  tenants apart and without the opaque names of schemas, databases and roles.
* Where nothing was done, the error says so and can be retried; where that is not known, it is
  `OutcomeUnknownError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import (
    ConstraintError,
    DiskFullError,
    OutcomeUnknownError,
    ParameterError,
    PlacementChangedError,
    SerializationError,
    ServerUnavailableError,
    StatementError,
    StatementForbiddenError,
    StatementSyntaxError,
    StatementTimeoutError,
    TenancyError,
)
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN

#: SQLSTATEs of `tenancy.tenant()` (sql/binding.sql).
UNBOUND: Final = "TN001"
INVALID_BINDING: Final = "TN002"
STALE_BINDING: Final = "TN003"
CLOSED_FENCE: Final = "TN004"
#: A statement was cancelled, by us or by the server's administrator.
CANCELLED: Final = "57014"
#: No slot is left on the server, or for the role.
TOO_MANY_CONNECTIONS: Final = "53300"

#: Why PostgreSQL lets a login in no more, for operators (manual, appendix A).
REFUSED_LOGINS: Final[Mapping[str, str]] = {
    "28000": "it may not log in, or no line of pg_hba.conf lets it in",
    "28P01": "its password is not the runtime's, or the role is gone",
    "3D000": "the database is gone",
    "42501": "it may not connect to the database",
}

_DETAIL_CHARS_MAX = 1_000
#: Where PostgreSQL looks at CONNECTION LIMIT (init/miscinit.c); a server that is full says so from
#: elsewhere, with the same SQLSTATE.
_LOGIN_ROUTINE: Final = "InitializeSessionUserId"


class LoginFullError(ServerUnavailableError):
    """The login has as many sessions as it may have now; others are not concerned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerReport:
    """What an ErrorResponse says (manual, 55.8), as far as it is used."""

    sqlstate: str
    message: str
    fatal: bool = False
    detail: str | None = None
    hint: str | None = None
    context: str | None = None
    routine: str | None = None

    @classmethod
    def of_fields(cls, fields: Mapping[str, str]) -> ServerReport:
        """The report of an ErrorResponse's fields."""
        return cls(
            sqlstate=fields.get("C", "XX000"),
            message=fields.get("M", "PostgreSQL refused the statement"),
            fatal=fields.get("V", fields.get("S")) in ("FATAL", "PANIC"),
            detail=fields.get("D"),
            hint=fields.get("H"),
            context=fields.get("W"),
            routine=fields.get("R"),
        )

    @classmethod
    def of_driver(cls, error: asyncpg.PostgresError) -> ServerReport:
        """The report inside an error of the driver."""
        return cls(
            sqlstate=error.sqlstate or "XX000",
            message=str(error.args[0]) if error.args else "PostgreSQL refused the statement",
            fatal=error.severity_en in ("FATAL", "PANIC"),
            detail=error.detail,
            hint=error.hint,
            context=error.context,
            routine=getattr(error, "server_source_function", None),
        )

    @property
    def is_stale_plan(self) -> bool:
        """Whether a prepared statement has to be prepared again; nothing was done."""
        return self.sqlstate == "0A000" and self.routine == "RevalidateCachedQuery"

    @property
    def is_not_prepared(self) -> bool:
        """Whether a prepared statement is not there: somebody took it out of the session."""
        return self.sqlstate == "26000"


def statement_error(report: ServerReport) -> TenancyError:
    """The error of a tenant's statement."""
    state = report.sqlstate
    if state in (UNBOUND, INVALID_BINDING):
        return TenancyError("the runtime's binding of a session was refused", state)
    if state in (STALE_BINDING, CLOSED_FENCE):
        return PlacementChangedError(sqlstate=state)
    if state == CANCELLED:
        return StatementTimeoutError(
            "the statement was cancelled from outside: it went over a limit of the tenant, or the "
            "server's administrator did it; nothing was done",
            state,
        )
    if state == "53100":
        return DiskFullError(sqlstate=state)
    if report.fatal or state == TOO_MANY_CONNECTIONS or state[:3] in _SERVER_IS_AWAY:
        return ServerUnavailableError("the PostgreSQL server ended the session", state)
    kind = _KINDS.get(state) or _KINDS.get(state[:2]) or StatementError
    return kind(_told(report, numbered=kind is ParameterError), state)


def connection_error(error: BaseException, what: str) -> TenancyError:
    """The error of an attempt to connect to `what`; nothing was done."""
    match error:
        case asyncpg.PostgresError() if error.sqlstate in REFUSED_LOGINS:
            # The role or the database is gone: the tenant moved, was deleted, or something is wrong
            # there. Who asks the catalog knows which.
            return PlacementChangedError(sqlstate=error.sqlstate)
        case asyncpg.PostgresError():
            full = getattr(error, "server_source_function", None) == _LOGIN_ROUTINE
            kind = LoginFullError if full else ServerUnavailableError
            return kind(f"{what} refuses connections", error.sqlstate)
        case _:
            return ServerUnavailableError(f"{what} does not answer")


def driver_error(error: BaseException, *, wrote: bool) -> TenancyError:
    """The error of a statement of the runtime's own, through the driver.

    `wrote` says that it may have changed something when the connection broke.
    """
    match error:
        case TenancyError():
            return error
        case asyncpg.PostgresConnectionError() | asyncpg.InterfaceError() | OSError():
            if wrote:
                return OutcomeUnknownError("the connection broke during a change; look first")
            return ServerUnavailableError("the connection to the PostgreSQL server broke")
        case asyncpg.PostgresError():
            return statement_error(ServerReport.of_driver(error))
        case _:
            return TenancyError()


def migration_text(error: asyncpg.PostgresError) -> str:
    """What PostgreSQL says of a migration: its message, detail and hint, each one a sentence.

    The tenant that it is about is told after the message, as `(tenant number N)`: the number is in
    the notes of the error, or in the detail, where it is the value of a column no tenant sees.
    """
    report = ServerReport.of_driver(error)
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    key = _KEY.search(report.detail or "")
    # The rows of tenant 0 are those of a reference, and nobody's.
    if key is not None and not notes and int(key[2]) > 0:
        notes = [f"tenant number {key[2]}"]
    first = report.message.rstrip(".") + "".join(f" ({note})" for note in notes)
    sentences = (
        text if text.endswith((".", "?", "!")) else f"{text}."
        for text in (first, *_explanations(report))
    )
    return " ".join(sentences)[:_DETAIL_CHARS_MAX]


#: Classes and codes of the SQL standard's and PostgreSQL's errors (manual, appendix A).
_KINDS: Final[dict[str, type[TenancyError]]] = {
    "22": ParameterError,
    "22012": StatementError,  # Division by zero and its kin come from the data.
    "2201B": StatementError,
    "2201W": StatementError,
    "2201X": StatementError,
    "2201E": StatementError,
    "2201F": StatementError,
    "23": ConstraintError,
    "40001": SerializationError,
    "40P01": SerializationError,
    "42501": StatementForbiddenError,
    "42601": StatementSyntaxError,
    "42804": StatementError,
    "42P08": ParameterError,
    "42P18": ParameterError,
    "08P01": ParameterError,
}
#: 08 connection exceptions apart, the first three characters of what ends a session.
_SERVER_IS_AWAY: Final = ("57P", "080")

_QUALIFIER = re.compile(r'\bt_[0-9a-f]{20}\.|"t_[0-9a-f]{20}"\.')
_NAME = re.compile(r"\b(?:t_[0-9a-f]{20}|tenancy_(?:rows|owner|control))\b")
# The columns end where the values begin; an index on expressions has parentheses of its own.
_KEY = re.compile(r"[Kk]ey \(tenant_id(?:, (.*?))?\)=\((-?\d+)(?:, )?")
_PARAMETER_IN_CONTEXT = re.compile(r"portal.* parameter \$(\d+)")
_FAILING_ROW = "Failing row contains"


def _told(report: ServerReport, *, numbered: bool) -> str:
    """PostgreSQL's message, with its detail and hint, as a plain database would give them."""
    text = without_runtime(report.message)
    position = _PARAMETER_IN_CONTEXT.search(report.context or "") if numbered else None
    if position is not None:
        text = f"parameter ${position[1]}: {text}"
    for more in _explanations(report):
        text += f" ({more.rstrip('.')})"
    return text[:_DETAIL_CHARS_MAX]


def _explanations(report: ServerReport) -> Iterator[str]:
    """The detail and the hint, as a plain database would give them."""
    for more in (report.detail, report.hint):
        if more is None or more.startswith(_FAILING_ROW):
            continue
        told = without_runtime(_without_tenant(more))
        # What still speaks of the runtime's column has no meaning at a plain database.
        if TENANT_COLUMN not in told:
            yield told


def _without_tenant(text: str) -> str:
    """`Key (tenant_id, email)=(7, a@b)` without the first column."""

    def shorter(found: re.Match[str]) -> str:
        word = found[0][:3]
        return f"{word} ({found[1]})=(" if found[1] else word + " (every row)=("

    return _KEY.sub(shorter, text)


def without_runtime(text: str) -> str:
    """`text` without the opaque names of schemas, databases and roles."""
    return _NAME.sub("tenant", _QUALIFIER.sub("", text))
