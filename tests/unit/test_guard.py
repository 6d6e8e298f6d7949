"""What the guard says about statements that tenants may run, and how it refuses the rest."""

from __future__ import annotations

import inspect
import sys
import threading

import pytest

from tenancy.data_isolation.core.errors import (
    RequestTooLargeError,
    StatementError,
    StatementForbiddenError,
    StatementSyntaxError,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

USERS = VisibleRelation(
    name="users", columns=("id", "name", "email"), primary_key=("id",), runs_code=False
)
AUDITED = VisibleRelation(name="audited", columns=("id",), primary_key=("id",), runs_code=True)
REPORT = VisibleRelation(
    name="report", columns=("id", "total"), hidden=False, view=True, runs_code=False
)
SCHEMA = VisibleSchema(
    relations={relation.name: relation for relation in (USERS, AUDITED, REPORT)},
    functions=frozenset({"tax", "lower"}),
    types=frozenset({"mood"}),
)
TABLES_ONLY = VisibleSchema(relations=SCHEMA.relations)


@pytest.fixture
def guard() -> Guard:
    return Guard(settings=Settings(), schema=TABLES_ONLY)


# What a statement is


@pytest.mark.parametrize(
    ("query", "kind", "returns_rows"),
    [
        ("select 1", StatementKind.READ, True),
        ("values (1)", StatementKind.READ, True),
        ("table users", StatementKind.READ, True),
        ("with w as (select 1) select * from w", StatementKind.READ, True),
        ("select id from users for update", StatementKind.WRITE, True),
        ("select id from users for key share", StatementKind.WRITE, True),
        ("select (select id from users limit 1 for share)", StatementKind.WRITE, True),
        ("with w as (delete from users returning id) select * from w", StatementKind.WRITE, True),
        ("insert into users (id) values (1)", StatementKind.WRITE, False),
        ("insert into users (id) values (1) returning id", StatementKind.WRITE, True),
        ("update users set name = 'x'", StatementKind.WRITE, False),
        ("delete from users", StatementKind.WRITE, False),
        ("merge into users using report r on true when matched then delete", "write", False),
    ],
)
def test_kind_and_rows(guard: Guard, query: str, kind: StatementKind, returns_rows: bool):
    statement = guard.check(query)

    assert (statement.kind, statement.returns_rows) == (kind, returns_rows)


def test_the_text_passes_as_it_came_when_nothing_had_to_change(guard: Guard):
    query = "  SELECT id,name -- a comment\n FROM users   WHERE id=$1 ;"

    statement = guard.check(query)

    assert statement.text == statement.source == query
    assert statement.tables == {"users"}
    assert statement.functions == frozenset()


def test_tables_and_functions_are_named_wherever_they_stand(guard: Guard):
    statement = guard.check(
        "with users as (select count(*) as n from users) select upper(max(r.total)::text) from"
        " report r where exists (select from audited) and r.id in (select n from users)"
    )

    assert statement.tables == {"users", "report", "audited"}
    assert statement.functions == {"count", "upper", "max"}


def test_statements_that_differ_in_values_have_one_fingerprint(guard: Guard):
    one = guard.check("select id from users where id = 1")

    assert one.fingerprint == guard.check("SELECT id FROM users WHERE id = 25").fingerprint
    assert one.fingerprint != guard.check("select id from users where name = '1'").fingerprint


@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("select upper(name) from users", True),
        ("select * from report", True),
        ("insert into users (id) values (1)", True),
        ("select id from audited", False),
        ("insert into audited values (1)", False),
        ("select tax(1)", False),
        ("select lower('A')", False),  # The schema has a function of that name too.
        ("select pg_catalog.lower('A')", True),
        ("select 'x'::mood", False),
        ("select (row(1)).tax", False),
        ("select s.tax from (select 1 as one) s", False),
    ],
)
def test_plain_is_what_runs_no_code_of_the_schema(query: str, plain: bool):
    statement = Guard(settings=Settings(), schema=SCHEMA).check(query)

    assert statement.plain is plain


