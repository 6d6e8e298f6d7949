"""Every error that crosses the public edge.

::

    TenancyError
    ├── InvalidInputError            a value that the caller gave is not acceptable          422
    ├── UnauthenticatedError         no credential, or one that is not valid                 401
    ├── AccessDeniedError            a valid credential that does not reach this far         403
    ├── NotFoundError                                                                        404
    │   ├── TenantNotFoundError
    │   ├── OperationNotFoundError
    │   ├── MoveNotFoundError
    │   ├── ProposalNotFoundError
    │   ├── ServerNotFoundError
    │   └── StrategyNotFoundError
    ├── ConflictError                                                                        409
    │   ├── MoveRefusedError         the plan of a move says what stands against it
    │   ├── TenantExistsError
    │   ├── TenantSuspendedError
    │   ├── IdempotencyConflictError
    │   └── MigrationConflictError
    ├── StatementError               the tenant's SQL or its parameters                      400
    │   ├── StatementSyntaxError
    │   ├── StatementForbiddenError                                                          403
    │   ├── ParameterError
    │   ├── ConstraintError                                                                  409
    │   └── SerializationError       retry the whole transaction                             409
    ├── SchemaError                  the tenant-neutral schema                               422
    │   ├── SchemaRefusedError
    │   └── MigrationFailedError
    ├── LimitError                   a limit of the tenant or of the runtime
    │   ├── StatementTimeoutError                                                            504
    │   ├── ResultTooLargeError                                                              413
    │   ├── RequestTooLargeError                                                             413
    │   ├── RateLimitedError                                                                 429
    │   └── OverloadedError                                                                  503
    ├── UnavailableError             something that is needed does not answer                503
    │   ├── ServerUnavailableError
    │   │   └── TransportError        TLS as it was asked for cannot be had
    │   ├── PlacementChangedError    the placement moved on; resolve it again
    │   ├── LoginRefusedError        PostgreSQL lets the tenant's login in no more
    │   └── DiskFullError                                                                    507
    ├── OutcomeUnknownError          the write may or may not have happened                  500
    └── SetupError                   the runtime cannot start as things are                  500
        ├── SettingError
        ├── UnsafeRoleError
        ├── UnsafeServerError
        └── EmbeddedServerError

Rules: the class docstring is the default text and tells the user what to do; an error holds no
secret; every class survives pickling, because it crosses process boundaries: all that an instance
holds goes through `args`.
"""

from __future__ import annotations

from typing import ClassVar, Final


class TenancyError(Exception):
    """Something went wrong inside the runtime; its log has the details."""

    #: Last part of the problem type URI (RFC 9457).
    slug: ClassVar[str] = "internal-error"
    #: HTTP status of the answer.
    status: ClassVar[int] = 500
    #: Whether the same request may succeed when it is sent again unchanged.
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str | None = None,
        sqlstate: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        text = detail or (type(self).__doc__ or "").split("\n", 1)[0]
        super().__init__(text, sqlstate, retry_after_s)
        #: What happened and what to do, in one or two sentences.
        self.detail = text
        #: Five characters where PostgreSQL gave an error code (manual, appendix A).
        self.sqlstate = sqlstate
        #: Seconds to wait before another attempt, when that is known.
        self.retry_after_s = retry_after_s

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        # Ray raises an error of another process as a class that it derives from the error's own,
        # with a remote traceback as its text. The text of an error of ours is its detail.
        cls.__str__ = TenancyError.__str__  # type: ignore[method-assign]

    def __str__(self) -> str:
        return self.detail


# What the caller gave


class InvalidInputError(TenancyError):
    """A value is not acceptable; correct it and try again."""

    slug, status = "invalid-input", 422


class UnauthenticatedError(TenancyError):
    """The request carries no valid credential; send `Authorization: Bearer <key or token>`."""

    slug, status = "unauthenticated", 401


class AccessDeniedError(TenancyError):
    """This credential does not allow that; use one with the scope that is needed."""

    slug, status = "access-denied", 403


class NotFoundError(TenancyError):
    """There is no such thing; list what exists and check the name."""

    slug, status = "not-found", 404


class TenantNotFoundError(NotFoundError):
    """There is no such tenant."""

    slug = "tenant-not-found"


class OperationNotFoundError(NotFoundError):
    """There is no such named operation, and no table that its name would act on."""

    slug = "operation-not-found"


class MoveNotFoundError(NotFoundError):
    """There is no such move."""

    slug = "move-not-found"


class ProposalNotFoundError(NotFoundError):
    """There is no such proposal."""

    slug = "proposal-not-found"


class ServerNotFoundError(NotFoundError):
    """No PostgreSQL server of that name or region is known to the runtime."""

    slug, status = "server-not-found", 422


class StrategyNotFoundError(NotFoundError):
    """There is no strategy of that name."""

    slug, status = "strategy-not-found", 422


