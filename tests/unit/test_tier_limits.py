"""Limits by type: defaults, variables, ceilings, and the way into another process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.bounds import bounds
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.tier_limits import (
    LIMIT_VARIABLES,
    TierLimits,
    TierTable,
    limit_variable,
)
from tenancy.data_isolation.core.types import TenantType


def test_every_limit_of_every_type_is_a_variable_that_sets_it():
    names = [item.name for item in dataclasses.fields(TierLimits)]
    assert len(LIMIT_VARIABLES) == len(names) * len(TenantType)
    for kind in TenantType:
        for name in names:
            variable = limit_variable(kind, name)
            settings = Settings.from_env({variable: "70000"})

            assert getattr(settings.tiers.of(kind), name) == 70_000, variable
            others = [other for other in TenantType if other is not kind]
            assert all(settings.tiers.of(it) == TierTable().of(it) for it in others)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TENANCY_FREE_LOCKS_MAX", "0"),
        ("TENANCY_FREE_LOCKS_MAX", "-1"),
        ("TENANCY_FREE_LOCKS_MAX", "many"),
        ("TENANCY_FREE_LOCKS_MAX", "1.5"),
        ("TENANCY_FREE_LOCKS_MAX", ""),
        ("TENANCY_PREMIUM_OPERATIONS_PER_S", "inf"),
        ("TENANCY_PREMIUM_OPERATIONS_PER_S", "nan"),
        ("TENANCY_ENTERPRISE_STATEMENT_MEMORY_BYTES", "1000"),
        ("TENANCY_ENTERPRISE_STATEMENT_MEMORY_BYTES", str(2**50)),
        ("TENANCY_FREE_RESULT_ROWS_MAX", str(10**30)),
        ("TENANCY_FREE_STATEMENT_TIMEOUT_MS", str(2**31)),
        ("TENANCY_STANDARD_TRANSACTION_TIMEOUT_MS", str(2**31)),
        ("TENANCY_STANDARD_TEMP_FILE_BYTES_MAX", str(2**41)),
        ("TENANCY_PREMIUM_CONNECTIONS_MAX", "262144"),
        ("TENANCY_PREMIUM_OPERATIONS_PER_S", "1e10"),
        ("TENANCY_FREE_LOCKS", "5"),
        ("TENANCY_GOLD_LOCKS_MAX", "5"),
    ],
)
def test_a_bad_limit_is_refused_and_its_variable_named(variable, value):
    with pytest.raises(SettingError, match=variable):
        Settings.from_env({variable: value})


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(TierLimits)])
def test_every_limit_has_bounds_that_its_error_tells(name):
    variable, limits = limit_variable(TenantType.STANDARD, name), bounds(name)
    for value in (limits.least, limits.most):
        text = str(value if name == "operations_per_s" else int(value))
        assert getattr(Settings.from_env({variable: text}).tiers.standard, name) == value
    for text in (str(10**30), str(int(limits.most) + 1), "0", "-1"):
        with pytest.raises(SettingError, match=f"{variable} is .* to {int(limits.most)}"):
            Settings.from_env({variable: text})


def test_a_misspelt_limit_is_told_the_right_one():
    with pytest.raises(SettingError, match="did you mean TENANCY_FREE_LOCKS_MAX"):
        Settings.from_env({"TENANCY_FREE_LOCK_MAX": "5"})


def test_of_a_limit_and_its_ceiling_the_lower_one_holds():
    settings = Settings.from_env(
        {
            "TENANCY_STATEMENT_TIMEOUT_MS": "2000",
            "TENANCY_FREE_STATEMENT_TIMEOUT_MS": "1000",
            "TENANCY_PREMIUM_STATEMENT_TIMEOUT_MS": "9000",
            "TENANCY_TENANT_CONNECTIONS_MAX": "3",
        }
    )
    table = settings.tier_limits

    assert table.free.statement_timeout_ms == 1_000
    assert table.standard.statement_timeout_ms == 2_000
    assert table.premium.statement_timeout_ms == 2_000
    assert {table.of(kind).connections_max for kind in TenantType} == {3}
    assert table.widest.statement_timeout_ms == 2_000


def test_a_type_that_pays_more_is_never_held_shorter():
    table = Settings().tier_limits
    rows = [dataclasses.astuple(table.of(kind)) for kind in TenantType]
    for less, more in itertools.pairwise(rows):
        assert all(a <= b for a, b in zip(less, more, strict=True))
    assert table.widest == table.enterprise


def test_a_table_survives_the_way_into_another_process():
    settings = Settings.from_env({"TENANCY_FREE_LOCKS_MAX": "7"})

    assert pickle.loads(pickle.dumps(settings)) == settings
    plain = json.loads(json.dumps(settings.tiers.plain()))
    assert Settings(tiers=plain).tiers == settings.tiers
    assert hash(settings) == hash(Settings.from_env({"TENANCY_FREE_LOCKS_MAX": "7"}))
    with pytest.raises(SettingError, match="free, standard"):
        Settings(tiers={"free": {"colour": 1}})
    with pytest.raises(SettingError, match="free, standard"):
        Settings(tiers={"gold": {}})