def test_a_function_of_the_schema_may_write(guard: Guard):
    with_functions = Guard(settings=Settings(), schema=SCHEMA)

    assert with_functions.check("select tax(1)").kind == StatementKind.WRITE
    assert with_functions.check("select 'x'::mood").kind == StatementKind.READ
    with pytest.raises(StatementForbiddenError, match='"tax" is not available'):
        guard.check("select tax(1)")


def test_further_functions_are_allowed_and_taken_to_run_code():
    guard = Guard(settings=Settings(), extra_functions=lambda: frozenset({"similarity"}))

    statement = guard.check("select similarity('a', 'b')")

    assert statement.functions == {"similarity"}
    assert not statement.plain


# Refusals


@pytest.mark.parametrize(
    ("query", "spelled"),
    [
        ("EXPLAIN select 1", "EXPLAIN is refused"),
        ("/* x */ copy users to stdout", "COPY is refused"),
        ("Set Role x", "SET ROLE is refused"),
        ("create index on users (id)", "CREATE INDEX is refused"),
        ("begin", "BEGIN is refused"),
        ("listen channel", "LISTEN is refused"),
        ("do $$ begin end $$", "DO is refused"),
    ],
)
def test_a_refused_statement_is_named_with_what_is_allowed(guard: Guard, query: str, spelled: str):
    with pytest.raises(StatementForbiddenError) as refused:
        guard.check(query)

    assert refused.value.detail.startswith(spelled)
    assert "tenants may run SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE and MERGE" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "holds no statement"),
        (" \n\t", "holds no statement"),
        ("-- nothing\n/* at all */", "holds no statement"),
        (";;", "holds no statement"),
        ("select 1; select 2", "2 statements.*line 1, column 11"),
        ("select 1;\n\n  select 2;", "2 statements.*line 3, column 3"),
        ("select 'a\x00b'", "NUL character at line 1, column 10"),
        ("select '\ud800'", "surrogate pair at line 1, column 9"),
        ("select 'ü',\n  form t u", r'at or near "u" \(line 2, column 10\)'),
        ("select é frm\n  from", r"at end of input \(line 2, column 7\)"),
        ("select 'open", "unterminated quoted string"),
        ("select /* open", "unterminated /\\* comment"),
        ("select $1 +", "at end of input"),
        ("select 123abc", "trailing junk after numeric literal"),
    ],
)
def test_what_is_not_one_statement_is_a_syntax_error(guard: Guard, query: str, message: str):
    with pytest.raises(StatementSyntaxError, match=message):
        guard.check(query)


def test_one_statement_with_semicolons_around_it_is_one(guard: Guard):
    assert guard.check("; select 1 ;; -- end").text == "; select 1 ;; -- end"


def test_what_is_no_text_is_a_syntax_error(guard: Guard):
    with pytest.raises(StatementSyntaxError, match="is a list, not text"):
        guard.check(["select 1"])  # type: ignore[arg-type]


def test_a_statement_has_a_limit_in_bytes():
    guard = Guard(settings=Settings(statement_bytes_max=21))

    assert guard.check("select 'äöü456789'")
    with pytest.raises(RequestTooLargeError, match="23 bytes; 21 are allowed"):
        guard.check("select 'äöü456789ß'")


@pytest.mark.parametrize(
    "query",
    [
        "select " + "+".join(["1"] * 60_000),
        "select 1" + "::int" * 40_000,
        " union ".join(["select 1, 2"] * 12_000),
        "select 1 from users" + " join users on true" * 10_000,
        "select " + "(" * 30_000 + "1" + ")" * 30_000,
        "select " + "not " * 50_000 + "true",
        "select " + "- " * 30_000 + "1",
        "select " + "(select " * 20_000 + "1" + ")" * 20_000,
        "select " + "array[" * 30_000 + "1" + "]" * 30_000,
        "select " + "case when true then " * 8_000 + "1" + " end" * 8_000,
        "select " + "lower(" * 30_000 + "'a'" + ")" * 30_000,
        "select 1 from " + "(select 1 from " * 10_000 + "users" + ") x" * 10_000,
        "select " + "+".join(["1"] * 2_000),
        "select " + "(select " * 200 + "1" + ")" * 200,
        "select " + "(" * 60_000,
        "select " + ")" * 60_000,
    ],
    ids=range(16),
)
def test_deep_nesting_is_an_error_and_no_crash(guard: Guard, query: str):
    with pytest.raises(StatementSyntaxError, match=r"nests too deeply|syntax error"):
        guard.check(query)


