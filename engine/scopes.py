"""Which name of a statement means which relation, as far as hiding a column needs it.

Rules this module keeps:

* Names resolve as PostgreSQL's analyser resolves them: inner query levels first, a column before a
  whole row (manual, 8.16.5; `transformColumnRef` in parse_expr.c).
* Where the columns of something are not known (a subselect, a WITH query, a function), the answer
  is "not known", never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tenancy.data_isolation.core.errors import StatementError
from tenancy.data_isolation.engine.guard_rules import ALLOW
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    cast_type,
    column_ref,
    function_name,
    pb,
    unwrap,
)
from tenancy.data_isolation.engine.visible_schema import VisibleRelation

#: Built-in functions that make rows, and how many columns.
_WIDTHS: Final = {
    "generate_series": 1,
    "generate_subscripts": 1,
    "json_array_elements": 1,
    "json_array_elements_text": 1,
    "json_each": 2,
    "json_each_text": 2,
    "json_object_keys": 1,
    "jsonb_array_elements": 1,
    "jsonb_array_elements_text": 1,
    "jsonb_each": 2,
    "jsonb_each_text": 2,
    "jsonb_object_keys": 1,
    "jsonb_path_query": 1,
    "jsonb_path_query_tz": 1,
    "regexp_matches": 1,
    "regexp_split_to_table": 1,
    "string_to_table": 1,
}


@dataclass(slots=True)
class Source:
    """One name in a FROM clause, or the table that a statement changes.

    `holder` is the wrapper of a table in a FROM clause, by which a subselect can take its place;
    a table that is changed has none. `width` is the number of columns, None when not known.
    """

    #: Empty for what cannot be named.
    alias: str
    width: int | None = None
    #: None for what is not a table or view of the schema.
    relation: VisibleRelation | None = None
    #: Names that the alias gives to the first columns, as in `t as x(a, b)`.
    renamed: tuple[str, ...] = ()
    holder: Node | None = None
    #: Whether `*` covers it.
    starred: bool = True
    #: `old` or `new` of RETURNING, whose whole row can be null.
    transition: bool = False
    #: A subselect of the visible columns takes the table's place.
    wrapped: bool = False

    @property
    def hides(self) -> bool:
        """Whether it has a column that tenants must not see."""
        return self.relation is not None and self.relation.hidden

    @property
    def columns(self) -> tuple[str, ...]:
        """The visible columns of a table or view, as the schema calls them."""
        return self.relation.columns if self.relation is not None else ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the columns are called here, as far as that is known."""
        return self.renamed + self.columns[len(self.renamed) :]

    @property
    def key(self) -> tuple[str, ...]:
        """What the columns of the primary key are called here; empty when there is none."""
        if self.relation is None:
            return ()
        return tuple(self.names[self.columns.index(name)] for name in self.relation.primary_key)

    def wrap(self) -> None:
        """Let a subselect of the visible columns take the table's place."""
        if self.hides and self.holder is not None:
            self.wrapped = True


@dataclass(slots=True)
class Scope:
    """What a query level can name, and the levels around it."""

    outer: Scope | None = None
    sources: list[Source] = field(default_factory=list)
    #: A join merges columns (USING, NATURAL), so `*` is not the sources one after the other.
    merged: bool = False
    #: How many columns the joins merge; None when not known.
    merged_columns: int | None = 0

    def levels(self) -> Iterator[Scope]:
        """This level and those around it, the inner ones first."""
        level: Scope | None = self
        while level is not None:
            yield level
            level = level.outer

    def find(self, alias: str) -> Source | None:
        """What an alias means here."""
        for level in self.levels():
            for source in level.sources:
                if source.alias == alias:
                    return source
        return None

    def has_column(self, name: str) -> bool:
        """Whether a table in sight certainly has a visible column of that name."""
        return any(name in source.names for level in self.levels() for source in level.sources)

    def check_aliases(self) -> None:
        """`StatementError` when two sources of this level have one name."""
        names = [source.alias for source in self.sources if source.alias]
        for name in names:
            if names.count(name) > 1:
                raise StatementError(f'table name "{name}" specified more than once', "42712")

    @property
    def known(self) -> bool:
        """Whether the columns of everything in sight are known."""
        return all(
            source.relation is not None for level in self.levels() for source in level.sources
        )

    @property
    def width(self) -> int | None:
        """How many columns `*` covers; None when not known."""
        widths = [source.width for source in self.sources if source.starred]
        if self.merged_columns is None or None in widths:
            return None
        return sum(width for width in widths if width is not None) - self.merged_columns


