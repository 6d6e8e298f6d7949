"""How much one HTTP process takes on at the same time."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core import Settings, TenantId
from tenancy.data_isolation.core.errors import OverloadedError, RateLimitedError
from tenancy.data_isolation.serve.admission import Admission

_ACME, _GLOBEX = TenantId("acme"), TenantId("globex")


def _admission() -> Admission:
    return Admission(
        Settings(
            requests_in_flight_max=3,
            tenant_requests_in_flight_max=2,
            request_bytes_in_flight_max=100,
        )
    )


def test_so_many_requests_are_admitted_and_then_none_until_one_leaves():
    admission = _admission()
    first, *_ = [admission.admit() for _ in range(3)]

    with pytest.raises(OverloadedError) as caught:
        admission.admit()
    first.leave()

    assert caught.value.retry_after_s
    assert admission.admit()


def test_a_tenant_has_its_own_limit_and_others_are_not_touched_by_it():
    admission = _admission()
    for _ in range(2):
        admission.admit().take_tenant(_ACME)
    third = admission.admit()

    with pytest.raises(RateLimitedError) as caught:
        third.take_tenant(_ACME)
    third.take_tenant(_GLOBEX)

    assert caught.value.retry_after_s


def test_bodies_share_so_many_bytes():
    admission = _admission()
    first, second = admission.admit(), admission.admit()
    first.take_bytes(80)

    with pytest.raises(OverloadedError):
        second.take_bytes(21)
    second.take_bytes(20)
    first.leave()

    assert admission.body_bytes == 20


def test_what_was_taken_is_given_back_once():
    admission = _admission()
    request = admission.admit()
    request.take_tenant(_ACME)
    request.take_bytes(50)

    request.leave()
    request.leave()

    assert (admission.requests, admission.body_bytes, admission.tenants) == (0, 0, 0)


def test_a_refused_request_gives_back_what_it_had():
    admission = _admission()
    for _ in range(2):
        admission.admit().take_tenant(_ACME)
    refused = admission.admit()
    with pytest.raises(RateLimitedError):
        refused.take_tenant(_ACME)

    refused.leave()

    assert (admission.requests, admission.tenants) == (2, 1)
