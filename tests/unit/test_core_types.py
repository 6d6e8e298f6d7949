"""Identifiers and value objects refuse what they should not hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import IsolationLevel, TenantContext, TenantType
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.identifiers import (
    opaque_name,
    parse_tenant_id,
    parse_word,
    quote_identifier,
)


@pytest.mark.parametrize("text", ["a", "0", "acme", "tenant_123", "a-b_c", "x" * 63])
def test_a_tenant_id_is_taken_as_it_is(text):
    assert parse_tenant_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "-a", "_a", "A", "a b", "a.b", "é", "x" * 64, "a\n", "a\x00", None, 7, b"a"]
)
def test_anything_else_is_refused_with_the_rule(text):
    with pytest.raises(InvalidInputError, match="1 to 63 of a-z"):
        parse_tenant_id(text)


def test_a_long_bad_id_does_not_fill_the_message():
    with pytest.raises(InvalidInputError) as caught:
        parse_tenant_id("A" * 100_000)

    assert len(str(caught.value)) < 250


def test_a_word_of_ours_starts_with_a_letter():
    assert parse_word("eu-west", "region") == "eu-west"
    with pytest.raises(InvalidInputError, match="region '9x'"):
        parse_word("9x", "region")


def test_opaque_names_are_short_and_differ():
    names = {opaque_name() for _ in range(1000)}

    assert len(names) == 1000
    assert all(len(name) <= 63 and name.startswith("t_") for name in names)


@given(st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1, max_size=15))
def test_a_quoted_identifier_holds_no_lone_quote(name):
    quoted = quote_identifier(name)

    assert quoted[0] == quoted[-1] == '"'
    assert quoted[1:-1].replace('""', "") == name.replace('"', "")


@pytest.mark.parametrize("name", ["", "a\x00b", "é" * 40])
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused(name):
    with pytest.raises(InvalidInputError):
        quote_identifier(name)


def test_a_context_takes_enum_members_and_their_spelling():
    context = TenantContext(
        tenant_id="tenant_123", isolation_level="schema", tenant_type=TenantType.ENTERPRISE
    )

    assert context.isolation_level is IsolationLevel.SCHEMA
    assert context.tenant_type is TenantType.ENTERPRISE


def test_compliance_words_are_lower_case():
    assert TenantContext(tenant_id="a", compliance=["HIPAA"]).compliance == ("hipaa",)


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant_id": "A"},
        {"tenant_id": "a", "isolation_level": "galaxy"},
        {"tenant_id": "a", "tenant_type": "gold"},
        {"tenant_id": "a", "tenant_type": None},
        {"tenant_id": "a", "compliance": "hipaa"},
    ],
)
def test_a_context_refuses_what_it_does_not_know(fields):
    with pytest.raises(InvalidInputError):
        TenantContext(**fields)
