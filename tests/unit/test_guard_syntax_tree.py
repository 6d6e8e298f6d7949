"""Parsing, walking and writing back."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.errors import StatementForbiddenError, StatementSyntaxError
from tenancy.data_isolation.engine import syntax_tree
from tenancy.data_isolation.engine.guard_rules import ALLOW
from tenancy.data_isolation.engine.syntax_tree import (
    check_depth,
    nodes,
    parse,
    pb,
    position,
    scan,
    statement_nodes,
    type_name,
    without_places,
    write,
)


def test_every_node_is_visited_once_in_the_order_of_the_text():
    tree = parse("with w as (select a from t) select b, (select c) from w where d = e")

    found = [node.fields[0].string.sval for node in nodes(tree) if type_name(node) == "ColumnRef"]

    assert sorted(found) == ["a", "b", "c", "d", "e"]
    assert found.index("b") < found.index("c") < found.index("d") < found.index("e")


def test_layout_does_not_make_a_tree_another_but_content_does():
    tree = parse("select a, array[1], b from t where c in (1, 2)")

    assert without_places(tree) == without_places(
        parse("SELECT  a,\n array [ 1 ], b -- x\nFROM t WHERE c IN (1,2);")
    )
    assert without_places(tree) != without_places(
        parse("select a, array[1], b from t where c in (1, 3)")
    )


def test_a_tree_that_cannot_be_written_back_is_refused():
    tree = parse("select a from t")
    tree.stmts[0].stmt.select_stmt.target_list[
        0
    ].res_target.val.column_ref.fields.add().integer.ival = 1

    with pytest.raises(StatementForbiddenError, match="cannot be written back exactly"):
        write(tree)


def test_a_text_that_means_another_tree_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Wrong:
        """A writer with a mistake; the parser is the real one."""

        PgQueryError = syntax_tree.postgast.PgQueryError
        parse = staticmethod(syntax_tree.postgast.parse)
        deparse = staticmethod(lambda tree: "SELECT b FROM t")

    monkeypatch.setattr(syntax_tree, "postgast", Wrong)

    with pytest.raises(StatementForbiddenError):
        write(parse("select a from t"))
    assert write(parse("select b from t")) == "SELECT b FROM t"


def test_positions_are_told_in_characters():
    sql = "select 'ü',\n  x from t"
    reference = next(node for node in nodes(parse(sql)) if type_name(node) == "ColumnRef")

    assert position(sql, reference.location) == "line 2, column 3"


def test_depth_is_bounded_across_set_operations_but_not_across_lists():
    deep = " union ".join(["select 1, 2"] * 6_000)
    wide = "select " + ", ".join(["(1)"] * 6_000)

    check_depth(wide, scan(wide))
    with pytest.raises(StatementSyntaxError, match="nests too deeply"):
        check_depth(deep, scan(deep))


def test_the_bound_on_depth_counts_at_least_the_depth_of_the_tree():
    """The bound must never be below what the tree has, or the C code could run out of stack."""
    for sql in (
        "select 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8",
        "select 1, 2 union select 1, 2 union select 1, 2 union select 1, 2",
        "select (((a.b[1])[2]::int)::text) from t join u on true join v on true, w join x on true",
        "select a, case when b then c else (select d, e from f where g = h) end from i",
        "insert into t select a, b from (select c, d from (select 1, 2) e) f where not not not g",
    ):
        tree = parse(sql)
        assert len(scan(sql)) >= _depth(statement_nodes(tree)[0]) / 2


def _depth(node: object) -> int:
    return 1 + max((_depth(child) for child in syntax_tree.children(node)), default=0)


def test_every_statement_of_the_list_is_a_node_and_every_node_exists():
    known = set(pb.DESCRIPTOR.message_types_by_name)

    assert ALLOW.statements <= ALLOW.nodes <= known
    assert {"CopyStmt", "VariableSetStmt", "DoStmt", "TransactionStmt", "XmlExpr"} <= (
        known - ALLOW.nodes
    )


def test_every_value_of_the_list_exists():
    assert set(pb.SQLValueFunctionOp.keys()) >= ALLOW.values


@pytest.mark.parametrize(
    "name", ["set_config", "pg_sleep", "nextval", "query_to_xml", "ts_rewrite"]
)
def test_the_lists_leave_out_what_is_dangerous(name: str):
    assert name not in ALLOW.functions
    assert "lower" in ALLOW.functions
