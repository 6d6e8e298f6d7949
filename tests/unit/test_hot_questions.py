"""What pinned tenants ask for the most: counted, bounded, and told to other processes."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Operation
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.hot_questions import HotQuestions
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

ACME, OTHER = TenantNo(1), TenantNo(2)
SCHEMA = VisibleSchema(
    relations={"a": VisibleRelation(name="a", columns=("id", "name"), primary_key=("id",))}
)


@pytest.fixture
def guard():
    return Guard(settings=Settings(), schema=SCHEMA)


@pytest.fixture
def hot():
    questions = HotQuestions(3)
    questions.pin({ACME: "token"})
    return questions


def asked(guard, hot, query, *params, times=1, tenant=ACME):
    for _ in range(times):
        hot.note(tenant, guard.check(query), params)


def test_what_is_asked_the_most_comes_first(guard, hot):
    asked(guard, hot, "select * from a where id = $1", 1, times=2)
    asked(guard, hot, "select * from a where id = $1", 2, times=5)
    asked(guard, hot, "select * from a where id = :id", 3, times=3)
    asked(guard, hot, "select name from a", times=1)
    assert hot.top(ACME) == [
        Operation(query="select * from a where id = $1", params=[2]),
        Operation(query="select * from a where id = :id", params={"id": 3}),
        Operation(query="select * from a where id = $1", params=[1]),
    ]


def test_only_pinned_tenants_are_noted_and_are_forgotten_with_their_pin(guard, hot):
    asked(guard, hot, "select * from a")
    asked(guard, hot, "select * from a", tenant=OTHER)
    assert ACME in hot
    assert OTHER not in hot
    assert hot.top(OTHER) == []
    hot.pin({OTHER: "another"})
    assert hot.top(ACME) == []
    hot.pin({ACME: "token"})
    assert hot.top(ACME) == []


def test_what_is_hot_now_replaces_what_was(guard, hot):
    for number in range(6):
        asked(guard, hot, "select * from a where id = $1", number, times=50)
    for _ in range(10):
        hot.cool_down()
    for number in range(100, 103):
        asked(guard, hot, "select * from a where id = $1", number, times=20)
    assert sorted(item.params[0] for item in hot.top(ACME)) == [100, 101, 102]


def test_another_process_learns_them(guard, hot):
    asked(guard, hot, "select * from a where name = $1", "é\n", times=3)
    asked(guard, hot, "select * from a where id = $1", 2**62, times=2)
    other = HotQuestions(3)
    other.pin({ACME: "token"})
    other.learn(ACME, hot.packed(ACME))
    assert other.top(ACME) == hot.top(ACME)
    assert other.packed(ACME) == hot.packed(ACME)
    # What it learned does not count against what it sees itself.
    asked(guard, other, "select name from a", times=9)
    assert other.top(ACME)[0].query == "select name from a"


@pytest.mark.parametrize(
    "packed", [b"", b"no json", b"[1]", b'[["select 1"]]', b"[[1, []]]", b'["ab"]', b"\xff", b"{}"]
)
def test_what_cannot_be_read_is_passed_over(hot, packed):
    hot.learn(ACME, packed)
    assert all(isinstance(item.query, str) for item in hot.top(ACME))
    hot.packed(ACME)


def test_what_another_process_is_told_has_room(guard, hot):
    query = "select * from a where name in ($1, $2, $3)"
    for number in range(3):
        asked(guard, hot, query, *(str(number) * 60_000 for _ in range(3)))
    assert 2 < len(hot.packed(ACME)) < 256 * 1024 + 2
    asked(guard, hot, "select * from a where id = $1", object(), times=5)
    asked(guard, hot, "select * from a where id = $1", Decimal("1.5"), times=5)
    hot.packed(ACME)


def test_long_texts_are_not_noted(guard, hot):
    asked(guard, hot, f"select * from a where name = '{'x' * 5_000}'")
    assert hot.top(ACME) == []
