"""Whatever text comes, the guard gives an answer of its own, and always the same one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.tenant_queries import TABLES, queries

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.placeholders import number_placeholders
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.syntax_tree import fingerprint, parse, without_places, write
from tenancy.data_isolation.engine.visible_schema import VisibleRelation, VisibleSchema

SCHEMA = VisibleSchema(
    relations={
        name: VisibleRelation(name=name, columns=columns, primary_key=columns[:1])
        for name, columns in TABLES.items()
    }
)
_PIECES = """
( ) [ ] , ; : . * + - = < > ' " $1 $2 $$ :a ::int := -- /* */ é 1 1.5e3 'x' E'\\'' $a$ u&"x"
select from where insert into values update set delete merge using on when matched then not and or
in exists natural left join lateral with recursive as returning conflict do nothing group order by
limit for of union all table row array case end cast null default customers orders status tags
tenant_id id name excluded old new pg_class set_config row_to_json count lower json_object interval
current_user commit copy explain
"""
#: Pieces from which text comes that looks like SQL.
PIECES = (*_PIECES.split(), "\n", "\x00")


def outcome(query: str) -> Statement | tuple[str, str]:
    """What a guard that knows nothing yet says."""
    try:
        return Guard(settings=Settings(), schema=SCHEMA).check(query)
    except TenancyError as error:
        return type(error).__name__, error.detail


@given(st.text())
def test_any_text_gives_a_statement_or_an_error_of_ours(query: str):
    assert outcome(query) == outcome(query)


@given(st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))
def test_text_that_looks_like_sql_gives_a_statement_or_an_error_of_ours(query: str):
    assert outcome(query) == outcome(query)


@given(st.text(alphabet="[]():'\"$ab1-*/\\\n é", max_size=30))
def test_numbering_placeholders_never_fails_otherwise(query: str):
    try:
        numbered = number_placeholders(query)
    except TenancyError:
        return
    assert (numbered.text == query) == (numbered.names is None)


@given(queries())
def test_a_query_of_the_grammar_is_read_as_what_it_is(query: str):
    found = outcome(query)

    assert outcome(query) == found
    if isinstance(found, tuple):
        return
    parse(found.text)
    assert found.fingerprint == fingerprint(query)
    assert "tenant_id" not in found.text.split("GROUP BY")[0]


@given(queries())
def test_writing_a_tree_back_gives_the_same_tree(query: str):
    tree = parse(query)

    assert without_places(parse(write(tree))) == without_places(tree)
