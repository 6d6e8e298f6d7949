"""A migration's statements, changed so that they work on tables that are scoped already.

A user writes `references customer (id)`, but inside the databases the key of `customer` is
(tenant_id, id), and its rows are those of many tenants. So:

* a new table has its column `tenant_id` from the start;
* primary keys, unique constraints, foreign keys and btree indexes get `tenant_id` in front, and the
  name that they would have without it;
* `*` in a view or in an SQL function, INSERT without a column list and `ON CONFLICT (x)` mean what
  they mean on the table that the user sees (`rewriting`).

Everything else is the user's own text, and row security is left to `scope_plan`, which also finds
what was missed here. A statement that is changed is written back from its syntax tree, and only
when reading the result again gives exactly the tree that was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tenancy.data_isolation.core.errors import SchemaRefusedError, StatementError
from tenancy.data_isolation.engine.migration import MigrationStatement, StatementSort
from tenancy.data_isolation.engine.object_names import (
    foreign_key_name,
    index_name,
    primary_key_name,
    unique_name,
)
from tenancy.data_isolation.engine.rewriting import Rewriter
from tenancy.data_isolation.engine.schema_script import Step, StepSort
from tenancy.data_isolation.engine.schema_snapshot import Relation, SchemaSnapshot
from tenancy.data_isolation.engine.scope_plan import force_statement, lift_statement
from tenancy.data_isolation.engine.sensitive_tables import sensitive_tables, views_of
from tenancy.data_isolation.engine.syntax_tree import (
    Node,
    Tree,
    parse,
    pb,
    statement_nodes,
    type_name,
    unwrap,
    words,
    write,
)
from tenancy.data_isolation.engine.tenant_column import TENANT_COLUMN
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

_KEYS: Final = frozenset({pb.CONSTR_PRIMARY, pb.CONSTR_UNIQUE})
_ATTRIBUTES: Final = frozenset(
    {
        pb.CONSTR_ATTR_DEFERRABLE,
        pb.CONSTR_ATTR_NOT_DEFERRABLE,
        pb.CONSTR_ATTR_DEFERRED,
        pb.CONSTR_ATTR_IMMEDIATE,
        pb.CONSTR_ATTR_ENFORCED,
        pb.CONSTR_ATTR_NOT_ENFORCED,
    }
)
_TENANT_COLUMN_SOURCE: Final = (
    f"create table t ({TENANT_COLUMN} bigint not null default tenancy.bound_tenant())"
)
#: Subcommands after which PostgreSQL checks foreign keys by a query.
_CHECKING: Final = frozenset({pb.AT_ValidateConstraint, pb.AT_AlterColumnType})


def scoped_steps(statement: MigrationStatement, snapshot: SchemaSnapshot) -> tuple[Step, ...]:
    """What to run for `statement` in a schema that looks like `snapshot` and is scoped.

    Raises `SchemaRefusedError` when the statement cannot be changed without a doubt.
    """
    try:
        return _Scoping(statement, snapshot).steps()
    except StatementError as error:
        raise SchemaRefusedError(error.detail, error.sqlstate) from None


def visible_schema(snapshot: SchemaSnapshot) -> VisibleSchema:
    """The tables and views of `snapshot` without the column that tells tenants apart."""
    keys = {item.table: item.columns for item in snapshot.constraints if item.type == "p"}
    tables = sensitive_tables(snapshot)
    apart = {*tables, *views_of(snapshot, tables)}
    return VisibleSchema(
        relations={
            item.name: _visible_relation(item, keys.get(item.name, ()), apart=item.name in apart)
            for item in snapshot.relations
            if item.kind in "rv"
        },
        functions=frozenset(routine.name for routine in snapshot.routines),
        types=frozenset(item.name for item in snapshot.types),
    )


def _visible_relation(relation: Relation, key: Sequence[str], *, apart: bool) -> VisibleRelation:
    shapes = tuple(item for item in relation.columns if item.name != TENANT_COLUMN)
    return VisibleRelation(
        name=relation.name,
        columns=tuple(item.name for item in shapes),
        primary_key=tuple(name for name in key if name != TENANT_COLUMN),
        hidden=relation.column(TENANT_COLUMN) is not None,
        view=relation.kind == "v",
        shapes=shapes,
        apart=apart,
    )


class _Scoping:
    """Changes one statement. The tree is a copy of its own."""

    def __init__(self, statement: MigrationStatement, snapshot: SchemaSnapshot) -> None:
        self._statement = statement
        self._snapshot = snapshot
        self._tree: Tree = pb.ParseResult()
        self._tree.CopyFrom(statement.tree)
        self._node = statement_nodes(self._tree)[0]
        #: Names that this statement has taken, and those that it sets free.
        self._chosen: set[str] = set()
        self._dropped: set[str] = set()
        self._changed = False

    def steps(self) -> tuple[Step, ...]:
        match type_name(self._node):
            case "CreateStmt":
                self._create_table()
            case "AlterTableStmt" if self._node.objtype == pb.OBJECT_TABLE:
                return self._alter_table()
            case "IndexStmt":
                self._create_index()
            case "ViewStmt":
                self._rewrite(unwrap(self._node.query))
            case "CreateFunctionStmt":
                self._create_function()
            case "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt":
                self._rewrite(self._node)
        return (self._step(),)

    def _step(self) -> Step:
        text = write(self._tree) if self._changed else self._statement.text
        data = self._statement.sort is StatementSort.DATA
        sort = StepSort.DATA if data else StepSort.DEFINITION
        return Step(sort=sort, text=text, line=self._statement.line)

    def _unforced(self, step: Step, tables: Sequence[str]) -> tuple[Step, ...]:
        """`step` with forced row security lifted from `tables` around it.

        PostgreSQL checks a foreign key by a query that obeys forced row security, and the owner
        works for no tenant here. Nobody else sees the tables in between: they stay locked, and the
        change is undone within the transaction.
        """
        line = self._statement.line
        lift = [
            Step(sort=StepSort.PROTECTION, text=lift_statement(name), line=line) for name in tables
        ]
        force = [
            Step(sort=StepSort.PROTECTION, text=force_statement(name), line=line) for name in tables
        ]
        return (*lift, step, *force)

    # CREATE TABLE

    def _create_table(self) -> None:
        node = self._node
        table = node.relation.relname
        if self._snapshot.relation(table) is not None:
            return  # An error, or with IF NOT EXISTS nothing at all.
        keys: list[Node] = []
        for element in map(unwrap, node.table_elts):
            if type_name(element) == "ColumnDef":
                keys += self._take_column_keys(element)
            else:
                self._scope_key(table, element)
        for key in keys:
            self._scope_key(table, key)
            node.table_elts.add().constraint.CopyFrom(key)
        node.table_elts.add().column_def.CopyFrom(_tenant_column())
        self._changed = True

    def _take_column_keys(self, column: Node) -> list[Node]:
        """Remove the keys from a column; they become those of the table."""
        taken: list[Node] = []
        kept: list[Node] = []
        current: Node = None
        for item in column.constraints:
            constraint = unwrap(item)
            if constraint.contype not in _ATTRIBUTES:
                current = None
            if current is not None:
                _set_attribute(current, constraint.contype)
            elif constraint.contype in _KEYS or constraint.contype == pb.CONSTR_FOREIGN:
                current = unwrap(_copy(item))
                names = (
                    current.fk_attrs if constraint.contype == pb.CONSTR_FOREIGN else current.keys
                )
                names.add().string.sval = column.colname
                taken.append(current)
            else:
                kept.append(_copy(item))
        if taken:
            _replace(column.constraints, kept)
        return taken

    # ALTER TABLE

    def _alter_table(self) -> tuple[Step, ...]:
        node = self._node
        table = node.relation.relname
        relation = self._snapshot.relation(table)
        if relation is None:
            return (self._step(),)
        keys: list[Node] = []
        added: list[Node] = []
        checking = False
        self._dropped = {
            item.name for item in map(unwrap, node.cmds) if item.subtype == pb.AT_DropConstraint
        }
        for command in map(unwrap, node.cmds):
            definition = unwrap(getattr(command, "def"))
            checking = checking or command.subtype in _CHECKING
            if command.subtype == pb.AT_AddConstraint:
                keys += [definition] if self._scope_key(table, definition) else []
            elif command.subtype == pb.AT_AddColumn and not relation.column(definition.colname):
                added += self._take_column_keys(definition)
        for key in added:
            self._scope_key(table, key)
            _append_constraint(node, key)
            keys.append(key)
        touched = self._touched(table, keys)
        if checking:
            touched += [name for name in self._neighbours(table) if name not in touched]
        if not (checking or any(key.contype == pb.CONSTR_FOREIGN for key in keys)):
            return (self._step(),)
        return self._unforced(self._step(), touched)

    def _scope_key(self, table: str, key: Node) -> bool:
        """Put the tenant in front of a key that is added; False for other constraints."""
        if key.contype == pb.CONSTR_FOREIGN:
            self._scope_foreign_key(table, key)
        elif key.contype in _KEYS and not key.indexname:
            if not key.conname:
                key.conname = self._key_name(table, key)
            _put_first(key.keys)
        else:
            return False
        self._chosen.add(key.conname)
        self._changed = True
        return True

    def _key_name(self, table: str, key: Node) -> str:
        if key.contype == pb.CONSTR_PRIMARY:
            return primary_key_name(table, self._is_taken)
        return unique_name(table, [*words(key.keys), *words(key.including)], self._is_taken)

    def _scope_foreign_key(self, table: str, key: Node) -> None:
        columns = words(key.fk_attrs)
        if not key.conname:
            key.conname = foreign_key_name(table, columns, self._is_constraint)
        self._chosen.add(key.conname)
        if key.fk_del_action in ("n", "d") and not key.fk_del_set_cols:
            for name in columns:
                key.fk_del_set_cols.add().string.sval = name
        # Of one column, MATCH FULL means the same, and the tenant beside it is never null.
        key.fk_matchtype = "s"
        _put_first(key.fk_attrs)
        if key.pk_attrs:
            _put_first(key.pk_attrs)

    def _touched(self, table: str, keys: Sequence[Node]) -> list[str]:
        """The tables that a check of new foreign keys reads."""
        names = [table, *(key.pktable.relname for key in keys if key.pktable.relname)]
        known = {item.name for item in self._snapshot.tables} | {table}
        return [name for name in dict.fromkeys(names) if name in known]

    def _neighbours(self, table: str) -> Iterator[str]:
        """The tables that foreign keys join with `table`."""
        for key in self._snapshot.constraints:
            if key.type == "f" and table in (key.table, key.target):
                yield from (key.table, key.target or key.table)

    # CREATE INDEX

    def _create_index(self) -> None:
        node = self._node
        relation = self._snapshot.relation(node.relation.relname)
        if node.access_method not in ("", "btree") or relation is None or relation.kind != "r":
            return
        if not node.idxname:
            elements = [*node.index_params, *node.index_including_params]
            node.idxname = index_name(
                relation.name, [unwrap(element) for element in elements], self._is_relation
            )
        first = pb.Node()
        first.index_elem.name = TENANT_COLUMN
        first.index_elem.ordering = pb.SORTBY_DEFAULT
        first.index_elem.nulls_ordering = pb.SORTBY_NULLS_DEFAULT
        _replace(node.index_params, [first, *map(_copy, node.index_params)])
        self._changed = True

    # Queries

    def _rewrite(self, query: Node) -> None:
        rewriter = Rewriter(self._statement.source, visible_schema(self._snapshot))
        rewriter.rewrite(query)
        self._changed = self._changed or rewriter.changed

    def _create_function(self) -> None:
        node = self._node
        for query in _body_queries(node.sql_body):
            self._rewrite(query)
        options = [unwrap(option) for option in node.options]
        language = [unwrap(item.arg).sval.lower() for item in options if item.defname == "language"]
        for option in options:
            if option.defname == "as" and language == ["sql"]:
                self._rewrite_body(unwrap(option.arg).items[0].string)

    def _rewrite_body(self, body: Node) -> None:
        """The body of an SQL function is a text of its own."""
        tree = parse(body.sval)
        rewriter_changed = False
        for query in statement_nodes(tree):
            rewriter = Rewriter(body.sval, visible_schema(self._snapshot))
            rewriter.rewrite(query)
            rewriter_changed = rewriter_changed or rewriter.changed
        if rewriter_changed:
            body.sval = write(tree)
            self._changed = True

    # Names in use

    def _is_relation(self, name: str) -> bool:
        index = any(index.name == name for index in self._snapshot.indexes)
        return name in self._chosen or (
            name not in self._dropped and (index or self._snapshot.relation(name) is not None)
        )

    def _is_constraint(self, name: str) -> bool:
        known = any(constraint.name == name for constraint in self._snapshot.constraints)
        return name in self._chosen or (known and name not in self._dropped)

    def _is_taken(self, name: str) -> bool:
        return self._is_relation(name) or self._is_constraint(name)


def _tenant_column() -> Node:
    """The definition of the column that every table has."""
    return unwrap(unwrap(parse(_TENANT_COLUMN_SOURCE).stmts[0].stmt).table_elts[0])


def _append_constraint(alter: Node, key: Node) -> None:
    """Let an ALTER TABLE also add a constraint."""
    command = alter.cmds.add().alter_table_cmd
    command.subtype = pb.AT_AddConstraint
    command.behavior = pb.DROP_RESTRICT
    getattr(command, "def").constraint.CopyFrom(key)


def _set_attribute(constraint: Node, attribute: int) -> None:
    """Give a constraint the attribute that follows it in a column definition."""
    match attribute:
        case pb.CONSTR_ATTR_DEFERRABLE | pb.CONSTR_ATTR_NOT_DEFERRABLE:
            constraint.deferrable = attribute == pb.CONSTR_ATTR_DEFERRABLE
        case pb.CONSTR_ATTR_DEFERRED:
            constraint.deferrable = constraint.initdeferred = True
        case pb.CONSTR_ATTR_IMMEDIATE:
            constraint.initdeferred = False
        case pb.CONSTR_ATTR_ENFORCED | pb.CONSTR_ATTR_NOT_ENFORCED:
            constraint.is_enforced = attribute == pb.CONSTR_ATTR_ENFORCED
            constraint.skip_validation = not constraint.is_enforced
            constraint.initially_valid = constraint.is_enforced


def _body_queries(body: Node) -> Iterator[Node]:
    """The queries of a body in SQL syntax (`BEGIN ATOMIC`): lists of lists of statements."""
    pending = [unwrap(body)]
    while pending:
        node = pending.pop()
        if type_name(node) == "List":
            pending.extend(unwrap(item) for item in node.items)
        elif type_name(node).endswith("Stmt") and type_name(node) != "ReturnStmt":
            yield node


def _put_first(names: Node) -> None:
    first = pb.Node()
    first.string.sval = TENANT_COLUMN
    _replace(names, [first, *map(_copy, names)])


def _copy(node: Node) -> Node:
    copy = pb.Node()
    copy.CopyFrom(node)
    return copy


def _replace(items: Node, by: Sequence[Node]) -> None:
    copies = [_copy(item) for item in by]
    del items[:]
    items.extend(copies)
