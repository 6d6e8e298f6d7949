"""The sketch of latencies: quantiles within their bound, also after adding."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core.latency_buckets import (
    BUCKETS,
    BUCKETS_PER_DOUBLING,
    bucket_of,
    middle_s,
    quantile_s,
)

DURATIONS = st.lists(st.floats(2e-6, 1_000), min_size=1, max_size=100)


def counted(durations: list[float]) -> Counter[int]:
    return Counter(map(bucket_of, durations))


@given(DURATIONS, DURATIONS, st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_of_sketches_that_were_added_is_right_within_three_percent(left, right, share):
    durations = sorted(left + right)
    exact = durations[max(1, math.ceil(share * len(durations))) - 1]

    found = quantile_s(counted(left) + counted(right), share)

    assert found == pytest.approx(exact, rel=0.03)


def test_a_bound_of_a_doubling_is_a_bound_of_a_bucket():
    at = 8 * BUCKETS_PER_DOUBLING
    assert bucket_of(1e-6 * 2**8 * 1.0001) == at
    assert bucket_of(1e-6 * 2**8 * 0.9999) == at - 1


def test_what_is_outside_counts_as_the_first_or_the_last():
    assert bucket_of(-1.0) == bucket_of(0.0) == bucket_of(1e-9) == 0
    assert bucket_of(1e9) == BUCKETS - 1
    assert middle_s(BUCKETS - 1) > 3_600


def test_nothing_has_no_quantile():
    assert quantile_s({}, 0.5) is None
