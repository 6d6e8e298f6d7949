"""Which results may be kept, and what a write changes."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.repeatable import names_the_clock
from tenancy.data_isolation.engine.schema_snapshot import ColumnShape
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

COLUMNS = ("id", "name", "made", "day", "body")
SHAPES = (
    ColumnShape(name="id", type="integer"),
    ColumnShape(name="name", type="text"),
    ColumnShape(name="made", type="timestamp with time zone"),
    ColumnShape(name="day", type="date"),
    ColumnShape(name="body", type="jsonb"),
)


def relation(name, **options):
    given = {"columns": COLUMNS, "primary_key": ("id",), "shapes": SHAPES, "runs_code": False}
    return VisibleRelation(name=name, **{**given, **options})


SCHEMA = VisibleSchema(
    relations={
        item.name: item
        for item in (
            relation("a", acts_on=("b",)),
            relation("b", acts_on=("c",)),
            relation("c", acts_on=("a",)),
            relation("d"),
            relation("loud", runs_code=True),
            relation("above_loud", acts_on=("loud",)),
            relation("view", view=True),
            relation("shared", hidden=False),
            relation(
                "computed", shapes=(*SHAPES, ColumnShape(name="v", type="text", generated="v"))
            ),
        )
    },
    functions=frozenset({"own"}),
    types=frozenset({"mood"}),
)


@pytest.fixture
def guard():
    return Guard(settings=Settings(), schema=SCHEMA)


@pytest.mark.parametrize(
    "query",
    [
        "select * from a",
        "select a.id, count(*) from a join d using (id) where a.name = $1 group by a.id limit 3",
        "with x as (select id from a) select * from x where id in (select id from d)",
        "select made::date, date(made), date_trunc('day', made)::date from a",
        "select id from a where made > '2026-01-01'::timestamptz and made < $1",
        "select id from a where made > $1::timestamptz - interval '1 day'",
        "select name from a where name like 'know%' or name = 'snow'",
        "select body->>'x', jsonb_array_elements(body) from a",
        "select to_char(made, 'YYYY'), extract(year from made), make_date(2026, 1, 1)::text from a",
        "select id from loud",
        "select row_number() over (order by id) from a",
    ],
)
def test_what_may_be_kept(guard, query):
    assert guard.check(query).repeatable


@pytest.mark.parametrize(
    "query",
    [
        "select 1",
        "select random(), id from a",
        "select id from a order by random()",
        "select gen_random_uuid() from a",
        "select now() from a",
        "select clock_timestamp() from a",
        "select current_date, id from a",
        "select id from a where made > localtimestamp",
        "select age(made) from a",
        "select id from a where made < 'now'",
        "select id from a where made < 'NOW'::timestamptz",
        "select id from a where day = date 'today'",
        "select id from a where day in ('2026-01-01', ' tomorrow')",
        "select id from a where made > 'yesterday 04:05'",
        "select id from a where made > 'yesterday04:05'",
        "select name::date from a",
        "select date(name) from a",
        "select (name || '')::timestamptz from a",
        "select made::date from (select name as made from a) x",
        "select x.made::date from (select name from a) x(made)",
        "with x(day) as (select name from a) select day::date from x",
        "select ('{' || name || '}')::date[] from a",
        "select (body->>'at')::timestamptz from a",
        "select tstzrange(name::timestamptz, null) from a",
        "select * from a, jsonb_to_record(a.body) as r(d date)",
        "select * from a, json_table(a.body, '$' columns (d date path '$.d')) t",
        "select json_value(body, '$.d' returning date) from a",
        "select id from a for update",
        "select own() from a",
        "select name::mood from a",
        "select * from view",
        "select a.id from a, view",
        "select * from shared",
        "select * from computed",
        "insert into a (id) values (1) returning id",
        "with x as (delete from a returning id) select * from x",
    ],
)
def test_what_may_not_be_kept(guard, query):
    assert not guard.check(query).repeatable


@pytest.mark.parametrize(
    ("query", "changed"),
    [
        ("insert into d (id) values (1)", {"d"}),
        ("insert into d (id) select id from shared", {"d", "shared"}),
        ("delete from a", {"a", "b", "c"}),
        ("update d set name = '' where id in (select id from c)", {"a", "b", "c", "d"}),
        ("with x as (delete from d returning id) insert into a (id) select id from x",
         {"a", "b", "c", "d"}),
        ("merge into d using a on d.id = a.id when matched then delete", {"a", "b", "c", "d"}),
        ("insert into loud (id) values (1)", None),
        ("delete from above_loud", None),
        ("update view set name = ''", None),
        ("insert into d (name) values (own())", None),
        ("update d set name = $1::mood::text", None),
    ],
)  # fmt: skip
def test_what_is_changed(guard, query, changed):
    assert guard.check(query).changes == (None if changed is None else frozenset(changed))


@pytest.mark.parametrize("value", ["now", "NOW", " today ", ["x", "tomorrow"], {"a": ["now"]}])
def test_parameters_that_may_be_the_clock(value):
    assert names_the_clock(value)


@pytest.mark.parametrize("value", ["know", "nowhere", 3, None, ["x"], "2026-01-01", True])
def test_parameters_that_are_not(value):
    assert not names_the_clock(value)
