"""Rewriting a statement so that the column which tells tenants apart does not exist for it.

Every table has a column that its tenant does not see. A statement that could notice is changed so
that it answers as it would on a table without that column:

* `*` and `t.*` become the visible columns, also in ROW(...), VALUES and RETURNING;
* a whole row (`t`, `row_to_json(t)`, `count(t.*)`, `(t).x`), a NATURAL or aliased join, a `*` over
  merged columns and an alias with column names (`t as x(a, b)`) see a subselect of the visible
  columns in the table's place; PostgreSQL's planner pulls it up again;
* INSERT, and the INSERT of MERGE, without a column list get one, as long as their values are;
* `ON CONFLICT (x)` and `GROUP BY` of a primary key get the hidden column, with which the unique
  constraints and primary keys inside the databases start.

Rules this module keeps:

* A statement that none of this touches is not changed at all.
* What cannot be changed without a doubt is refused, with what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias

from tenancy.data_isolation.core.errors import StatementError, StatementForbiddenError
from tenancy.data_isolation.engine.grouping import add_tenant_column, determined_sources
from tenancy.data_isolation.engine.guard_rules import place
from tenancy.data_isolation.engine.scopes import (
    Scope,
    Source,
    columns_of,
    function_source,
    put_record,
    put_subselect,
    unknown_table,
)
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    held,
    is_message,
    is_row_expansion,
    is_star,
    pb,
    unwrap,
    words,
)
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

#: The WITH queries in sight and how many columns each has, None when not known.
Queries: TypeAlias = Mapping[str, int | None]

#: Expressions that hold no other; most nodes of a long statement are.
_LEAVES: Final = (pb.A_Const, pb.ParamRef)


class Rewriter:
    """Rewrites one statement in place.

    `tables` collects the relations that the statement names;
    `changed` tells whether anything had to be changed.
    """

    def __init__(self, sql: str, schema: VisibleSchema) -> None:
        self._sql = sql
        self._schema = schema
        #: Changes that wait until every reference was seen, inner queries first.
        self._pending: list[Callable[[], None]] = []
        self._wrappable: list[Source] = []
        self.tables: set[str] = set()
        self.changed = False

    def rewrite(self, statement: Node) -> None:
        """Change `statement` where it could notice the hidden column.

        Raises `StatementError` with PostgreSQL's code for a table or column that does not exist,
        and `StatementForbiddenError` where a change cannot be made without a doubt.
        """
        self._statement(statement, None, {})
        # First, because expanding copies lists, and a copied holder would not be the one held here.
        for source in self._wrappable:
            if source.wrapped and source.holder is not None:
                put_subselect(source.holder, source)
                self.changed = True
        for change in self._pending:
            change()

    # Statements

    def _statement(self, node: Node, outer: Scope | None, queries: Queries) -> int | None:
        """Rewrite any of the five kinds; the number of columns that it returns."""
        if isinstance(node, pb.SelectStmt):
            return self._select(node, outer, queries)
        queries = self._with(node, outer, queries)
        if isinstance(node, pb.InsertStmt):
            return self._insert(node, queries)
        if isinstance(node, pb.MergeStmt):
            return self._merge(node, queries)
        scope = Scope(sources=[self._target(node.relation)])
        for item in node.from_clause if isinstance(node, pb.UpdateStmt) else node.using_clause:
            self._from_item(item, scope, queries)
        scope.check_aliases()
        if isinstance(node, pb.UpdateStmt):
            self._lists(node, ("target_list",), scope, queries)
        self._lists(node, ("where_clause",), scope, queries)
        return self._returning(node, scope, queries)

    def _with(self, node: Node, outer: Scope | None, queries: Queries) -> Queries:
        """Rewrite the WITH queries of a statement; what is in sight after them."""
        if not node.HasField("with_clause"):
            return queries
        known = dict(queries)
        items = [item.common_table_expr for item in node.with_clause.ctes]
        if node.with_clause.recursive:
            known.update(dict.fromkeys((item.ctename for item in items), None))
        for item in items:
            width = self._statement(unwrap(item.ctequery), outer, known)
            if width is not None:
                width += item.HasField("search_clause") + 2 * item.HasField("cycle_clause")
            known[item.ctename] = width
        return known

    def _select(self, node: Node, outer: Scope | None, queries: Queries) -> int | None:
        queries = self._with(node, outer, queries)
        scope = Scope(outer=outer)
        if node.op != pb.SETOP_NONE:
            width = self._select(node.larg, outer, queries)
            self._select(node.rarg, outer, queries)
        elif node.values_lists:
            widths = [self._values(row.list.items, scope, queries) for row in node.values_lists]
            width = widths[0]
        else:
            for item in node.from_clause:
                self._from_item(item, scope, queries)
            scope.check_aliases()
            determined = determined_sources(node, scope)
            width = self._targets(node.target_list, scope, queries)
            for source in determined:
                self._pending.append(partial(self._determine, node, source))
        self._lists(node, _SELECT_PARTS, scope, queries)
        return width

    def _determine(self, select: Node, source: Source) -> None:
        if source.wrapped:
            raise StatementForbiddenError(
                f'the query groups by the primary key of "{source.alias}" and uses it as a whole '
                "row, in a NATURAL join or through *; list all columns in GROUP BY"
            )
        add_tenant_column(select, source)
        self.changed = True

    def _insert(self, node: Node, queries: Queries) -> int | None:
        target = self._target(node.relation)
        if node.HasField("select_stmt"):
            width = self._statement(unwrap(node.select_stmt), None, queries)
            if not node.cols and target.hides:
                self._name_columns(node.cols, target, width, "INSERT")
        self._lists(node, ("cols",), Scope(sources=[target]), queries)
        if node.HasField("on_conflict_clause"):
            self._conflict(node.on_conflict_clause, target, queries)
        return self._returning(node, Scope(sources=[target]), queries)

    def _name_columns(self, names: Node, target: Source, width: int | None, what: str) -> None:
        """Give an INSERT the column list that it does without."""
        columns = target.columns
        if width is None:
            raise StatementForbiddenError(
                f'{what} into "{target.alias}" needs a column list: the number of columns of what '
                "it inserts cannot be told from the text"
            )
        if width > len(columns):
            raise StatementError(f"{what} has more expressions than target columns", "42601")
        for column in columns[:width]:
            names.add().res_target.name = column
        self.changed = True

    def _conflict(self, node: Node, target: Source, queries: Queries) -> None:
        inner = Scope(sources=[target])
        if node.HasField("infer"):
            self._lists(node.infer, ("index_elems", "where_clause"), inner, queries)
            if node.infer.index_elems and target.hides:
                self._infer_hidden(node.infer)
            elif node.infer.index_elems and target.relation is not None and target.relation.view:
                raise StatementForbiddenError(
                    f'ON CONFLICT with columns needs a table; "{target.relation.name}" is a view, '
                    "insert into the table behind it" + place(self._sql, node)
                )
        excluded = Source(
            alias="excluded",
            relation=target.relation,
            width=target.width,
            starred=False,
        )
        scope = Scope(sources=[target, excluded])
        self._lists(node, ("target_list", "where_clause"), scope, queries)

    def _infer_hidden(self, infer: Node) -> None:
        """The unique indexes inside the databases start with the hidden column."""
        first = pb.Node()
        first.index_elem.name = TENANT_COLUMN
        first.index_elem.ordering = pb.SORTBY_DEFAULT
        first.index_elem.nulls_ordering = pb.SORTBY_NULLS_DEFAULT
        _replace(infer.index_elems, [first, *infer.index_elems])
        self.changed = True

    def _merge(self, node: Node, queries: Queries) -> int | None:
        scope = Scope()
        # The analyser puts the source before the target, which shows in RETURNING *.
        self._from_item(node.source_relation, scope, queries)
        target = self._target(node.relation)
        scope.sources.append(target)
        scope.check_aliases()
        self._lists(node, ("join_condition",), scope, queries)
        for item in node.merge_when_clauses:
            clause = item.merge_when_clause
            width = self._values(clause.values, scope, queries)
            if clause.values and not clause.target_list and target.hides:
                self._name_columns(clause.target_list, target, width, "MERGE")
            self._lists(clause, ("condition", "target_list"), scope, queries)
        return self._returning(node, scope, queries)

    def _returning(self, node: Node, scope: Scope, queries: Queries) -> int | None:
        if not node.HasField("returning_clause"):
            return 0
        target = next(
            source for source in scope.sources if source.holder is None and source.relation
        )
        names = {"old": "old", "new": "new"}
        for item in node.returning_clause.options:
            option = item.returning_option
            names["old" if option.option == pb.RETURNING_OPTION_OLD else "new"] = option.value
        used = {source.alias for source in scope.sources}
        transitions = [
            Source(
                alias=alias,
                relation=target.relation,
                width=target.width,
                starred=False,
                transition=True,
            )
            for alias in names.values()
            if alias not in used
        ]
        inner = Scope(
            outer=scope.outer,
            sources=[*scope.sources, *transitions],
            merged=scope.merged,
            merged_columns=scope.merged_columns,
        )
        return self._targets(node.returning_clause.exprs, inner, queries)

    # FROM

    def _target(self, node: Node) -> Source:
        """The table that a statement changes. WITH queries are never meant."""
        relation = self._relation(node)
        return Source(
            alias=node.alias.aliasname or node.relname,
            relation=relation,
            width=len(relation.columns),
        )

    def _relation(self, node: Node) -> VisibleRelation:
        self.tables.add(node.relname)
        relation = self._schema.relations.get(node.relname)
        if relation is None:
            raise unknown_table(node.relname)
        return relation

    def _from_item(self, holder: Node, scope: Scope, queries: Queries, wrap: bool = False) -> None:
        """Add what one item of a FROM clause makes nameable; `wrap` when it must be wrapped."""
        node = unwrap(holder)
        if isinstance(node, pb.RangeVar):
            scope.sources.append(self._table(holder, queries, wrap))
        elif isinstance(node, pb.JoinExpr):
            self._join(node, scope, queries, wrap)
        elif isinstance(node, pb.RangeSubselect):
            seen = scope if node.lateral else scope.outer
            width = self._statement(unwrap(node.subquery), seen, queries)
            scope.sources.append(Source(alias=node.alias.aliasname, width=width))
        else:
            self._visit(node, holder, scope, queries)
            scope.sources.append(function_source(node))

    def _table(self, holder: Node, queries: Queries, wrap: bool) -> Source:
        node = holder.range_var
        alias = node.alias.aliasname or node.relname
        if node.relname in queries:
            return Source(alias=alias, width=queries[node.relname])
        source = self._target(node)
        source.holder = holder
        source.renamed = words(node.alias.colnames)
        self._wrappable.append(source)
        if wrap or source.renamed:
            source.wrap()
        return source

    def _join(self, node: Node, scope: Scope, queries: Queries, wrap: bool) -> None:
        aliased = node.HasField("alias")
        first = len(scope.sources)
        outside = (scope.merged, scope.merged_columns)
        for side in (node.larg, node.rarg):
            self._from_item(side, scope, queries, wrap or aliased or node.is_natural)
        self._lists(node, ("quals",), scope, queries)
        if aliased:
            # Its alias hides the names inside (manual, 7.2.1.2).
            scope.sources[first:] = [Source(alias=node.alias.aliasname)]
            scope.merged, scope.merged_columns = outside
        elif node.is_natural:
            scope.merged, scope.merged_columns = True, None
        elif node.using_clause:
            scope.merged = True
            if scope.merged_columns is not None:
                scope.merged_columns += len(node.using_clause)
        if node.HasField("join_using_alias"):
            scope.sources.append(
                Source(
                    alias=node.join_using_alias.aliasname,
                    width=len(node.using_clause),
                    starred=False,
                )
            )

    # Lists of values

    def _targets(self, targets: Node, scope: Scope, queries: Queries) -> int | None:
        """Rewrite a SELECT or RETURNING list; the number of its columns."""
        width: int | None = 0
        expanded: dict[int, list[Source]] = {}
        for index, item in enumerate(targets):
            value = item.res_target.val
            if is_star(value):
                added, expanded[index] = self._star(value.column_ref, scope)
            else:
                added = None if is_row_expansion(value) else 1
                self._visit(item.res_target, item, scope, queries)
            width = None if width is None or added is None else width + added
        self._expand_later(targets, expanded, targets_of=True)
        return width

    def _values(self, values: Node, scope: Scope, queries: Queries) -> int | None:
        """Rewrite the list of a ROW or VALUES, in which `t.*` is its columns."""
        width: int | None = 0
        expanded: dict[int, list[Source]] = {}
        for index, item in enumerate(values):
            if is_star(item):
                added, expanded[index] = self._star(item.column_ref, scope)
            else:
                added = None if is_row_expansion(item) else 1
                self._visit(unwrap(item), item, scope, queries)
            width = None if width is None or added is None else width + added
        self._expand_later(values, expanded, targets_of=False)
        return width

    def _star(self, star: Node, scope: Scope) -> tuple[int | None, list[Source]]:
        """How many columns a star stands for, and the sources to put in its place, if any."""
        names = words(star.fields)
        if names:
            found = scope.find(names[0])
            if found is None:
                return None, []
            return found.width, [found]
        sources = [source for source in scope.sources if source.starred]
        if not scope.merged and all(source.alias for source in sources):
            return scope.width, sources
        for source in sources:
            if source.hides and source.holder is None:
                raise StatementForbiddenError(
                    "RETURNING * cannot be told apart over this FROM clause; name the columns"
                    + place(self._sql, star)
                )
            source.wrap()
        return scope.width, []

    def _expand_later(
        self, items: Node, expanded: dict[int, list[Source]], *, targets_of: bool
    ) -> None:
        """Replace stars by columns once it is known which tables are wrapped."""
        expanded = {index: sources for index, sources in expanded.items() if sources}
        if not expanded:
            return

        def expand() -> None:
            replaced: list[Node] = []
            for index, item in enumerate(items):
                sources = expanded.get(index)
                if sources is None or all(s.wrapped or not s.hides for s in sources):
                    replaced.append(item)
                    continue
                self.changed = True
                for source in sources:
                    found = columns_of(source)
                    replaced += map(_target_of, found) if targets_of else found
            _replace(items, replaced)

        self._pending.append(expand)

    # Expressions

    def _lists(self, node: Node, fields: Iterable[str], scope: Scope, queries: Queries) -> None:
        """Rewrite the expressions that fields of a node hold."""
        wanted = frozenset(fields)
        for field, value in node.ListFields():
            if field.name in wanted:
                for item in (value,) if is_message(value) else value:
                    self._visit(unwrap(item), item, scope, queries)

    def _visit(self, node: Node, holder: Node, scope: Scope, queries: Queries) -> None:
        """Rewrite an expression; `holder` is the wrapper in which another could take its place."""
        if isinstance(node, _LEAVES):
            return
        if isinstance(node, pb.ColumnRef):
            self._reference(node, holder, scope)
        elif isinstance(node, pb.SelectStmt):
            self._select(node, scope, queries)
        elif isinstance(node, pb.RowExpr):
            self._values(node.args, scope, queries)
        else:
            for item in held(node):
                self._visit(unwrap(item), item, scope, queries)

    def _reference(self, node: Node, holder: Node, scope: Scope) -> None:
        """A column, or a whole row where no column has the name."""
        names = words(node.fields)
        source = scope.find(names[0]) if names else None
        if source is None or not source.hides:
            return
        if len(names) == 2:
            if names[1] not in source.names:
                raise StatementError(
                    f"column {names[0]}.{names[1]} does not exist" + place(self._sql, node), "42703"
                )
        elif len(node.fields) == 2 or not scope.has_column(names[0]):
            self._whole_row(node, holder, source, scope)

    def _whole_row(self, node: Node, holder: Node, source: Source, scope: Scope) -> None:
        certain = len(node.fields) == 2 or scope.known
        if source.holder is not None and not source.renamed:
            source.wrap()
        elif source.holder is None and certain and not source.transition:
            put_record(holder, source)
            self.changed = True
        else:
            raise StatementForbiddenError(
                f'"{source.alias}" as a whole row is not available here; list its columns, '
                f"as in ROW({source.alias}.column, ...)" + place(self._sql, node)
            )


#: The parts of a query that hold expressions, besides its list and its FROM clause.
_SELECT_PARTS: Final = (
    "distinct_clause",
    "where_clause",
    "group_clause",
    "having_clause",
    "window_clause",
    "sort_clause",
    "limit_offset",
    "limit_count",
)


def _target_of(value: Node) -> Node:
    target = pb.Node()
    target.res_target.val.CopyFrom(value)
    return target


def _replace(items: Node, by: list[Node]) -> None:
    """Put other messages in a repeated field; they are copied."""
    copies = []
    for item in by:
        copy = pb.Node()
        copy.CopyFrom(item)
        copies.append(copy)
    del items[:]
    items.extend(copies)
