"""Whether a statement only reads, as far as its text alone tells.

Asked when an actor was lost, of the statements that were under way. The engine's guard knows more,
namely the tenant's schema, but runs where the database is.
"""

from __future__ import annotations

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.engine.guard_rules import check_kind, check_nodes
from tenancy.data_isolation.engine.placeholders import number_placeholders
from tenancy.data_isolation.engine.syntax_tree import parse, statement_nodes
from tenancy.data_isolation.engine.visible_schema import VisibleSchema


def changes_nothing(query: str) -> bool:
    """Whether running `query` twice is the same as running it once.

    A function of the tenant's schema may write, and a text that cannot be read may do anything.
    """
    try:
        text = number_placeholders(query).text
        for node in statement_nodes(parse(text)):
            check_kind(text, node)
            if check_nodes(text, node, VisibleSchema()).writes:
                return False
    except (TenancyError, RecursionError):
        return False
    return True
