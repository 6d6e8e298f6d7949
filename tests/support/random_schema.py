"""Random tables and statements over them, for holding two databases against each other.

Pure: draws text, runs nothing. Statements are mostly sensible, so that answers are worth comparing,
and sometimes wrong on purpose (a missing parent, a duplicate key, a text where a number belongs),
so that errors are compared as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

#: Column types with values that a parameter of the type can take.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(-5, 5) | st.sampled_from([2**31 - 1, -(2**31)]),
    "bigint": st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
    "text": st.sampled_from(["", "a", "b", "B", "é", "a'b", "%", "\\", "null"]),
    "numeric": st.sampled_from(["0", "1.50", "-2.5", "12345678901234567890.123456789", "NaN"]),
    "boolean": st.booleans(),
    "date": st.sampled_from(["2013-01-01", "2024-02-29", "infinity"]),
    "jsonb": st.sampled_from([{}, {"a": 1}, [1, 2], "x", 1.5, True]),
}

#: Names of columns that a migration made NOT NULL begin with this.
_REQUIRED = "d"
_OPERATORS = st.sampled_from(["=", "<>", "<", ">=", "is not distinct from"])


@dataclass(slots=True)
class Table:
    """What a table looks like now."""

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]
    unique: list[tuple[str, ...]] = field(default_factory=list)
    parent: str | None = None

    def value(self, draw: Any, column: str) -> Any:
        """A value for a column; seldom null, small keys so that they meet."""
        if column in self.key or (self.parent and column == "parent_id"):
            return draw(st.integers(0, 4))
        if draw(st.integers(0, 9)) == 0:
            return None
        return draw(VALUES[self.columns[column]])


@st.composite
def new_table(draw: Any, name: str, parents: list[Table]) -> tuple[Table, str]:
    """A table and the statement that makes it."""
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3))
    columns = {"id": "integer"} | {f"c{index}": kind for index, kind in enumerate(kinds)}
    key: tuple[str, ...] = ("id",)
    if draw(st.booleans()):
        columns["part"] = "integer"
        key = ("id", "part")
    lines = [
        f"{column} {kind}{' not null' if column in key else ''}" for column, kind in columns.items()
    ]
    lines.append(f"primary key ({', '.join(key)})")
    table = Table(name, columns, key)
    single = [parent for parent in parents if parent.key == ("id",)]
    if single and draw(st.booleans()):
        table.parent = draw(st.sampled_from(single)).name
        columns["parent_id"] = "integer"
        action = draw(st.sampled_from(["", " on delete cascade", " on delete set null"]))
        lines.append(f"parent_id integer references {table.parent} (id){action}")
    if draw(st.booleans()):
        column = draw(st.sampled_from([name for name in columns if columns[name] != "jsonb"]))
        table.unique.append((column,))
        lines.append(f"unique ({column})")
    if "c0" in columns and columns["c0"] == "integer" and draw(st.booleans()):
        lines.append("check (c0 < 100)")
    mark = f"; comment on table {name} is '@sensitive'" if draw(st.booleans()) else ""
    return table, f"create table {name} ({', '.join(lines)}){mark}"


@st.composite
def migration(draw: Any, table: Table, number: int) -> str:
    """A later change of a table that has rows; `table` is changed to match."""
    kind = draw(
        st.sampled_from(
            ["add", "add default", "drop", "index", "backfill", "rename", "mark", "unmark", "view"]
        )
    )
    plain = [
        column
        for column in table.columns
        if column not in table.key
        and column != "parent_id"
        and not column.startswith(_REQUIRED)
        and not any(column in unique for unique in table.unique)
    ]
    if kind in ("drop", "backfill", "rename") and not plain:
        kind = "add"
    match kind:
        case "add":
            table.columns[f"n{number}"] = type_ = draw(st.sampled_from(sorted(VALUES)))
            return f"alter table {table.name} add column n{number} {type_}"
        case "add default":
            table.columns[f"{_REQUIRED}{number}"] = "integer"
            return (
                f"alter table {table.name} "
                f"add column {_REQUIRED}{number} integer not null default {number}"
            )
        case "unmark":
            return f"comment on table {table.name} is null"
        case "view":
            # Names of its own, so that columns may still be dropped and renamed.
            return f"create view v{number} as select count(*) as n from {table.name}"
        case "mark":
            return f"comment on table {table.name} is 'From now on @sensitive'"
        case "drop":
            column = draw(st.sampled_from(plain))
            del table.columns[column]
            return f"alter table {table.name} drop column {column}"
        case "index":
            column = draw(st.sampled_from(sorted(set(table.columns) - {"parent_id"})))
            if table.columns[column] == "jsonb":
                column = "id"
            return f"create index {table.name}_i{number} on {table.name} ({column})"
        case "backfill":
            column = draw(st.sampled_from(plain))
            return (
                f"update {table.name} set {column} = null "
                f"where id < (select count(*) from {table.name})"
            )
        case _:
            column = draw(st.sampled_from(plain))
            table.columns = {
                (f"r{number}" if name == column else name): type_
                for name, type_ in table.columns.items()
            }
            return f"alter table {table.name} rename column {column} to r{number}"


@st.composite
def statement(draw: Any, table: Table, tables: list[Table]) -> tuple[str, list[Any]]:
    """A statement over a table, and any of `tables` beside it, with its parameters."""
    kind = draw(
        st.sampled_from(
            ["insert", "insert", "insert", "upsert", "upsert", "update", "delete", "select", "star",
             "count", "join", "wrong"]
        )
    )  # fmt: skip
    match kind:
        case "insert":
            return _insert(draw, table)
        case "upsert":
            return _upsert(draw, table)
        case "update":
            column = draw(st.sampled_from(sorted(table.columns)))
            where, params = _where(draw, table, 2)
            value = table.value(draw, column)
            return f"update {table.name} set {column} = $1 where {where} returning id", [
                value,
                *params,
            ]
        case "delete":
            where, params = _where(draw, table, 1)
            return f"delete from {table.name} where {where} returning *", params
        case "select":
            where, params = _where(draw, table, 1)
            order = ", ".join(table.key)
            names = ", ".join(sorted(table.columns))
            return f"select {names} from {table.name} where {where} order by {order}", params
        case "star":
            return f"select * from {table.name} order by {', '.join(table.key)}", []
        case "count":
            return f"select count(*), min(id), max(id) from {table.name} as x", []
        case "join":
            other = draw(st.sampled_from(tables))
            keys = {"a": table.key, "b": other.key}
            order = ", ".join(f"{side}.{column}" for side in keys for column in keys[side])
            text = (
                f"select a.*, b.id as other from {table.name} a join {other.name} b on a.id = b.id"
            )
            return f"{text} order by {order}", []
        case _:
            text, sample = draw(
                st.sampled_from(
                    [
                        (f"select nothing from {table.name}", []),
                        ("select * from no_such_table", []),
                        (f"insert into {table.name} (id) values ($1)", ["x"]),
                        (f"select 1 / (count(*) - count(*)) from {table.name}", []),
                        (f"select * from {table.name} where id = $1", []),
                    ]
                )
            )
            return text, list(sample)


def _insert(draw: Any, table: Table) -> tuple[str, list[Any]]:
    names = list(table.columns)
    params = [table.value(draw, name) for name in names]
    marks = ", ".join(f"${index + 1}" for index in range(len(names)))
    listed = f" ({', '.join(names)})" if draw(st.booleans()) else ""
    return f"insert into {table.name}{listed} values ({marks}) returning *", params


def _upsert(draw: Any, table: Table) -> tuple[str, list[Any]]:
    text, params = _insert(draw, table)
    target = draw(st.sampled_from([table.key, *table.unique]))
    others = [name for name in table.columns if name not in target]
    head = text.removesuffix(" returning *")
    if draw(st.booleans()) or not others:
        return f"{head} on conflict ({', '.join(target)}) do nothing returning *", params
    column = draw(st.sampled_from(others))
    return (
        f"{head} on conflict ({', '.join(target)}) "
        f"do update set {column} = excluded.{column} returning *",
        params,
    )


def _where(draw: Any, table: Table, first: int) -> tuple[str, list[Any]]:
    columns = [name for name in table.columns if table.columns[name] != "jsonb"]
    column = draw(st.sampled_from(columns))
    value = table.value(draw, column)
    return f"{column} {draw(_OPERATORS)} ${first}", [value]
