"""When another level is proposed for a tenant, and when the proposal is withdrawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import IsolationLevel, TenantId, TenantSize
from tenancy.data_isolation.core.promotion import (
    WITHDRAWN_SHARE,
    Growth,
    Promotion,
    PromotionLimits,
    proposed,
)
from tenancy.data_isolation.core.rules import StrategyName

ACME = TenantId("acme")
LIMITS = PromotionLimits(
    level=IsolationLevel.SCHEMA, rows_min=1_000, bytes_min=1_000_000, load_ops_s_min=50.0
)


def grown(rows: int = 0, size: int = 0, load_ops_s: float = 0.0) -> Growth:
    return Growth(load_ops_s=load_ops_s, size=TenantSize(rows=rows, bytes=size, complete=True))


def look(growth: Growth, before: Promotion | None = None, at: str = "now") -> Promotion | None:
    return proposed(ACME, growth, LIMITS, before=before, at=at)


@pytest.mark.parametrize(
    ("growth", "reason"),
    [
        (grown(rows=1_000), "rows 1,000 >= 1,000"),
        (grown(size=2_000_000), "bytes 2,000,000 >= 1,000,000"),
        (grown(load_ops_s=50.5), "load_ops_s 50.5 >= 50"),
        (Growth(load_ops_s=80.0), "load_ops_s 80 >= 50"),
    ],
)
def test_each_limit_counts_for_itself(growth, reason):
    assert look(growth) == Promotion(
        tenant_id=ACME,
        strategy=StrategyName.SCHEMA_LEVEL,
        level=IsolationLevel.SCHEMA,
        since="now",
        reasons=(reason,),
    )


def test_nothing_is_proposed_below_all_limits():
    assert look(grown(rows=999, size=999_999, load_ops_s=49.9)) is None
    assert look(Growth()) is None


def test_a_proposal_outlives_a_small_fall_and_no_more():
    first = look(grown(rows=1_500), at="first")
    kept = look(grown(rows=900), before=first, at="later")
    again = look(grown(rows=1_200), before=kept, at="last")

    assert kept == first
    assert again == replace(first, reasons=("rows 1,200 >= 1,000",))
    assert look(grown(rows=799), before=again) is None
    # What was not proposed before is not proposed on the way up either.
    assert look(grown(rows=900)) is None


@given(rows=st.integers(0, 3_000), load=st.floats(0, 200), had=st.booleans())
def test_a_proposal_stands_exactly_while_a_limit_is_near(rows, load, had):
    before = look(grown(rows=5_000)) if had else None
    nearest = max(rows / LIMITS.rows_min, load / LIMITS.load_ops_s_min)
    found = look(grown(rows=rows, load_ops_s=load), before=before)

    if nearest >= 1:
        assert found is not None
    elif nearest < WITHDRAWN_SHARE * 0.999_999 or not had:
        assert found is None


def test_a_document_is_what_json_carries():
    found = look(grown(rows=1_000))

    assert found.document() == {
        "tenant_id": "acme",
        "strategy": "schema_level",
        "isolation_level": "schema",
        "since": "now",
        "reasons": ["rows 1,000 >= 1,000"],
    }
