"""Placeholders and the values for them."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.errors import (
    ParameterError,
    StatementForbiddenError,
    StatementSyntaxError,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.placeholders import number_placeholders
from tenancy.data_isolation.engine.statement import Statement


def check(query: str) -> Statement:
    return Guard(settings=Settings()).check(query)


@pytest.mark.parametrize(
    ("query", "text", "names"),
    [
        ("select :a", "select $1", ("a",)),
        ("select :a, :b, :a", "select $1, $2, $1", ("a", "b")),
        ("select :a::int", "select $1::int", ("a",)),
        ("select 'ü', :käse", None, None),
        ("select 'ü', :a", "select 'ü', $1", ("a",)),
        ("select :user, :order, :on", "select $1   , $2    , $3 ", ("user", "order", "on")),
        ("select 1 where 1=:a and 2>=:b", "select 1 where 1=$1 and 2>=$2", ("a", "b")),
        ("select 1 where 1 in (:a,:b)", "select 1 where 1 in ($1,$2)", ("a", "b")),
        ("select ':a', \":b\", $$ :c $$", None, None),
        ("select e':a\\':b', :c", "select e':a\\':b', $1", ("c",)),
        ("select 1 -- :a\n/* :b /* :c */ */", None, None),
        ("select '1'::int", None, None),
        ("select (array[1,2,3])[1:2]", None, None),
        ("select (array[1,2,3])[n:m], :n", "select (array[1,2,3])[n:m], $1", ("n",)),
        ("select (array[1,2,3])[1 :m]", None, None),
        ("select (array[1,2,3])[:i]", "select (array[1,2,3])[$1]", ("i",)),
        ("select (array[1,2,3])[:i::int]", "select (array[1,2,3])[$1::int]", ("i",)),
        ("select (array[1,2,3])[:i:m]", "select (array[1,2,3])[$1:m]", ("i",)),
        ("select (array[1,2,3])[:i : :j]", "select (array[1,2,3])[$1 : $2]", ("i", "j")),
        ("select json_object('k':v)", None, None),
        ("select json_object('k': :v)", "select json_object('k': $1)", ("v",)),
        ("select json_object(k:v)", None, None),
        ("select json_object(:k:v)", "select json_object($1:v)", ("k",)),
        ("select f(a := :b)", "select f(a := $1)", ("b",)),
        ("select f(a:=b)", None, None),
        ("select 1 limit :n offset :m", "select 1 limit $1 offset $2", ("n", "m")),
        ("select : a", None, None),
        ('select :"a"', None, None),
        ("select :1", None, None),
    ],
)
def test_names_become_numbers(query: str, text: str | None, names: tuple[str, ...] | None):
    numbered = number_placeholders(query)

    assert numbered.names == names
    assert numbered.text == (text or query)


def test_positions_are_those_of_the_text_as_it_came():
    with pytest.raises(StatementSyntaxError, match=r'at or near "x" \(line 1, column 25\)'):
        check("select :customer, 'a' a x")


def test_the_two_kinds_do_not_mix():
    with pytest.raises(StatementSyntaxError, match=r"mixes \$n and :name .*line 1, column 12"):
        check("select :a, $1")


@pytest.mark.parametrize(
    ("query", "params", "values"),
    [
        ("select $1, $2", [1, 2], (1, 2)),
        ("select $2, $1, $2", (1, 2), (1, 2)),
        ("select :b, :a, :b", {"a": 1, "b": 2}, (2, 1)),
        ("select 1", [], ()),
        ("select 1", (), ()),
        ("select 1", {}, ()),
        ("select 1", None, ()),
        ("select $1", [None], (None,)),
        ("select :a", {"a": [1, 2]}, ([1, 2],)),
    ],
)
def test_values_are_bound_in_order(query: str, params: object, values: tuple[object, ...]):
    assert check(query).bind(params) == values


@pytest.mark.parametrize(
    ("query", "params", "message"),
    [
        ("select $1, $2", [1], "has 2 placeholders, but 1 value came"),
        ("select $1", [1, 2], "has 1 placeholder, but 2 values came"),
        ("select 1", [1], "has no placeholders, but 1 value came"),
        ("select $1", None, "has 1 placeholder, but no values came"),
        ("select $1", {"a": 1}, "1 numbered placeholder; give the values as a list"),
        ("select $1", {}, "give the values as a list"),
        ("select :a, :b", [1, 2], r"give their values by name \(:a, :b\)"),
        ("select :a", (), "give their values by name"),
        ("select :a, :b", {"b": 1}, "no value came for :a"),
        ("select :a", {"a": 1, "c": 2, "d": 3}, "does not use :c, :d"),
        ("select 1", {"c": 2}, "does not use :c"),
        ("select :a", "text", "not str"),
        ("select $1", b"x", "not bytes"),
        ("select $1", 5, "not int"),
        ("select $1", {1}, "not set"),
    ],
)
def test_values_that_do_not_fit_are_named(query: str, params: object, message: str):
    with pytest.raises(ParameterError, match=message):
        check(query).bind(params)


def test_a_named_operation_may_bring_keys_that_its_statement_does_not_use():
    statement = check("select :a")

    assert statement.bind({"a": 1, "other": 2}, allow_extra=True) == (1,)
    with pytest.raises(ParameterError, match="no value came for :a"):
        statement.bind({"other": 2}, allow_extra=True)
    assert check("select 1").bind({"other": 2}, allow_extra=True) == ()


def test_a_message_stays_short_and_shows_no_value():
    names = {f"name_{number}": "secret" for number in range(100)}

    with pytest.raises(ParameterError) as refused:
        check("select 1").bind(names)

    assert "and 95 more" in refused.value.detail
    assert "secret" not in refused.value.detail


def test_numbers_have_no_gaps():
    with pytest.raises(StatementSyntaxError, match=r"uses \$3 but not \$2"):
        check("select $1, $3")


def test_parameters_have_a_limit():
    guard = Guard(settings=Settings(statement_params_max=3))

    assert guard.check("select $1, $2, $3").parameter_count == 3
    with pytest.raises(StatementForbiddenError, match=r"has \$4; it may have 3 parameters"):
        guard.check("select $1, $2, $3, $4")
    with pytest.raises(StatementForbiddenError, match="3 parameters"):
        guard.check("select :a, :b, :c, :d")
    with pytest.raises(StatementForbiddenError, match="3 parameters"):
        guard.check("select $2147483647")
