"""Results in memory: bounds, age, and who is passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.engine.kept_results import KeptResult, KeptResults

keys = st.tuples(st.integers(1, 3), st.sampled_from([b"a", b"b", b"c", b"d"]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, st.integers(0, 3_000)),
        st.tuples(st.just("get"), keys, st.just(0)),
        st.tuples(st.just("drop"), keys, st.just(0)),
        st.tuples(st.just("forget"), keys, st.just(0)),
    ),
    max_size=60,
)


def made(*, hot_hits_min: int = 3) -> KeptResults:
    return KeptResults(bytes_max=6_000, tenant_bytes_max=4_000, hot_hits_min=hot_hits_min)


@given(steps)
def test_it_gives_what_was_put_last_and_stays_within_its_bounds(done):
    results, right = made(), {}
    for what, key, size in done:
        match what:
            case "put":
                entry = KeptResult((1,), b"x" * size, 10.0)
                right.pop(key, None)
                if results.put(*key, entry):
                    right[key] = entry
                else:
                    assert size > 3_000
            case "get":
                found = results.get(*key, 5.0)
                assert found is None or found is right[key]
                if found is not None:
                    results.used(*key)
            case "drop":
                results.drop(*key)
                right.pop(key, None)
            case "forget":
                results.forget_tenant(key[0])
                right = {other: item for other, item in right.items() if other[0] != key[0]}
        assert results.bytes == sum(map(results.tenant_bytes, (1, 2, 3))) <= 6_000
        assert all(results.tenant_bytes(number) <= 4_000 for number in (1, 2, 3))
        assert len(results) <= len(right)


def test_a_result_is_given_until_its_time_is_over():
    results = made()
    results.put(1, b"a", KeptResult((1,), b"x", 10.0))
    assert results.get(1, b"a", 9.9) is not None
    assert results.get(1, b"a", 10.0) is None
    assert len(results) == results.bytes == 0


def test_what_was_used_least_lately_goes_first():
    results = made()
    for name in (b"a", b"b", b"c"):
        results.put(1, name, KeptResult((1,), b"x" * 800, 10.0))
    results.used(1, b"a")
    results.put(1, b"d", KeptResult((1,), b"x" * 800, 10.0))
    assert results.get(1, b"b", 0.0) is None
    assert results.get(1, b"a", 0.0) is not None


def test_a_hot_tenant_is_passed_over_until_it_cools_down():
    results = made()
    results.put(1, b"hot", KeptResult((1,), b"x" * 1_000, 10.0))
    for _ in range(3):
        results.used(1, b"hot")
    assert results.hot() == {1}
    for number in range(10):
        results.put(2 + number, b"a", KeptResult((1,), b"x" * 1_000, 10.0))
    assert results.get(1, b"hot", 0.0) is not None
    for _ in range(2):
        results.cool_down()
    assert results.hot() == frozenset()
    for number in range(10):
        results.put(2 + number, b"b", KeptResult((1,), b"x" * 1_000, 10.0))
    assert results.get(1, b"hot", 0.0) is None