@pytest.mark.parametrize(
    "query",
    [
        "select " + "+".join(["1"] * 40),
        "select " + ", ".join(["1 + 2 * 3"] * 2_000),
        "select id from users where " + " or ".join(["id = 1"] * 1_000),
        "insert into users (id) values " + ", ".join(["(1 + 1)"] * 2_500),
        "select id from users where id in (" + ", ".join(["1"] * 10_000) + ")",
    ],
    ids=range(5),
)
def test_wide_statements_are_not_deep(guard: Guard, query: str):
    assert guard.check(query).text == query


def test_a_deep_caller_gets_an_error_of_ours_too():
    """Wherever in the guard Python's own limit is met, what leaves it is an error of ours."""
    query = "select " + "+".join(["1"] * 40)
    met = set()

    def at_depth(left: int) -> None:
        if left:
            at_depth(left - 1)
            return
        guard = Guard(settings=Settings())
        try:
            guard.check(query)
        except StatementSyntaxError as error:
            met.add(error.detail)

    used = len(inspect.stack())
    for free in range(20, 100, 5):
        at_depth(sys.getrecursionlimit() - used - free)

    assert met == {"the statement nests too deeply; split it"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * from app.users", '"app.users" names a schema; name the table alone'),
        ("select * from pg_class", '"pg_class" is not a table of tenants'),
        ("select * from tenancy_x", "belong to PostgreSQL and to the runtime"),
        ("with pg_class as (select 1) select 1", "WITH query cannot be called"),
        ("select users.id.x from users", "names a schema"),
        ("select pg_sleep(1)", r'function "pg_sleep" is not available.*line 1, column 8'),
        ("select x.f(1)", 'function "x.f" names a schema'),
        ("select '1'::regclass", 'type "regclass" is not available'),
        ("select null::users", 'row type of "users" cannot be used'),
        ("select current_user", "CURRENT_USER is not available.*differs between isolation"),
        ("select tenant_id from users", "kept by the runtime"),
        ("select ctid from users", "system column"),
        ("select xmlcomment('a')", '"xmlcomment" is not available'),
        ("select xmlelement(name a)", "use JSON"),
        ("select * from users tablesample system (1)", "TABLESAMPLE reads pages"),
        ("delete from users where current of c", "cursors are not available"),
        ("select id into x from users", "SELECT INTO makes a table"),
        ("insert into users select * from json_populate_record(row(1), '{}')", "needs a column"),
        ("insert into report (id) values (1) on conflict (id) do nothing", '"report" is a view'),
        ("delete from users returning old", '"old" as a whole row'),
        ("select to_jsonb(u) from users u(a, b)", '"u" as a whole row'),
        (
            "select u.id, u.name from users u natural join report group by u.id",
            "list all columns in GROUP BY",
        ),
    ],
)
def test_a_refusal_names_what_and_says_what_to_do(guard: Guard, query: str, message: str):
    with pytest.raises(StatementForbiddenError, match=message):
        guard.check(query)


@pytest.mark.parametrize(
    ("query", "sqlstate"),
    [
        ("select * from missing", "42P01"),
        ("insert into missing values (1)", "42P01"),
        ("with w as (select 1) delete from w", "42P01"),
        ("select users.missing from users", "42703"),
        ("select * from users, report users", "42712"),
        ("update users set name = 'x' from users", "42712"),
        ("insert into users values (1, 'a', 'b', 4)", "42601"),
        ("select $2", "42P02"),
        ("select $0", "42P02"),
    ],
)
def test_what_does_not_exist_has_the_code_of_postgresql(guard: Guard, query: str, sqlstate: str):
    with pytest.raises(StatementError) as refused:
        guard.check(query)

    assert refused.value.sqlstate == sqlstate


