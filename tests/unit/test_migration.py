"""Reading migrations and cutting them into statements."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    MigrationConflictError,
    SchemaRefusedError,
)
from tenancy.data_isolation.engine.migration import (
    Migration,
    StatementSort,
    in_order,
    parse_migration,
    read_migrations,
)


def _migration(sql: str) -> Migration:
    return Migration(number=1, name="first", sql=sql)


def _write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)
    return directory


def test_files_become_migrations_in_the_order_of_their_numbers(tmp_path):
    _write(tmp_path, **{"0010_later": "create table b (id int primary key)", "0002_a-b": "x"})
    (tmp_path / "notes.txt").write_text("no migration")

    found = read_migrations(tmp_path)

    assert [(item.number, item.name, item.sql) for item in found] == [
        (2, "a-b", "x"),
        (10, "later", "create table b (id int primary key)"),
    ]


def test_the_checksum_is_that_of_the_text():
    assert _migration("é").checksum == hashlib.sha256("é".encode()).digest()


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "1_a.sql").write_bytes(b"\xef\xbb\xbfupdate t set a = 1")

    assert read_migrations(tmp_path)[0].sql == "update t set a = 1"


@pytest.mark.parametrize("name", ["first", "1-first", "1_", "x1_first", "1_a b"])
def test_a_file_with_another_name_is_refused(tmp_path, name):
    _write(tmp_path, **{name: ""})

    with pytest.raises(InvalidInputError, match=name):
        read_migrations(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "1_a.sql").write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidInputError, match=r"1_a\.sql"):
        read_migrations(tmp_path)


def test_what_is_no_directory_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="not a directory"):
        read_migrations(tmp_path / "missing")


def test_two_migrations_of_one_number_are_refused(tmp_path):
    _write(tmp_path, **{"1_a": "", "01_b": ""})

    with pytest.raises(MigrationConflictError, match="number 1"):
        read_migrations(tmp_path)


def test_the_same_migration_twice_is_one():
    assert in_order([_migration("x"), _migration("x")]) == (_migration("x"),)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "a"), (2**31, "a"), (1, ""), (1, "a b"), (1, "-")]
)
def test_a_migration_without_a_usable_number_or_name_cannot_be_made(number, name):
    with pytest.raises(InvalidInputError):
        Migration(number=number, name=name, sql="")


def test_statements_keep_their_text_and_know_their_line_and_sort():
    sql = (
        "-- the customers; all of them\n"
        "create table c (id int primary key, n text default ';');\n"
        "\n"
        "/* é */ insert into c values (1, $$;$$);;\n"
        "  update c\n   set n = 'x' -- end"
    )

    found = parse_migration(_migration(sql))

    assert [(item.line, item.sort) for item in found] == [
        (2, StatementSort.DEFINITION),
        (4, StatementSort.DATA),
        (5, StatementSort.DATA),
    ]
    assert found[0].text == "create table c (id int primary key, n text default ';')"
    assert found[1].text == "insert into c values (1, $$;$$)"
    assert found[2].text == "update c\n   set n = 'x' -- end"


def test_all_refusals_come_together_with_kind_name_line_and_reason():
    sql = (
        "create table a (id int primary key);\nselect 1;\n\ngrant select on a to x;\ndrop schema s;"
    )

    with pytest.raises(SchemaRefusedError) as caught:
        parse_migration(_migration(sql))

    lines = str(caught.value).splitlines()
    assert lines[0] == "migration 1 (first) is refused; nothing was changed:"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["line 2", "SELECT"],
        ["line 4", "GRANT"],
        ["line 5", "DROP SCHEMA s"],
    ]


def test_a_long_list_of_refusals_is_cut():
    with pytest.raises(SchemaRefusedError, match="and 80 more"):
        parse_migration(_migration("select 1;" * 100))


def test_text_that_is_no_sql_is_refused_with_its_place():
    with pytest.raises(SchemaRefusedError, match=r"migration 1 \(first\): .*line 2, column 1"):
        parse_migration(_migration("select 1;\nsurely not"))


@pytest.mark.parametrize("sql", ["", " \n", "-- later", "/* nothing */ ;;\n-- yet"])
def test_a_migration_without_a_statement_is_refused(sql):
    with pytest.raises(SchemaRefusedError, match=r"^migration 1 \(first\) holds no statement"):
        parse_migration(_migration(sql))
