"""Which index a statement could use."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.engine.index_need import IndexNeed, index_needs
from tenancy.data_isolation.engine.schema_snapshot import ColumnShape
from tenancy.data_isolation.engine.visible_schema import VisibleRelation

TYPES = {
    "id": "integer",
    "customer": "integer",
    "made": "timestamp with time zone",
    "note": "text",
    "paid": "boolean",
    "body": "jsonb",
    "tags": "text[]",
}


def relation(name, *extra, **options):
    types = {**TYPES, **dict.fromkeys(extra, "integer")}
    return VisibleRelation(
        name=name,
        columns=tuple(types),
        shapes=tuple(ColumnShape(name=column, type=kind) for column, kind in types.items()),
        **options,
    )


RELATIONS = {
    item.name: item
    for item in (
        relation("orders"),
        relation("items", "order_id"),
        relation("view", view=True),
        relation("shared", hidden=False),
    )
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("select * from orders where customer = $1", ["customer"]),
        ("select * from orders where $1 = customer and note = $2", ["customer", "note"]),
        ("select * from orders o where o.note = $1 and o.customer in ($2, $3)",
         ["customer", "note"]),
        ("select * from orders where customer = any($1) and made > $2", ["customer", "made"]),
        ("select * from orders where made between $1 and $2", ["made"]),
        ("select * from orders where made > $1 and made < $2 and paid = $3", ["made"]),
        ("update orders set note = $1 where customer = $2", ["customer"]),
        ("delete from orders where customer = $1", ["customer"]),
        ("select * from orders where customer = $1 and (note = $2 or id = $3)", ["customer"]),
        ("with x as (select * from orders where customer = $1) select * from x", ["customer"]),
        ("select * from items i where exists"
         " (select from orders o where o.customer = $1 and o.id = i.order_id)", ["customer"]),
        ("select * from orders where id = $1 and customer = $2 and made = $3 and note = $4",
         ["id", "customer", "made"]),
        ("insert into items (id) select id from orders where customer = $1", ["customer"]),
    ],
)  # fmt: skip
def test_what_is_compared_with_values(text, wanted):
    (need,) = index_needs(text, RELATIONS)
    assert (need.table, need.columns) == ("orders", tuple(wanted))


def test_each_table_of_a_join_has_its_own():
    text = (
        "select * from orders o join items i on i.order_id = o.id"
        " where o.customer = $1 and order_id > $2"
    )
    assert set(index_needs(text, RELATIONS)) == {
        IndexNeed("orders", ("customer",)),
        IndexNeed("items", (), "order_id"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "select * from orders",
        "select * from orders where paid = $1",
        "select * from orders where body = $1",
        "select * from orders where tags = $1",
        "select * from orders where customer = id",
        "select * from orders where customer <> $1",
        "select * from orders where customer + 1 = $1",
        "select * from orders where lower(note) = $1",
        "select * from orders where customer = $1 or note = $2",
        "select * from orders where not customer = $1",
        "select * from orders where customer = (select max(id) from items)",
        "select * from orders o, items i where customer = $1",
        "select * from orders, (select 1 as customer) x where customer = $1",
        "with orders as (select 1 as customer) select * from orders where customer = $1",
        "select * from view where customer = $1",
        "select * from shared where customer = $1",
        "select * from gone where customer = $1",
        "select * from orders where other = $1",
        "select * from orders where customer = $1 and nonsense (",
        "",
        "<insufficient privilege>",
    ],
)
def test_what_is_not_certain_needs_nothing(text):
    assert index_needs(text, RELATIONS) == []


def test_an_index_that_begins_with_what_is_looked_for_is_enough():
    need = IndexNeed("orders", ("customer", "note"), "made")
    assert need.is_met({"note"})
    assert need.is_met({"made", "id"})
    assert not need.is_met({"id", None})
    assert not need.is_met(())