class ConflictError(TenancyError):
    """The request does not fit the present state; look at it and decide again."""

    slug, status = "conflict", 409


class TenantExistsError(ConflictError):
    """A tenant of that name exists already with other properties."""

    slug = "tenant-exists"


class TenantSuspendedError(ConflictError):
    """The tenant is suspended, being created or being deleted; it takes no operations now."""

    slug = "tenant-suspended"


class MoveRefusedError(ConflictError):
    """The tenant cannot be moved there; nothing was started. The plan says what is against it."""

    slug = "move-refused"


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used before with another request; use a fresh key."""

    slug = "idempotency-conflict"


class MigrationConflictError(ConflictError):
    """A migration of that number exists already with another text; add a new one instead."""

    slug = "migration-conflict"


# The tenant's SQL

#: SQLSTATEs of a statement that names what is not there (manual, appendix A).
UNKNOWN_NAMES: Final = frozenset({"42P01", "42703", "42704", "42883", "3F000"})


class StatementError(TenancyError):
    """PostgreSQL refused the statement."""

    slug, status = "statement-error", 400


class StatementSyntaxError(StatementError):
    """The text is not one SQL statement of PostgreSQL's grammar."""

    slug = "statement-syntax"


class StatementForbiddenError(StatementError):
    """Tenants may not run this kind of statement or call this function."""

    slug, status = "statement-forbidden", 403


class ParameterError(StatementError):
    """The parameters do not fit the statement in number, name or type."""

    slug = "statement-parameters"


class ConstraintError(StatementError):
    """The rows would break a constraint of the schema."""

    slug, status = "constraint-violation", 409


class SerializationError(StatementError):
    """The transaction met a concurrent one and was undone; run the whole of it again."""

    slug, status, retryable = "serialization-failure", 409, True


class SchemaError(TenancyError):
    """The tenant-neutral schema cannot be used as it is."""

    slug, status = "schema-error", 422


class SchemaRefusedError(SchemaError):
    """The migration makes something that cannot be kept apart by tenant; nothing was changed."""

    slug = "schema-refused"


class MigrationFailedError(SchemaError):
    """The migration failed; what it changed where it failed was undone."""

    slug = "migration-failed"


# Limits


class LimitError(TenancyError):
    """A limit was reached."""

    slug, status = "limit-reached", 429


class StatementTimeoutError(LimitError):
    """The statement ran longer than its limit and was cancelled."""

    slug, status = "statement-timeout", 504


class ResultTooLargeError(LimitError):
    """The result has more rows or bytes than the limit; ask for less at a time."""

    slug, status = "result-too-large", 413


class RequestTooLargeError(LimitError):
    """The request is larger than the limit; send less at a time."""

    slug, status = "request-too-large", 413


class RateLimitedError(LimitError):
    """The tenant sends more than its limit; wait and try again."""

    slug, status, retryable = "rate-limited", 429, True


class OverloadedError(LimitError):
    """A queue is full; nothing was done. Wait and try again."""

    slug, status, retryable = "overloaded", 503, True


# Things that do not answer


class UnavailableError(TenancyError):
    """Something that this needs does not answer now; nothing was done. Try again later."""

    slug, status, retryable = "unavailable", 503, True


class ServerUnavailableError(UnavailableError):
    """The PostgreSQL server does not answer; nothing was done. Try again later."""

    slug = "server-unavailable"


class TransportError(ServerUnavailableError):
    """The server cannot be reached over TLS as it was asked for; nothing was sent to it."""

    slug, retryable = "transport-error", False


class PlacementChangedError(UnavailableError):
    """The tenant's placement changed meanwhile; nothing was done. Try again."""

    slug = "placement-changed"


class LoginRefusedError(UnavailableError):
    """PostgreSQL refuses the login that works for the tenant; an operator has to mend that."""

    slug, retryable = "login-refused", False


class DiskFullError(UnavailableError):
    """The server's disk is full; nothing was done. Free some space."""

    slug, status = "disk-full", 507


class OutcomeUnknownError(TenancyError):
    """The connection broke at a moment when a write may or may not have happened; look first."""

    slug = "outcome-unknown"


# Setting up


class SetupError(TenancyError):
    """The runtime cannot start as things are."""

    slug = "setup"


class SettingError(SetupError):
    """A setting has a value that cannot be used."""

    slug = "setting"


class UnsafeRoleError(SetupError):
    """A database role has rights that would let a tenant cross its boundary."""

    slug = "unsafe-role"


class UnsafeServerError(SetupError):
    """The PostgreSQL server has faults or settings by which a tenant could cross its boundary."""

    slug = "unsafe-server"


class EmbeddedServerError(SetupError):
    """The embedded server cannot be started or stopped."""

    slug = "embedded-server"
