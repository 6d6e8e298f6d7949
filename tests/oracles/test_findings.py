"""What independent checkers say of an installation: nothing that is not explained."""

from __future__ import annotations

import pytest
from support.oracles import MODES, Oracles, idle, unexplained

_TABLES = {
    "addresses", "customers", "journal", "orders", "products", "shops", "sold_items", "staff",
    "tenancy_idempotency",
}  # fmt: skip
_SENSITIVE = {"addresses", "customers", "tenancy_idempotency"}
#: Every table with rows of tenants, wherever it is.
_EVERYWHERE = (
    {f"shared/app.{table}" for table in _TABLES}
    | {f"shared/schema_level.{table}" for table in _TABLES}
    | {f"shared/overlay.{table}" for table in _SENSITIVE}
    | {f"own/app.{table}" for table in _TABLES}
)
#: Tables that the probe cannot make a single row for.
_NEEDS_A_PARENT = {place for place in _EVERYWHERE if place.endswith(".sold_items")}


def test_the_linter_finds_nothing_unexplained(oracles: Oracles):
    found = oracles.lint(oracles.shared) | oracles.lint(oracles.own)

    assert unexplained(found) == []
    assert idle(found, "lint") == []


@pytest.mark.parametrize("mode", MODES)
def test_the_prover_finds_nothing_unexplained(oracles: Oracles, mode: str):
    shared, own = oracles.verify(oracles.shared, mode), oracles.verify(oracles.own, mode)
    found = shared.findings | own.findings

    assert unexplained(found) == []
    assert idle(found, f"verify {mode}") == []
    assert idle(found, f"probe {mode}") == []
    if mode in ("anon", "cross-tenant", "write"):
        assert shared.proven | own.proven >= _EVERYWHERE
    if mode in ("cross-tenant", "write"):
        # Seen on the live database, by two tenants with bindings.
        assert shared.agreed | own.agreed >= _EVERYWHERE - _NEEDS_A_PARENT


def test_the_fuzzer_finds_nothing_unexplained(oracles: Oracles):
    shared, shared_probes = oracles.rlsgrid(oracles.shared)
    own, own_probes = oracles.rlsgrid(oracles.own)
    found, probed = shared | own, {probe.rpartition(" ")[0] for probe in shared_probes | own_probes}

    assert unexplained(found) == []
    assert idle(found, "rlsgrid") == []
    assert probed >= {
        f"{place} {operation}"
        for place in _EVERYWHERE
        for operation in ("SELECT", "INSERT", "UPDATE", "DELETE")
    }
