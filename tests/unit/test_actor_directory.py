"""The directory: whoever has it finds the same actor, tenants spread evenly and move little."""

from __future__ import annotations

from collections import Counter

import pytest

from tenancy.data_isolation.actors.directory import (
    ActorName,
    Directory,
    build_directory,
    dedicated_name,
    highest_random_weight,
)
from tenancy.data_isolation.core.errors import InvalidInputError, SettingError
from tenancy.data_isolation.core.identifiers import Region, TenantId, TenantNo
from tenancy.data_isolation.core.types import Tenant, TenantStatus, TenantType

TENANTS = [TenantId(f"tenant-{number}") for number in range(6_000)]


def _tenant(name="acme", number=7, kind=TenantType.STANDARD, region=None):
    return Tenant(
        tenant_id=TenantId(name),
        tenant_no=TenantNo(number),
        tenant_type=kind,
        status=TenantStatus.ACTIVE,
        region=region,
        compliance=(),
        placement=None,
    )


def _spread(actors):
    directory = build_directory(version=1, actors_per_region=actors)
    return {tenant: directory.shared_actor(tenant) for tenant in TENANTS}


@pytest.mark.parametrize("actors", [2, 3, 8])
def test_tenants_spread_evenly(actors):
    counts = Counter(_spread(actors).values())

    even = len(TENANTS) / actors
    assert len(counts) == actors
    assert max(counts.values()) < 1.2 * even
    assert min(counts.values()) > 0.8 * even


@pytest.mark.parametrize("actors", [1, 2, 7])
def test_an_actor_that_joins_takes_its_share_and_no_tenant_moves_between_the_others(actors):
    before, after = _spread(actors), _spread(actors + 1)

    moved = {tenant for tenant in TENANTS if before[tenant] != after[tenant]}

    newcomer = f"tenancy-shared-default-{actors}"
    assert {after[tenant] for tenant in moved} == {newcomer}
    assert len(moved) == pytest.approx(len(TENANTS) / (actors + 1), rel=0.2)


def test_the_order_of_the_list_does_not_matter():
    names = tuple(ActorName(f"a-{number}") for number in range(5))

    for tenant in TENANTS[:200]:
        assert highest_random_weight(tenant, names) == highest_random_weight(tenant, names[::-1])


def test_the_choice_is_the_same_in_every_process_and_release():
    # Fixed results: were one of them to change, clients of two releases would disagree.
    directory = build_directory(version=1, actors_per_region=4)

    chosen = [
        directory.shared_actor(TenantId(name)) for name in ("acme", "globex", "t-1", "united")
    ]

    assert chosen == [f"tenancy-shared-default-{number}" for number in (2, 3, 3, 1)]


def test_a_tenant_of_a_region_has_an_actor_there_and_others_have_one_of_the_first_region():
    directory = build_directory(
        version=1, actors_per_region=2, regions=(Region("eu"), Region("us"))
    )

    assert directory.actor_of(_tenant(region=Region("us"))).startswith("tenancy-shared-us-")
    assert directory.actor_of(_tenant(region=None)).startswith("tenancy-shared-eu-")
    assert directory.actor_of(_tenant(region=Region("moon"))).startswith("tenancy-shared-eu-")


def test_enterprise_tenants_and_listed_ones_have_an_actor_of_their_own():
    directory = build_directory(
        version=1, actors_per_region=2, dedicated=frozenset({TenantId("globex")})
    )

    assert directory.actor_of(_tenant(kind=TenantType.ENTERPRISE)) == dedicated_name(TenantNo(7))
    assert directory.actor_of(_tenant("globex", 8)) == dedicated_name(TenantNo(8))
    assert directory.actor_of(_tenant()) == directory.shared_actor(TenantId("acme"))


def test_no_actor_is_named_after_a_customer():
    directory = build_directory(version=1, actors_per_region=2)

    for kind in TenantType:
        assert "acme" not in directory.actor_of(_tenant("acme", kind=kind))


def test_a_directory_without_actors_is_refused():
    with pytest.raises(SettingError):
        Directory(version=1, shared={})
    with pytest.raises(SettingError):
        Directory(version=1, shared={Region("eu"): ()})


def test_a_region_that_is_no_word_is_refused():
    with pytest.raises(InvalidInputError):
        build_directory(version=1, actors_per_region=1, regions=(Region("Not A Word"),))


def test_the_region_of_a_shared_actor_is_known():
    directory = build_directory(
        version=1, actors_per_region=1, regions=(Region("eu"), Region("us"))
    )

    assert directory.region_of(ActorName("tenancy-shared-us-0")) == "us"
    assert directory.region_of(dedicated_name(TenantNo(1), Region("us"))) == "us"
    assert directory.region_of(dedicated_name(TenantNo(1), Region("moon"))) is None
    assert directory.region_of(ActorName("tenancy-shared-us-9")) is None


def test_a_tenants_own_actor_runs_in_the_tenants_region():
    directory = build_directory(
        version=1, actors_per_region=1, regions=(Region("eu"), Region("us-west"))
    )

    own = directory.actor_of(_tenant(kind=TenantType.ENTERPRISE, region=Region("us-west")))

    assert own == "tenancy-dedicated-us-west-7"
    assert directory.region_of(own) == "us-west"
