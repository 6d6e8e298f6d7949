"""What Prometheus is told of operations: by actor and level, by tenant only when that is asked."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core.latency_buckets import bucket_of
from tenancy.data_isolation.engine.operation_figures import Figures, LevelFigures, TopTenant
from tenancy.data_isolation.serve.lasting_figures import ActorFigures
from tenancy.data_isolation.serve.operation_metrics import OperationCollector

SHARED, DEDICATED = "tenancy-shared-default-0", "tenancy-dedicated-default-7"


def figures(busy_s: float = 2.0, tenant: str = "acme", rows: int = 5) -> Figures:
    level = LevelFigures(latency_s=3.5, busy_s=busy_s, rows=rows)
    level.outcomes.update({"done": 9, "failed": 1})
    level.latencies.update({bucket_of(0.0003): 6, bucket_of(0.003): 3, bucket_of(60.0): 1})
    top = TopTenant(tenant_id=tenant, operations=10, not_done=1, busy_s=busy_s, window_s=2.0)
    return Figures(levels={"row": level}, windows_written=3, windows_lost=1, top=(top,))


def told(top_max: int, found: dict[str, Any]) -> dict[str, float]:
    collector = OperationCollector(top_max)
    collector.take(found)
    return exposed(collector)


def exposed(collector: OperationCollector) -> dict[str, float]:
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


def counters(collector: OperationCollector) -> dict[str, float]:
    found = exposed(collector)
    return {name: value for name, value in found.items() if "_actor_up{" not in name}


def test_no_counter_falls_whatever_becomes_of_the_actors():
    other = DEDICATED.replace("7", "8")
    collector = OperationCollector(0)
    steps = [
        ({SHARED: figures(), DEDICATED: figures(rows=9), other: figures(0.3)}, (10, 20)),
        # One does not answer, and one has ended.
        ({SHARED: None, DEDICATED: figures(rows=9)}, (10, 20)),
        # Both began anew and are behind what they were. Times alone say nothing of that.
        ({SHARED: figures(rows=1), DEDICATED: figures(rows=8)}, (20, 30)),
        ({SHARED: figures(1.9, rows=1), DEDICATED: figures(rows=8), other: figures()}, (20, 30)),
        ({}, (20, 30)),
    ]
    before: dict[str, float] = {}
    for told_now, operations in steps:
        collector.take(told_now)
        now = counters(collector)
        assert not [name for name, value in before.items() if now.get(name, -1.0) < value]
        counted = [
            now[f'tenancy_operation_seconds_count{{actor="{name}",level="row"}}']
            for name in (SHARED, "dedicated")
        ]
        assert tuple(counted) == operations
        before = now


def test_what_is_added_is_added():
    collector = OperationCollector(0)
    collector.take({DEDICATED: figures()})
    more = figures(busy_s=5.0)
    more.levels["row"].outcomes["done"] += 1
    more.levels["schema"] = LevelFigures(rows=2)  # type: ignore[index]
    collector.take({DEDICATED: more})

    found = exposed(collector)
    labels = 'actor="dedicated",level="row"'
    assert found[f'tenancy_operations_total{{{labels},outcome="done"}}'] == 10
    assert found[f"tenancy_operation_busy_seconds_total{{{labels}}}"] == 5
    assert found['tenancy_operation_rows_total{actor="dedicated",level="schema"}'] == 2


def test_what_is_remembered_of_actors_is_bounded(monkeypatch):
    monkeypatch.setattr("tenancy.data_isolation.serve.lasting_figures._ACTORS_MAX", 3)
    found = ActorFigures()
    for number in range(9):
        found.take({ActorName(f"tenancy-dedicated-default-{number}"): figures()})

    assert len(found._last) == 3
    assert list(found.found) == ["dedicated"]
    assert found.found["dedicated"].levels["row"].rows == 45


def test_an_actor_that_does_not_answer_is_told_of():
    found = told(0, {SHARED: None})

    assert found[f'tenancy_actor_up{{actor="{SHARED}"}}'] == 0
    assert [name for name in found if name.startswith("tenancy_operation")] == []