def unknown_table(name: str) -> StatementError:
    """The error for a table that the schema does not have, in PostgreSQL's words."""
    return StatementError(f'relation "{name[:63]}" does not exist', "42P01")


def columns_of(source: Source) -> list[Node]:
    """References to the visible columns of a source, or `alias.*` where those are all it has."""
    if source.hides and not source.wrapped:
        return [column_ref(source.alias, name) for name in source.columns]
    star = column_ref(source.alias)
    star.column_ref.fields.add().a_star.SetInParent()
    return [star]


def function_source(node: Node) -> Source:
    """A function, or another thing that makes rows, in a FROM clause."""
    alias: str = node.alias.aliasname
    if not isinstance(node, pb.RangeFunction):
        return Source(alias=alias)
    if len(node.functions) != 1 or node.is_rowsfrom:
        return Source(alias=alias)
    call = unwrap(node.functions[0].list.items[0])
    width: int | None = None
    if node.coldeflist:
        width = len(node.coldeflist)
    elif isinstance(call, pb.FuncCall):
        alias = alias or function_name(call)[1]
        width = _function_width(call)
    if width is not None:
        width += node.ordinality
    return Source(alias=alias, width=width)


def _function_width(call: Node) -> int | None:
    name = function_name(call)[1]
    if name == "unnest" and all(_is_cast_to_scalars(unwrap(item)) for item in call.args):
        return len(call.args)
    return _WIDTHS.get(name)


def _is_cast_to_scalars(node: Node) -> bool:
    """Whether an argument of `unnest` is an array of values that are one column each."""
    if not isinstance(node, pb.TypeCast):
        return False
    return cast_type(node.type_name)[1] in ALLOW.types - {"record", "tsvector"}


def put_subselect(holder: Node, source: Source) -> None:
    """Put `(select visible columns from table) as alias` in the place of a table."""
    table = pb.RangeVar()
    table.CopyFrom(holder.range_var)
    inner = pb.RangeVar()
    inner.CopyFrom(table)
    inner.ClearField("alias")
    select = plain_select([column_ref(name) for name in source.columns])
    select.select_stmt.from_clause.add().range_var.CopyFrom(inner)
    holder.Clear()
    subselect = holder.range_subselect
    subselect.subquery.CopyFrom(select)
    subselect.alias.aliasname = source.alias
    subselect.alias.colnames.extend(table.alias.colnames)


def put_record(holder: Node, source: Source) -> None:
    """Put `(select t from (select t.visible, ...) as t)` in the place of a whole row `t`.

    The name stays, because it is what an output column would be called.
    """
    name = source.alias
    while name in source.columns:
        name += "_"
    inner = plain_select([column_ref(source.alias, column) for column in source.columns])
    outer = plain_select([column_ref(name)])
    subselect = outer.select_stmt.from_clause.add().range_subselect
    subselect.subquery.CopyFrom(inner)
    subselect.alias.aliasname = name
    holder.Clear()
    holder.sub_link.sub_link_type = pb.EXPR_SUBLINK
    holder.sub_link.subselect.CopyFrom(outer)


def plain_select(values: list[Node]) -> Node:
    """`select values`, as the parser would make it."""
    node = pb.Node()
    select = node.select_stmt
    select.limit_option = pb.LIMIT_OPTION_DEFAULT
    select.op = pb.SETOP_NONE
    for value in values:
        select.target_list.add().res_target.val.CopyFrom(value)
    return node
