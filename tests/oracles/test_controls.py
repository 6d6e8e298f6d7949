"""The same checkers on boundaries with holes: they do report them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.oracles import Database, Oracles, copied, unexplained

_IDEMPOTENCY = "app.tenancy_idempotency"
_WEAKEN = Path(__file__).with_name("weaken.sql").read_text()


@pytest.fixture(scope="module")
def weak(oracles: Oracles) -> Database:
    """A copy of the shared database with holes in it; only its schema `app` is looked at."""
    name = f"{oracles.shared.name}_weak"
    asyncio.run(copied(oracles.install, oracles.shared, name, _WEAKEN))
    return dataclasses.replace(
        oracles.shared,
        name=name,
        title="weak",
        schemas={"app": "app"},
        probes={"app": ("tenancy_rows",)},
    )


@pytest.fixture
def bypassing(oracles: Oracles) -> Iterator[None]:
    """The login of level ROW is exempt from row security for a moment."""

    async def alter(word: str) -> None:
        async with oracles.install.connected() as admin:
            await admin.execute(f"alter role tenancy_rows {word}")

    asyncio.run(alter("bypassrls"))
    try:
        yield
    finally:
        asyncio.run(alter("nobypassrls"))


@pytest.fixture
def member_of_the_owner(oracles: Oracles) -> Iterator[None]:
    """The login of level ROW is a member of the owner for a moment."""

    async def run(statement: str) -> None:
        async with oracles.install.connected() as admin:
            await admin.execute(statement)

    asyncio.run(run("grant tenancy_owner to tenancy_rows"))
    try:
        yield
    finally:
        asyncio.run(run("revoke tenancy_owner from tenancy_rows"))


def test_the_linter_reports_each_hole(oracles: Oracles, weak: Database):
    found = {(item.rule, item.place) for item in unexplained(oracles.lint(weak))}

    assert found >= {
        ("SEC002", "weak/app.addresses"),
        ("SEC004", "weak/app.journal.tenancy_isolation"),
        ("SEC008", "weak/app.customers.open_door"),
        ("SEC009", "weak/app.products"),
        ("SEC028", "weak/app.staff.open_write"),
        ("SEC032", "weak/app.shops"),
        ("SEC035", "weak/app.orders (orders_id_idx)"),
        ("SEC042", "weak/app.all_orders"),
        ("SEC044", "weak/app"),
        ("SEC047", "weak/app.sold_items (sold_items_order_id_fkey)"),
        ("VIEW001", "weak/app.definer"),
        ("VIEW003", "weak/app.frozen"),
    }


@pytest.mark.parametrize(
    ("mode", "leaks", "confirmed"),
    [
        ("anon", {"app.customers", _IDEMPOTENCY}, {"app.customers", "app.journal"}),
        ("cross-tenant", {_IDEMPOTENCY}, {_IDEMPOTENCY}),
        ("write", {_IDEMPOTENCY}, {_IDEMPOTENCY, "app.customers", "app.staff"}),
        ("reachability", {"app.orders"}, set()),
        ("escalation", {"app.all_orders"}, set()),
    ],
)
def test_the_prover_finds_the_leaks_and_no_others(
    oracles: Oracles, weak: Database, mode: str, leaks: set[str], confirmed: set[str]
):
    proofs = oracles.verify(weak, mode)
    told = {(item.rule, item.place.removeprefix("weak/")) for item in proofs.findings}

    assert {place for rule, place in told if rule == "leak"} == leaks
    assert {place for rule, place in told if rule == "leak_confirmed"} == confirmed
    if mode in ("anon", "cross-tenant", "write"):
        assert "weak/app.orders" in proofs.proven
        assert "weak/app.customers" not in proofs.proven


def test_the_prover_finds_a_member_of_the_owner(
    oracles: Oracles, weak: Database, member_of_the_owner: None
):
    found = {(item.rule, item.place) for item in oracles.verify(weak, "escalation").findings}

    assert ("leak", "weak/app.addresses") in found


def test_the_fuzzer_breaks_in(oracles: Oracles, weak: Database):
    found, probed = oracles.rlsgrid(weak)
    breaches = {item.place for item in found if item.rule == "breach"}

    assert breaches == {
        "weak/app.customers DELETE tenancy_rows",
        "weak/app.customers SELECT tenancy_rows",
        "weak/app.journal DELETE tenancy_rows",
        "weak/app.journal INSERT tenancy_rows",
        "weak/app.journal SELECT tenancy_rows",
        "weak/app.staff INSERT tenancy_rows",
    }
    assert "weak/app.addresses SELECT tenancy_rows" in probed


def test_a_login_that_bypasses_row_security_is_noticed(oracles: Oracles, bypassing: None):
    rows = dataclasses.replace(oracles.shared, probes={"app": ("tenancy_rows",)})
    found, _ = oracles.rlsgrid(rows, iterations=200)
    breaches = {item.place for item in found if item.rule == "breach"}

    assert breaches >= {
        "shared/app.customers SELECT tenancy_rows",
        "shared/app.orders UPDATE tenancy_rows",
        "shared/app.sold_items DELETE tenancy_rows",
    }
    assert "SEC016" in {item.rule for item in unexplained(oracles.lint(rows))}


def test_tenants_of_the_fuzzer_work_on_their_own_rows(oracles: Oracles):
    """So the policy kept the rest from them, and not a binding gone wrong."""
    said = oracles.own_rows(oracles.shared) | oracles.own_rows(oracles.own)
    read = {place: answer for place, answer in said.items() if " SELECT " in place}
    # The key of this table can only be set to its default.
    written = {
        place: answer
        for place, answer in said.items()
        if " UPDATE " in place and ".journal " not in place
    }

    assert len(read) > 30
    assert set(read.values()) == {"seen"}
    assert set(written.values()) == {"seen"}
    for word in ("INSERT", "DELETE"):
        assert "seen" in {answer for place, answer in said.items() if f" {word} " in place}


def test_a_binding_signed_with_another_key_opens_nothing(oracles: Oracles):
    forged = dataclasses.replace(oracles.own, signed_as=oracles.shared.name)

    assert set(oracles.own_rows(forged).values()) == {"probe raised a database error"}
