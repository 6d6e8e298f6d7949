"""Activation: once for all who wait, never passivated in use, and nothing left of failures."""

from __future__ import annotations

import asyncio

import pytest

from tenancy.data_isolation.actors.activation import ActiveTenants
from tenancy.data_isolation.core.errors import OverloadedError, TenantNotFoundError
from tenancy.data_isolation.core.identifiers import TenantId, TenantNo
from tenancy.data_isolation.core.types import Tenant, TenantStatus, TenantType

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")


class SetClock:
    def __init__(self):
        self.time_s = 100.0

    def monotonic_s(self):
        return self.time_s


class Catalog:
    """Tenants that become active when the test says so."""

    def __init__(self):
        self.asked = []
        self.let_go = []
        self.open = asyncio.Event()
        self.open.set()
        self.failing = False
        self.version = 1

    async def activate(self, tenant_id):
        self.asked.append(tenant_id)
        await self.open.wait()
        if self.failing:
            raise TenantNotFoundError
        return Tenant(
            tenant_id=tenant_id,
            tenant_no=TenantNo(len(self.asked)),
            tenant_type=TenantType.FREE,
            status=TenantStatus.ACTIVE,
            region=None,
            compliance=(),
            placement=None,
        )

    def actor_of(self, tenant):
        return f"actor-{self.version}"

    def passivate(self, tenant):
        self.let_go.append(tenant.tenant_id)


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
async def catalog():
    return Catalog()


@pytest.fixture
def make(catalog, clock):
    def build(tenants_max=100, idle_s=60.0):
        return ActiveTenants(
            activate=catalog.activate,
            passivate=catalog.passivate,
            actor_of=catalog.actor_of,
            tenants_max=tenants_max,
            idle_s=idle_s,
            clock=clock,
        )

    return build


async def _use(tenants, tenant_id):
    tenants.release(await tenants.acquire(tenant_id))


async def test_concurrent_first_uses_activate_once(make, catalog):
    tenants = make()

    used = await asyncio.gather(*(tenants.acquire(A) for _ in range(50)))

    assert catalog.asked == [A]
    assert len(set(map(id, used))) == 1
    assert used[0].uses == 50


async def test_a_slow_activation_holds_up_no_other_tenant(make, catalog):
    tenants = make()
    await _use(tenants, B)
    catalog.open.clear()
    slow = asyncio.create_task(tenants.acquire(A))
    await asyncio.sleep(0)

    await _use(tenants, B)

    assert not slow.done()
    catalog.open.set()
    await slow


async def test_one_who_stops_waiting_does_not_stop_the_activation_of_the_others(make, catalog):
    tenants = make()
    catalog.open.clear()
    leaving, staying = (asyncio.create_task(tenants.acquire(A)) for _ in range(2))
    await asyncio.sleep(0)

    leaving.cancel()
    catalog.open.set()

    assert (await staying).uses == 1
    assert catalog.asked == [A]


async def test_a_failed_activation_leaves_nothing_and_the_next_use_tries_again(make, catalog):
    tenants = make()
    catalog.failing = True
    failures = await asyncio.gather(*(tenants.acquire(A) for _ in range(3)), return_exceptions=True)
    catalog.failing = False

    await _use(tenants, A)

    assert [type(failure) for failure in failures] == [TenantNotFoundError] * 3
    assert catalog.asked == [A, A]
    assert len(tenants) == 1


async def test_an_idle_tenant_is_passivated_after_its_time_and_not_before(make, catalog, clock):
    tenants = make(idle_s=60)
    await _use(tenants, A)

    clock.time_s += 59
    assert tenants.passivate_idle() == pytest.approx(1)
    assert A in tenants
    clock.time_s += 1
    assert tenants.passivate_idle() is None

    assert A not in tenants
    assert catalog.let_go == [A]


async def test_using_a_tenant_starts_its_time_anew(make, clock):
    tenants = make(idle_s=60)
    await _use(tenants, A)
    clock.time_s += 59
    await _use(tenants, A)
    clock.time_s += 59

    tenants.passivate_idle()

    assert A in tenants


async def test_a_tenant_in_use_is_never_passivated(make, clock):
    tenants = make(tenants_max=2, idle_s=60)
    held = await tenants.acquire(A)
    clock.time_s += 1_000

    tenants.passivate_idle()
    await _use(tenants, B)
    await _use(tenants, C)

    assert A in tenants
    assert B not in tenants
    tenants.release(held)


async def test_the_tenant_idle_for_longest_makes_room(make, catalog, clock):
    tenants = make(tenants_max=2)
    for tenant_id in (A, B, A):
        clock.time_s += 1
        await _use(tenants, tenant_id)

    await _use(tenants, C)

    assert catalog.let_go == [B]
    assert len(tenants) == 2


async def test_a_further_tenant_is_turned_away_when_all_are_in_use(make):
    tenants = make(tenants_max=1)
    held = await tenants.acquire(A)

    with pytest.raises(OverloadedError) as refused:
        await tenants.acquire(B)

    assert refused.value.retry_after_s
    tenants.release(held)
    await _use(tenants, B)


async def test_a_forgotten_tenant_is_activated_again_and_its_old_pins_do_no_harm(make, catalog):
    tenants = make()
    old = await tenants.acquire(A)
    tenants.forget(A)

    new = await tenants.acquire(A)
    tenants.release(old)

    assert new is not old
    assert new.uses == 1
    assert catalog.asked == [A, A]
    tenants.release(new)
    assert len(tenants) == 1


async def test_active_tenants_learn_of_a_new_directory(make, catalog):
    tenants = make()
    active = await tenants.acquire(A)
    assert active.actor == "actor-1"
    catalog.version = 2

    tenants.reroute()

    assert active.actor == "actor-2"
    tenants.release(active)
