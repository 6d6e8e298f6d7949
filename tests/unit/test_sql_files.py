"""Statements come from files, and take identifiers only."""

from __future__ import annotations

from importlib import resources

import pytest

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.engine.sql_files import SqlFile


def test_a_statement_is_the_text_between_two_names():
    text = SqlFile("catalog.sql").statement("named_operation")

    assert text == "select sql from catalog.named_operation where name = $1;"


def test_identifiers_are_quoted_into_their_places():
    text = SqlFile("roles.sql").statement("grant_connect", database='a"b', role="r")

    assert text == 'grant connect on database "a""b" to "r";'


@pytest.mark.parametrize("given", [{}, {"database": "d"}, {"database": "d", "role": "r", "x": "y"}])
def test_a_missing_or_superfluous_identifier_is_an_error(given: dict[str, str]):
    with pytest.raises(ValueError, match="takes the identifiers"):
        SqlFile("roles.sql").statement("grant_connect", **given)


def test_what_cannot_be_an_identifier_is_refused():
    with pytest.raises(InvalidInputError):
        SqlFile("roles.sql").statement("grant_connect", database="x" * 64, role="r")


def test_an_unknown_statement_is_an_error():
    with pytest.raises(ValueError, match="has no statement named nothing"):
        SqlFile("roles.sql").statement("nothing")


def test_every_file_can_be_read_and_names_each_statement_once():
    folder = resources.files("tenancy.data_isolation.engine") / "sql"
    files = [item.name for item in folder.iterdir() if item.name.endswith(".sql")]

    assert {"roles.sql", "binding.sql", "catalog.sql", "audit.sql"} <= set(files)
    for name in files:
        assert SqlFile(name).names
