"""What Prometheus is told of operations: by actor and level, by tenant only when that is asked."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from tenancy.data_isolation.core.latency_buckets import bucket_of
from tenancy.data_isolation.engine.operation_figures import Figures, LevelFigures, TopTenant
from tenancy.data_isolation.serve.operation_metrics import OperationCollector

SHARED, DEDICATED = "tenancy-shared-default-0", "tenancy-dedicated-default-7"


def figures(busy_s: float = 2.0, tenant: str = "acme") -> Figures:
    level = LevelFigures(latency_s=3.5, busy_s=busy_s, rows=5)
    level.outcomes.update({"done": 9, "failed": 1})
    level.latencies.update({bucket_of(0.0003): 6, bucket_of(0.003): 3, bucket_of(60.0): 1})
    top = TopTenant(tenant_id=tenant, operations=10, not_done=1, busy_s=busy_s, window_s=2.0)
    return Figures(levels={"row": level}, windows_written=3, windows_lost=1, top=(top,))


def told(top_max: int, found: dict[str, Any]) -> dict[str, float]:
    collector = OperationCollector(top_max)
    collector.figures = found
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_operations_are_told_by_actor_and_level():
    found = told(0, {SHARED: figures()})

    labels = f'actor="{SHARED}",level="row"'
    assert found[f'tenancy_operations_total{{{labels},outcome="done"}}'] == 9
    assert found[f"tenancy_operation_busy_seconds_total{{{labels}}}"] == 2
    assert found[f"tenancy_operation_seconds_count{{{labels}}}"] == 10
    buckets = [
        value
        for name, value in found.items()
        if name.startswith("tenancy_operation_seconds_bucket")
    ]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[1], buckets[-2], buckets[-1]) == (0, 6, 9, 10)
    assert found[f'tenancy_measured_windows_total{{actor="{SHARED}",outcome="lost"}}'] == 1


def test_no_tenant_is_named_unless_it_is_asked_for():
    found = {SHARED: figures(), DEDICATED: figures(4.0, "globex")}

    assert not [name for name in told(0, found) if "acme" in name or "globex" in name]
    assert not [name for name in told(0, found) if "-7" in name]
    named = told(1, found)
    assert named['tenancy_top_tenant_busy_ratio{tenant="globex"}'] == 2
    assert not [name for name in named if "acme" in name]
    assert named['tenancy_operations_total{actor="dedicated",level="row",outcome="done"}'] == 9


def test_an_actor_that_does_not_answer_is_told_of():
    found = told(0, {SHARED: None})

    assert found[f'tenancy_actor_up{{actor="{SHARED}"}}'] == 0
    assert [name for name in found if name.startswith("tenancy_operation")] == []
