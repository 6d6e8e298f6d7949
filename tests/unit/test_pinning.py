"""What runs in a users' schema calls nothing by a name that users could give to something."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from asyncpg import introspection

from tenancy.data_isolation.core.identifiers import SchemaName, TenantNo
from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.move_table import MoveColumn, MoveTable
from tenancy.data_isolation.engine.pinning import loose, pinned
from tenancy.data_isolation.engine.sql_files import PINNED_FILES, SqlFile

#: Files that are not pinned, and why they need not be.
_ELSEWHERE = {
    # Looks of the doctor, on connections with nothing but pg_catalog in the search_path.
    "audit.sql",
    "audit_functions.sql",
    "audit_rights.sql",
    "audit_server.sql",
    "audit_shape.sql",
    "fingerprint.sql",
    "leftovers.sql",
    "mending.sql",
    "own_tables.sql",
    "shape_comparison.sql",
    "watchdog.sql",
    # What servers count of statements, on such connections to the maintenance database.
    "statistics.sql",
    # Setting up a server, on connections of that kind.
    "binding.sql",
    "databases.sql",
    "keeper.sql",
    "roles.sql",
    # The catalog's own connections are of that kind too, and those on which moves are recorded.
    "catalog.sql",
    "orchestration.sql",
    # In the session of a tenant's login, which is no admin's.
    "idempotency.sql",
    "size.sql",
    "types.sql",
}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_FOLDER = resources.files("tenancy.data_isolation.engine") / "sql"


def _statements(filename: str) -> dict[str, str]:
    file, found = SqlFile(filename), {}
    text = (_FOLDER / filename).read_text()
    for name in file.names:
        own = text.split(f"-- name: {name}\n")[1].split("-- name: ")[0]
        words = set(_PLACEHOLDER.findall(own))
        found[name] = file.statement(name, **dict.fromkeys(words, "thing"))
    return found


def test_each_file_is_pinned_or_has_a_reason():
    files = {item.name for item in _FOLDER.iterdir() if item.name.endswith(".sql")}

    assert files == PINNED_FILES | _ELSEWHERE
    assert not PINNED_FILES & _ELSEWHERE


@pytest.mark.parametrize("filename", sorted(PINNED_FILES))
def test_no_statement_of_a_pinned_file_looks_up_a_bare_name(filename):
    for name, text in _statements(filename).items():
        assert loose(text) == [], name


@pytest.mark.parametrize("filename", sorted(PINNED_FILES))
def test_literals_hold_texts_without_bare_calls(filename):
    """Texts that statements put together are sent as they are."""
    call = re.compile(r"(?<![\w.%])(setval|nextval|format|count|coalesce|quote_ident|array_agg)\(")
    for name, text in _statements(filename).items():
        for literal in re.findall(r"'((?:[^']|'')*)'", text):
            assert not call.search(literal), name


def test_what_a_move_asks_in_a_users_schema_is_pinned():
    own = MoveColumn(name="mood", type="mood", own_type=True)
    number = MoveColumn(name="id", type="bigint")
    text = MoveColumn(name='Odd "name', type="text")
    tenant = MoveColumn(name="tenant_id", type="bigint")
    table = MoveTable(
        label="source_0", name="notes", columns=(tenant, number, own, text), key=(number, own, text)
    )
    move, schema, tenant_no = MoveId("m_0"), SchemaName("app"), TenantNo(7)
    texts = [
        table.changed_rows(move, schema, tenant_no),
        table.chunk_end(schema, tenant_no, after=None, until=("1", "a", "\\ '"), rows=9),
        table.chunk_end(schema, tenant_no, after=("0", "a", ""), until=("1", "a", "b"), rows=9),
        table.chunk(move, schema, tenant_no, after=None, until=("1", "a", "\\ '")),
        table.chunk(move, schema, tenant_no, after=("0", "a", ""), until=("1", "a", "b")),
        table.highest_key(schema, tenant_no),
        table.remove_changed(schema, tenant_no),
        table.take(schema),
        *(
            table.digest(schema, tenant_no, notes=notes, only=only)
            for notes in (None, move)
            for only in (True, False)
        ),
    ]

    assert [loose(item) for item in texts] == [[]] * len(texts)


def test_what_the_driver_asks_about_types_can_be_pinned():
    assert loose(introspection.INTRO_LOOKUP_TYPES) != []
    assert loose(pinned(introspection.INTRO_LOOKUP_TYPES)) == []


@pytest.mark.parametrize(
    "text",
    [
        "select format('%I', a) from t",
        "select count(*) from t",
        "select a = b from t",
        "select - a from t",
        "select a in (1, 2) from t",
        "select a in (select b from t) from t",
        "select a = any ($1) from t",
        "select a is distinct from b from t",
        "select nullif(a, b) from t",
        "select a like 'x' from t",
        "select a between 1 and 2 from t",
        "select case a when 1 then 2 end from t",
        "select a::regclass from t",
        "select from pg_class",
        "update t set a = lower(b)",
        "create table t (a timestamptz default now())",
    ],
)
def test_every_form_is_seen_and_pinned(text):
    assert loose(text) != []
    assert loose(pinned(text)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "select a in (1, b) from t",
            "SELECT a OPERATOR(pg_catalog.=) 1 OR a OPERATOR(pg_catalog.=) b FROM t",
        ),
        (
            "select a not in (1, b) from t",
            "SELECT a OPERATOR(pg_catalog.<>) 1 AND a OPERATOR(pg_catalog.<>) b FROM t",
        ),
        (
            "select a not between 1 and 2 from t",
            "SELECT a OPERATOR(pg_catalog.<) 1 OR a OPERATOR(pg_catalog.>) 2 FROM t",
        ),
        (
            "select a + b * c = d from t",
            "SELECT (a OPERATOR(pg_catalog.+) (b OPERATOR(pg_catalog.*) c)) "
            "OPERATOR(pg_catalog.=) d FROM t",
        ),
        (
            "select nullif(a, b) from t",
            "SELECT CASE WHEN a OPERATOR(pg_catalog.=) b THEN NULL ELSE a END FROM t",
        ),
        ("with pg_x as (select 1) select from pg_x", "WITH pg_x AS (SELECT 1) SELECT FROM pg_x"),
        ("select app.format(a::app.text) from t", "select app.format(a::app.text) from t"),
    ],
)
def test_what_is_told_anew_means_the_same(text, expected):
    assert pinned(text) == expected
