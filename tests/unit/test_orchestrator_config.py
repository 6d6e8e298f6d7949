"""OrchestratorConfig and the package's names: what is accepted and how the rest is refused."""

from __future__ import annotations

import dataclasses
import importlib
import pickle

import pytest

from tenancy.data_isolation import strategies
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.strategies import OrchestratorConfig


def test_the_specified_configurations_are_accepted():
    OrchestratorConfig(
        ml_enabled=True, auto_optimization=True, predictive_scaling=True, real_time_adaptation=True
    )
    OrchestratorConfig(
        ml_enabled=False,
        auto_optimization=False,
        predictive_scaling=False,
        metrics_collection_interval_seconds=60,
    )
    OrchestratorConfig(
        performance_sla_targets={
            "latency_ms": 50,
            "throughput_ops_sec": 2000,
            "availability_percentage": 99.99,
            "error_rate": 0.001,
        },
        metrics_collection_interval_seconds=10,
    )
    OrchestratorConfig(
        security_monitoring=True,
        compliance_validation=True,
        automatic_security_upgrades=True,
        fallback_strategy="blockchain_security",
        max_concurrent_strategies=10,
        optimization_interval_minutes=30,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ml_enabled", "yes"),
        ("compliance_validation", 1),
        ("max_concurrent_strategies", 0),
        ("max_concurrent_strategies", 2.5),
        ("max_concurrent_strategies", True),
        ("optimization_interval_minutes", 0),
        ("metrics_collection_interval_seconds", 0),
        ("metrics_collection_interval_seconds", float("nan")),
        ("metrics_collection_interval_seconds", "60"),
        ("breaker_failures_max", -1),
        ("breaker_open_s", float("inf")),
        ("performance_sla_targets", {"speed": 3}),
        ("performance_sla_targets", [50]),
        ("fallback_strategy", "shelf_level"),
        ("fallback_strategy", ["row_level"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(option, value):
    with pytest.raises(SettingError, match=f"OrchestratorConfig.{option}"):
        OrchestratorConfig(**{option: value})


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(SettingError, match=r"has no 'mlenabled'; it has .*ml_enabled"):
        OrchestratorConfig.from_mapping({"mlenabled": True})
    with pytest.raises(TypeError, match="mlenabled"):
        OrchestratorConfig(mlenabled=True)

    assert OrchestratorConfig.from_mapping({"ml_enabled": True}) == OrchestratorConfig(
        ml_enabled=True
    )


def test_it_is_frozen_and_can_cross_processes():
    config = OrchestratorConfig(
        performance_sla_targets={"latency_ms": 5}, fallback_strategy="hybrid"
    )

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.ml_enabled = True
    assert pickle.loads(pickle.dumps(config)) == config


def test_what_the_caller_does_to_its_targets_later_changes_nothing():
    targets = {"latency_ms": 5}
    config = OrchestratorConfig(performance_sla_targets=targets)
    targets["latency_ms"] = 50

    assert config.performance_sla_targets == {"latency_ms": 5}


@pytest.mark.parametrize("name", ["BlockchainSecurityStrategy", "AIDriverStrategy", "EdgeConfig"])
def test_a_strategy_that_is_not_built_is_an_import_error_that_says_so(name):
    with pytest.raises(ImportError, match=f"{name} does not exist yet; .* has .*RowLevelStrategy"):
        importlib.import_module("tenancy.data_isolation.strategies").__getattr__(name)
    with pytest.raises(ImportError, match="does not exist yet"):
        exec(f"from tenancy.data_isolation.strategies import {name}")


def test_any_other_name_is_an_ordinary_missing_attribute():
    assert not hasattr(strategies, "Shelf")
    with pytest.raises(ImportError, match="cannot import name 'Shelf'"):
        exec("from tenancy.data_isolation.strategies import Shelf")


def test_every_promised_name_is_there():
    assert {name for name in strategies.__all__ if not hasattr(strategies, name)} == set()
