"""The header `traceparent`: what is well-formed is taken, everything else is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.trace_context import TraceContext
from tenancy.data_isolation.engine.tracing import Tracing, check_traces

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_header_says_trace_parent_and_whether_it_is_recorded():
    found = TraceContext.of(f"00-{TRACE}-{SPAN}-01")
    assert found == TraceContext(int(TRACE, 16), int(SPAN, 16), sampled=True)
    assert str(found) == f"00-{TRACE}-{SPAN}-01"
    assert not TraceContext.of(f"00-{TRACE}-{SPAN}-00").sampled
    # A later version may say more, and flags that are not known are none of ours.
    assert TraceContext.of(f"cc-{TRACE}-{SPAN}-03-what-comes") == found


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_malformed_is_ignored(header):
    assert TraceContext.of(header) is None


@given(st.text(max_size=80))
def test_no_text_raises(text):
    TraceContext.of(text)


def test_nothing_is_traced_unless_it_is_asked_for():
    assert Tracing.of(Settings(), "test") is None


@pytest.mark.parametrize("endpoint", ["collector", "ftp://x/", "http://", "http://[", "grpc://a:1"])
def test_an_endpoint_that_is_none_is_refused_by_name(endpoint):
    with pytest.raises(SettingError, match="TENANCY_TRACES_ENDPOINT"):
        check_traces(Settings(traces_endpoint=endpoint))
    check_traces(Settings(traces_endpoint="https://collector.example:4318/v1/traces"))
