"""What is remembered of what tenants ask for: the latest, and only what is safe to plan."""

from __future__ import annotations

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.types import StatementKind
from tenancy.data_isolation.engine.overheard import _TENANTS_MAX, _TEXTS_MAX, Overheard
from tenancy.data_isolation.engine.statement import Statement


def statement(text: str, *, plain: bool = True) -> Statement:
    return Statement(
        source=text,
        text=text,
        kind=StatementKind.READ,
        fingerprint="",
        tables=frozenset(),
        functions=frozenset(),
        parameter_names=None,
        parameter_count=0,
        returns_rows=True,
        plain=plain,
    )


def test_the_latest_texts_are_given_once():
    heard = Overheard()
    for number in range(_TEXTS_MAX + 2):
        heard.hear(TenantNo(1), statement(f"select {number}"))
    heard.hear(TenantNo(1), statement("select 2"))
    heard.hear(TenantNo(2), statement("select 'other'"))

    texts = heard.take(TenantNo(1))
    assert len(texts) == _TEXTS_MAX
    assert (texts[0], texts[-1]) == ("select 3", "select 2")
    assert heard.take(TenantNo(1)) == []
    assert heard.take(TenantNo(2)) == ["select 'other'"]


def test_what_may_call_functions_of_users_is_not_planned_ahead():
    heard = Overheard()
    heard.hear(TenantNo(1), statement("select f()", plain=False))
    assert heard.take(TenantNo(1)) == []


def test_only_so_many_tenants_are_remembered():
    heard = Overheard()
    for number in range(_TENANTS_MAX + 1):
        heard.hear(TenantNo(number), statement("select 1"))
    assert heard.take(TenantNo(0)) == []
    assert heard.take(TenantNo(1)) == ["select 1"]
