"""Queries over a small schema, made by hypothesis from a grammar that aims at hidden columns.

The tables are those of `TABLES`; every query is of the grammar of PostgreSQL, but may still be one
that its analyser refuses (an ambiguous name, a column that is not grouped), which is a case too.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

#: Tables with their columns; the first of each is the primary key.
TABLES = {
    "customers": ("id", "name", "email", "age", "note"),
    "orders": ("id", "customer_id", "total", "placed"),
    "status": ("id", "status"),
    "tags": ("customer_id", "tag", "weight"),
}
#: A name that an alias can share with a table or a column.
_ALIASES = ("a", "b", "c", "d", "e", "h", "k", "status", "tag", "customers")
_NUMBERS = ("id", "customer_id", "age", "weight")


@dataclass(frozen=True)
class Item:
    """An item of a FROM clause: its text, and the aliases with columns that it brings."""

    text: str
    names: tuple[tuple[str, tuple[str, ...]], ...]


@st.composite
def tables(draw: st.DrawFn) -> Item:
    """A table, with or without an alias, or with names for its first columns."""
    table = draw(st.sampled_from(sorted(TABLES)))
    columns = TABLES[table]
    match draw(st.integers(0, 5)):
        case 0:
            return Item(table, ((table, columns),))
        case 1:
            alias = draw(st.sampled_from(_ALIASES))
            given = ("p", "q")[: draw(st.integers(1, 2))]
            names = given + columns[len(given) :]
            return Item(f"{table} as {alias}({', '.join(given)})", ((alias, names),))
        case _:
            alias = draw(st.sampled_from(_ALIASES))
            return Item(f"{table} {alias}", ((alias, columns),))


@st.composite
def items(draw: st.DrawFn, depth: int = 2) -> Item:
    """Any item of a FROM clause."""
    kind = draw(st.integers(0, 9)) if depth else 0
    if kind <= 3:
        return draw(tables())
    if kind == 4:
        alias = draw(st.sampled_from(_ALIASES))
        return Item(f"({draw(queries(depth=depth - 1))}) {alias}", ((alias, ("id",)),))
    if kind == 5:
        return Item("generate_series(1, 2) g", (("g", ("g",)),))
    left, right = draw(items(depth=depth - 1)), draw(items(depth=depth - 1))
    names = left.names + right.names
    style = draw(st.sampled_from(("join", "left join", "full join", "cross join")))
    if style == "cross join":
        return Item(f"{left.text} cross join {right.text}", names)
    match draw(st.integers(0, 3)):
        case 0:
            return Item(f"{left.text} natural {style} {right.text}", names)
        case 1:
            return Item(f"{left.text} {style} {right.text} using (id)", names)
        case 2:
            return Item(f"({left.text} {style} {right.text} using (id)) as j", (("j", ("id",)),))
        case _:
            first, second = draw(_column(left)), draw(_column(right))
            return Item(f"{left.text} {style} {right.text} on {first} = {second}", names)


@st.composite
def _column(draw: st.DrawFn, item: Item) -> str:
    """A column of numbers, if the item has one."""
    alias, columns = draw(st.sampled_from(item.names))
    numbers = [column for column in columns if column in _NUMBERS] or list(columns[:1])
    return f"{alias}.{draw(st.sampled_from(numbers))}"


@st.composite
def _target(draw: st.DrawFn, item: Item, depth: int) -> str:
    alias, columns = draw(st.sampled_from(item.names))
    column = draw(st.sampled_from(columns))
    choices = [
        "*",
        f"{alias}.*",
        f"{alias}.{column}",
        column,
        alias,
        f"row_to_json({alias})",
        f"to_jsonb({alias}.*) as row",
        f"({alias}).{column}",
        f"row({alias}.*, 1)",
        f"{alias} is null",
        f"{alias}::text",
    ]
    if depth:
        choices.append(f"array(select {alias}.{column})")
        choices.append(f"(select count({alias}) from status s)")
        choices.append(f"exists ({draw(queries(depth=0))})")
    return draw(st.sampled_from(choices))


@st.composite
def queries(draw: st.DrawFn, depth: int = 2) -> str:
    """A query without ORDER BY, whose rows therefore come in any order."""
    if depth and draw(st.integers(0, 9)) == 0:
        operation = draw(st.sampled_from(("union", "union all", "except", "intersect")))
        table = draw(st.sampled_from(sorted(TABLES)))
        return f"(table {table}) {operation} {draw(queries(depth=0))}"
    if depth and draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(("w", *TABLES)))
        inner, outer = draw(queries(depth=depth - 1)), draw(queries(depth=depth - 1))
        return f"with {name} as ({inner}) select * from ({outer}) s, {name}"
    item = draw(items(depth=depth))
    if draw(st.booleans()) and draw(st.booleans()):
        return draw(_grouped(item))
    targets = draw(st.lists(_target(item, depth), min_size=1, max_size=3))
    where = ""
    if draw(st.booleans()):
        where = f" where {draw(_column(item))} > {draw(st.integers(0, 11))}"
    distinct = "distinct " if draw(st.integers(0, 9)) == 0 else ""
    return f"select {distinct}{', '.join(targets)} from {item.text}{where}"


@st.composite
def _grouped(draw: st.DrawFn, item: Item) -> str:
    """A query that groups by the first column of something, and uses another column of it."""
    alias, columns = draw(st.sampled_from(item.names))
    other = draw(st.sampled_from((*columns, "*")))
    by = draw(st.sampled_from((f"{alias}.{columns[0]}", columns[0], "1")))
    return f"select {alias}.{columns[0]}, {alias}.{other}, count(*) from {item.text} group by {by}"