# Rewriting; tests/integration holds the answers against those of tables without the column


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("select * from users", "SELECT users.id, users.name, users.email FROM users"),
        ("select u.* from users u", "SELECT u.id, u.name, u.email FROM users u"),
        (
            "select * from users natural join report",
            "SELECT * FROM (SELECT id, name, email FROM users) users NATURAL JOIN report",
        ),
        (
            "select row_to_json(u) from users u",
            "SELECT row_to_json(u) FROM (SELECT id, name, email FROM users) u",
        ),
        (
            "select * from users u(key)",
            "SELECT * FROM (SELECT id, name, email FROM users) u(key)",
        ),
        ("insert into users values (1)", "INSERT INTO users (id) VALUES (1)"),
        (
            "insert into users (id) values (1) on conflict (email) where id > 1 do nothing",
            "INSERT INTO users (id) VALUES (1)"
            " ON CONFLICT (tenant_id, email) WHERE id > 1 DO NOTHING",
        ),
        (
            "update users set name = $1 returning *",
            "UPDATE users SET name = $1 RETURNING users.id, users.name, users.email",
        ),
        (
            "delete from users returning to_json(users)",
            "DELETE FROM users RETURNING to_json((SELECT users FROM"
            " (SELECT users.id, users.name, users.email) users))",
        ),
        (
            "select id, name from users group by id",
            "SELECT id, name FROM users GROUP BY id, users.tenant_id",
        ),
    ],
)
def test_a_statement_that_would_notice_the_hidden_column_is_changed(
    guard: Guard, query: str, text: str
):
    assert guard.check(query).text == text


@pytest.mark.parametrize(
    "query",
    [
        "select * from report",
        "select report from report",
        "select * from (select id from users) s",
        "select count(*) from users",
        "select id, count(name) from users group by id",
        "insert into users (id) values (1) on conflict do nothing",
        "insert into users (id) values (1) on conflict on constraint users_pkey do nothing",
        "insert into users default values",
        "select users from (select 1 as users) s",
    ],
)
def test_a_statement_that_would_not_notice_is_left_alone(guard: Guard, query: str):
    assert guard.check(query).text == query


# The cache


def test_the_same_text_is_read_once(guard: Guard):
    assert guard.check("select * from users") is guard.check("select * from " + "users")


def test_a_refusal_is_cached_and_raised_anew(guard: Guard):
    errors = []
    for _ in range(2):
        with pytest.raises(StatementForbiddenError) as refused:
            guard.check("select pg_sleep(1)")
        errors.append(refused.value)

    assert errors[0] is not errors[1]
    assert errors[0].args == errors[1].args


def test_another_version_of_the_schema_is_another_answer(guard: Guard):
    wider = VisibleSchema(
        relations={"users": VisibleRelation(name="users", columns=("id", "name", "email", "age"))}
    )
    before = guard.check("select * from users")

    assert "users.age" in guard.check("select * from users", schema=wider).text
    assert guard.check("select * from users") is before

    guard.reset(wider)
    assert "users.age" in guard.check("select * from users").text


def test_the_cache_is_bounded_and_forgets_what_was_not_used_lately():
    guard = Guard(settings=Settings(guard_cache_entries=2))
    kept, dropped = guard.check("select 1"), guard.check("select 2")

    assert guard.check("select 1") is kept
    guard.check("select 3")

    assert guard.check("select 1") is kept
    assert guard.check("select 2") is not dropped


def test_the_cache_is_bounded_in_bytes():
    guard = Guard(settings=Settings(guard_cache_bytes_max=20_000))
    small, large = "select 1", "select '" + "x" * 10_000 + "'"

    assert guard.check(small) is guard.check(small)
    assert guard.check(large) is not guard.check(large)
    assert guard.check(small) is guard.check(small)


def test_a_long_text_is_slow_until_it_is_known(guard: Guard):
    query = "select id from users where id in (" + ", ".join(["1"] * 10_000) + ")"

    assert guard.is_slow(query)
    guard.check(query)
    assert not guard.is_slow(query)
    assert not guard.is_slow("select 1")


def test_threads_may_share_a_guard():
    guard = Guard(settings=Settings(guard_cache_entries=8), schema=TABLES_ONLY)
    failures: list[str] = []

    def work(offset: int) -> None:
        for number in range(150):
            query = f"select * from users where id = {(number * 7 + offset) % 20}"
            if not guard.check(query).text.endswith(query[query.index("where") + 6 :]):
                failures.append(query)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
