"""When advice about plans is given, by figures alone, and why a server could not be read."""

from __future__ import annotations

import asyncpg
import pytest

from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.plan_advice import (
    ADVICE_MAX,
    advised_memory,
    advised_planning,
    read_statements,
)
from tenancy.data_isolation.engine.statement_statistics import NotedStatement, trouble

SERVER = ServerName("main")
ROWS = RoleName("tenancy_rows")
SETTINGS = Settings(advice_plans_min=100)


def noted(text="select 1 from orders where id = $1", **figures):
    found = {"calls": 100, "total_s": 1.0, "blocks": 0, "role": ROWS, "query_id": 7} | figures
    return NotedStatement(server=SERVER, database=DatabaseName("tenancy"), text=text, **found)


def read(*statements):
    return read_statements(statements, ["orders", "users"])


def memory(*statements, types=(TenantType.STANDARD,), settings=SETTINGS):
    return advised_memory(read(*statements), {(SERVER, ROWS): frozenset(types)}, settings)


def test_a_statement_is_known_by_its_fingerprint_and_the_tables_that_it_names():
    (first, second) = read(
        noted("select 1 from orders o join users using (id) where o.id = $1 and kind = 'secret'"),
        noted("select 1 from orders o join users using (id) where o.id = 7 and kind = $1"),
    )
    assert first.fingerprint == second.fingerprint
    assert first.tables == {"orders", "users"}
    (other,) = read(noted("with orders as (select 1 from users) select * from orders"))
    assert other.tables == {"users"}


@pytest.mark.parametrize("text", ["", "select 1 from orders where", "select <insufficient"])
def test_a_text_that_cannot_be_read_gives_no_advice(text):
    assert [item for item in read(noted(text)) if item.tables] == []


def test_memory_is_advised_for_what_a_call_writes_to_files():
    (advice,) = memory(_spilled(1), settings=_with_memory("1048576"))
    assert advice.variable == ("TENANCY_STANDARD_STATEMENT_MEMORY_BYTES", str(2 << 20))
    assert advice.figures["temp_bytes_per_call"] == 1 << 20
    assert advice.undo.startswith("set TENANCY_STANDARD_STATEMENT_MEMORY_BYTES=1048576 ")


def test_no_memory_is_advised_where_none_was_missed_or_more_than_anybody_should_have():
    assert memory(noted()) == []
    # It has 8 MiB, which is enough for calls that write 4: they were before it had so much.
    assert memory(_spilled(4)) == []
    assert memory(_spilled(5))[0].figures["memory_bytes_needed"] == 16 << 20
    assert memory(_spilled(32))[0].figures["memory_bytes_needed"] == 64 << 20
    assert memory(_spilled(33)) == []


def test_of_tenants_that_share_a_login_each_type_that_may_have_too_little_is_told():
    # Premium ones have 16 MiB.
    types = (TenantType.FREE, TenantType.STANDARD, TenantType.PREMIUM)
    advice = memory(_spilled(6), types=types)
    assert sorted(item.variable for item in advice) == [
        ("TENANCY_FREE_STATEMENT_MEMORY_BYTES", str(16 << 20)),
        ("TENANCY_STANDARD_STATEMENT_MEMORY_BYTES", str(16 << 20)),
    ]


def test_logins_that_no_tenant_has_any_more_give_no_advice():
    assert memory(_spilled(6, role=RoleName("t_" + "0" * 20))) == []


def test_planning_is_told_where_it_takes_longer_than_running_each_time():
    told = {"plans": 100, "plan_s": 2.0}
    (advice,) = advised_planning(read(noted(**told)), SETTINGS)
    assert advice.figures == {
        "plans": 100,
        "plans_per_call": 1.0,
        "planning_s": 2.0,
        "execution_s": 1.0,
    }
    for other in ({"plans": 99}, {"calls": 200}, {"plan_s": 1.0}, {"plans": 0, "plan_s": 0.0}):
        assert advised_planning(read(noted(**told | other)), SETTINGS) == []


def test_advice_is_bounded_and_the_dearest_comes_first():
    many = [
        noted(f"select c{n} from orders", plans=100, plan_s=2.0 + n, query_id=n)
        for n in range(1, ADVICE_MAX + 10)
    ]
    advice = advised_planning(read(*many), SETTINGS)
    assert len(advice) == ADVICE_MAX
    assert advice[0].figures["planning_s"] == 2.0 + ADVICE_MAX + 9


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (asyncpg.ObjectNotInPrerequisiteStateError("not loaded"), "not_loaded"),
        (asyncpg.UndefinedFileError("no control file"), "not_available"),
        (asyncpg.UndefinedColumnError("total_exec_time"), "not_available"),
        (asyncpg.InsufficientPrivilegeError("no"), "not_permitted"),
        (asyncpg.QueryCanceledError("statement timeout"), "timed_out"),
        (asyncpg.LockNotAvailableError("lock timeout"), "timed_out"),
        (TimeoutError(), "timed_out"),
        (asyncpg.AdminShutdownError("bye"), "unreachable"),
        (asyncpg.ConnectionDoesNotExistError("gone"), "unreachable"),
        (asyncpg.InterfaceError("closed"), "unreachable"),
        (ConnectionResetError(), "unreachable"),
        (asyncpg.DiskFullError("'secret'"), "failed"),
    ],
)
def test_what_went_wrong_is_told_apart_and_quotes_nothing(error, state):
    found, hint = trouble(SERVER, error)
    assert found.value == state
    assert "main" in hint
    assert "secret" not in hint


def _spilled(mebibytes: int, **figures: object) -> NotedStatement:
    """A statement that writes so much to files with each call."""
    return noted(temp_blocks=100 * mebibytes * 128, **figures)


def _with_memory(size: str) -> Settings:
    tiers = Settings().tiers.changed({"TENANCY_STANDARD_STATEMENT_MEMORY_BYTES": size})
    return Settings(tiers=tiers)
