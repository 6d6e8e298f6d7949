"""What PostgreSQL says becomes an error of ours: its class, what it tells and what it hides."""

from __future__ import annotations

import asyncpg
import pytest

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
from tenancy.data_isolation.engine.driver_errors import (
    ServerReport,
    connection_error,
    driver_error,
    migration_text,
    statement_error,
)


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("42601", StatementSyntaxError),
        ("42501", StatementForbiddenError),
        ("42P01", StatementError),
        ("42804", StatementError),
        ("42P08", ParameterError),
        ("42P18", ParameterError),
        ("08P01", ParameterError),
        ("22P02", ParameterError),
        ("22003", ParameterError),
        ("22021", ParameterError),
        ("22012", StatementError),
        ("23505", ConstraintError),
        ("23503", ConstraintError),
        ("23514", ConstraintError),
        ("23P01", ConstraintError),
        ("40001", SerializationError),
        ("40P01", SerializationError),
        ("57014", StatementTimeoutError),
        ("53100", DiskFullError),
        ("53300", ServerUnavailableError),
        ("57P01", ServerUnavailableError),
        ("57P03", ServerUnavailableError),
        ("08006", ServerUnavailableError),
        ("TN001", TenancyError),
        ("TN002", TenancyError),
        ("TN003", PlacementChangedError),
        ("TN004", PlacementChangedError),
        ("25006", StatementError),
        ("0A000", StatementError),
        ("P0001", StatementError),
        ("XX000", StatementError),
    ],
)
def test_the_class_follows_from_the_code_which_is_kept(sqlstate, kind):
    error = statement_error(ServerReport(sqlstate=sqlstate, message="no"))

    assert type(error) is kind
    assert error.sqlstate == sqlstate


def test_a_fatal_error_is_the_servers_not_the_statements():
    report = ServerReport.of_fields({"C": "42501", "V": "FATAL", "M": "go away"})

    assert type(statement_error(report)) is ServerUnavailableError


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            {
                "M": 'duplicate key value violates unique constraint "u"',
                "D": "Key (tenant_id, email)=(7, a@b) already exists.",
            },
            'duplicate key value violates unique constraint "u" (Key (email)=(a@b) already exists)',
        ),
        (
            {"M": "no", "D": 'Key (tenant_id, a, b)=(7, 1, 2) is not present in table "t".'},
            'no (Key (a, b)=(1, 2) is not present in table "t")',
        ),
        (
            {
                "M": "no",
                "D": "Key (tenant_id, r)=(7, [1,2)) conflicts with existing key "
                "(tenant_id, r)=(7, [1,3)).",
            },
            "no (Key (r)=([1,2)) conflicts with existing key (r)=([1,3)))",
        ),
        ({"M": "no", "D": "Failing row contains (7, 1, null)."}, "no"),
        (
            {"M": "no such column", "H": 'Perhaps you meant the column "users.tenant_id".'},
            "no such column",
        ),
        ({"M": "no", "H": "Cast it."}, "no (Cast it)"),
        (
            {"M": 'relation "t_00112233445566778899.users" does not exist'},
            'relation "users" does not exist',
        ),
        (
            {"M": "permission denied for schema t_00112233445566778899"},
            "permission denied for schema tenant",
        ),
        ({"M": 'role "tenancy_rows" may not'}, 'role "tenant" may not'),
    ],
)
def test_a_message_reads_as_at_a_plain_database(report, told):
    error = statement_error(ServerReport.of_fields({"C": "23505"} | report))

    assert error.detail == told


def test_a_parameters_position_is_named_when_postgresql_knows_it():
    report = ServerReport.of_fields(
        {"C": "22P02", "M": "invalid input syntax", "W": "unnamed portal parameter $3 = '...'"}
    )

    assert statement_error(report).detail == "parameter $3: invalid input syntax"


def test_a_message_is_bounded():
    report = ServerReport.of_fields({"C": "P0001", "M": "x" * 100_000})

    assert len(statement_error(report).detail) <= 1_000


def test_a_failed_attempt_to_connect_says_that_nothing_was_done():
    gone = connection_error(asyncpg.InvalidCatalogNameError("no"), "server 'main'")
    refused = connection_error(asyncpg.TooManyConnectionsError("full"), "server 'main'")
    silent = connection_error(OSError("secret address"), "server 'main'")

    assert type(gone) is PlacementChangedError
    assert type(refused) is type(silent) is ServerUnavailableError
    assert refused.sqlstate == "53300"
    assert "secret" not in silent.detail


def test_errors_of_the_driver_are_translated_by_what_may_have_happened():
    lost = asyncpg.ConnectionDoesNotExistError("gone")

    assert type(driver_error(lost, wrote=True)) is OutcomeUnknownError
    assert type(driver_error(lost, wrote=False)) is ServerUnavailableError
    assert type(driver_error(OSError(), wrote=True)) is OutcomeUnknownError
    unique = asyncpg.UniqueViolationError("no")
    assert type(driver_error(unique, wrote=True)) is ConstraintError
    ours = StatementError("ours")
    assert driver_error(ours, wrote=True) is ours
    assert type(driver_error(KeyError("x"), wrote=False)) is TenancyError


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        (
            "Key (tenant_id, item)=(7, anvil) is duplicated.",
            "no index (tenant number 7). Key (item)=(anvil) is duplicated.",
        ),
        (
            "Key (tenant_id, lower(item))=(7, anvil) is duplicated.",
            "no index (tenant number 7). Key (lower(item))=(anvil) is duplicated.",
        ),
        ("Key (tenant_id, item)=(0, anvil) is there.", "no index. Key (item)=(anvil) is there."),
        ("Duplicate keys exist.", "no index. Duplicate keys exist."),
        ("Failing row contains (7, secret).", "no index."),
        (None, "no index."),
    ],
)
def test_a_migration_is_told_with_the_detail_and_without_the_tenants_column(detail, told):
    fields = {"C": "23505", "M": "no index"} | ({"D": detail} if detail else {})
    error = asyncpg.PostgresError.new(fields)

    assert migration_text(error) == told


def test_the_tenant_whose_turn_it_was_is_told_once():
    error = asyncpg.PostgresError.new(
        {"C": "23505", "M": "twice", "D": "Key (tenant_id, a)=(7, 5) exists.", "H": "Look"}
    )
    error.add_note("tenant number 7")

    assert migration_text(error) == "twice (tenant number 7). Key (a)=(5) exists. Look."
