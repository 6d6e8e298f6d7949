"""Proposals over HTTP and in the command: from what clients send to a move that says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.reviewing import BUSY, QUICK, WINDOW_S, Fleet, over
from support.running_api import MakeRunning, RunningApi

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.proposal import OrchestrationMode

NO_PROPOSAL = "p_" + "0" * 20


@pytest.fixture
async def acme(make_running: MakeRunning) -> AsyncIterator[tuple[RunningApi, Fleet]]:
    """The interface with two tenants, over an engine whose windows are cut by hand."""
    running = await make_running(**QUICK)
    await running.api.migrate()
    for name in ("acme", "globex"):
        context = TenantContext(tenant_id=name)
        await running.api.engine.create_tenant(context, level=IsolationLevel.ROW)
    async with over(running.api.engine) as made:
        yield running, made


async def busy(running: RunningApi, made: Fleet, *tenants: str) -> None:
    """Two windows with so much that it leads to a proposal, half of it in batches."""
    look = made.review(OrchestrationMode.PROPOSE)
    for _ in range(2):
        for tenant in tenants:
            await asyncio.gather(
                *(running.sql(tenant, "select count(*) from users") for _ in range(BUSY // 2))
            )
            answer = await running.api.admin.post(
                f"/v1/tenants/{tenant}/batch",
                json={"operations": [{"query": "select 1"}] * (BUSY // 2)},
            )
            assert answer.status_code == 200
        await made.window(look)


async def test_what_clients_send_leads_to_a_proposal_and_accepting_it_to_a_move(acme):
    running, made = acme
    admin = running.api.admin
    nothing = (await admin.get("/v1/proposals")).json()
    assert (nothing["proposals"], nothing["next"]) == ([], None)
    assert nothing["orchestration"] == {"mode": "propose", "deciding": False, "looked_upto": None}

    await busy(running, made, "acme")
    page = (await admin.get("/v1/proposals", params={"state": "proposed"})).json()
    (found,) = page["proposals"]
    assert (found["tenant_id"], found["action"]) == ("acme", "promote")
    assert (found["from_level"], found["isolation_level"]) == ("row", "schema")
    assert found["evidence"]["operations_per_s"] == BUSY / WINDOW_S
    assert page["orchestration"]["deciding"]
    path = f"/v1/proposals/{found['proposal_id']}"
    assert (await admin.get(path)).json() == found

    accepted = await admin.post(f"{path}/accept", json={"priority": 3})
    move = accepted.json()
    assert (accepted.status_code, move["priority"]) == (202, 3)
    assert accepted.headers["location"] == f"/v1/moves/{move['move_id']}"
    await made.is_open(move["move_id"])
    report = (await admin.get(accepted.headers["location"])).json()["report"]
    assert report["why"]["reasons"] == found["reasons"]
    again = await admin.post(f"{path}/accept", json={})
    assert (again.status_code, again.json()["type"]) == (409, "urn:tenancy:problem:conflict")
    assert (await admin.get(path)).json()["state"] == "accepted"
    # A tenant sees its move, and not the operator's reasons.
    tenant = await running.api.client(await running.api.key("acme"))
    assert "why" not in (await tenant.get(accepted.headers["location"])).json()["report"]


async def test_proposals_are_for_administrators_and_bad_input_is_refused(acme):
    running, made = acme
    admin = running.api.admin
    await busy(running, made, "acme", "globex")
    page = (await admin.get("/v1/proposals", params={"limit": 1})).json()
    rest = (await admin.get("/v1/proposals", params={"after": page["next"]})).json()
    ids = [item["proposal_id"] for item in (*page["proposals"], *rest["proposals"])]
    assert len(set(ids)) == 2
    of_acme = (await admin.get("/v1/proposals", params={"tenant_id": "acme"})).json()
    assert [item["tenant_id"] for item in of_acme["proposals"]] == ["acme"]

    path = f"/v1/proposals/{ids[0]}"
    tenant = await running.api.client(await running.api.key("acme"))
    for method, where, body in (
        ("GET", "/v1/proposals", None),
        ("GET", path, None),
        ("POST", f"{path}/accept", {}),
        ("POST", f"{path}/dismiss", {}),
    ):
        refused = await tenant.request(method, where, json=body)
        assert refused.status_code == 403, where
    for method, where, body, status in (
        ("GET", f"/v1/proposals/{NO_PROPOSAL}", None, 404),
        ("GET", "/v1/proposals/nonsense", None, 404),
        ("POST", f"/v1/proposals/{NO_PROPOSAL}/accept", {}, 404),
        ("POST", f"{path}/accept", {"priority": 101}, 422),
        ("POST", f"{path}/accept", {"force": True}, 422),
        ("POST", f"{path}/dismiss", {"reason": "x" * 501}, 422),
        ("GET", "/v1/proposals?state=open", None, 422),
        ("GET", "/v1/proposals?after=nonsense", None, 422),
        ("GET", "/v1/proposals?limit=0", None, 422),
        ("GET", "/v1/proposals?tenant_id=ghost", None, 404),
    ):
        refused = await admin.request(method, where, json=body)
        assert refused.status_code == status, where
    dismissed = await admin.post(f"{path}/dismiss", json={"reason": "no"})
    assert (dismissed.status_code, dismissed.json()["state"]) == (200, "dismissed")


async def test_the_command_lists_shows_accepts_and_dismisses(acme):
    running, made = acme
    none = await running.run("tenant", "proposals")
    assert "(0 proposals; nobody looks after tenants' levels now)" in none.err
    await busy(running, made, "acme", "globex")

    listed = await running.run("tenant", "proposals")
    assert "the orchestrator proposes only" in listed.err
    assert "2 windows in a row reached what leads to schema" in listed.out
    found = (await running.run("proposal", "list", "--json")).json()
    assert found["orchestration"]["mode"] == "propose"
    ids = {item["tenant_id"]: item["proposal_id"] for item in found["proposals"]}
    assert ids.keys() == {"acme", "globex"}

    shown = await running.run("proposal", "show", ids["acme"])
    assert f"tenancy proposal accept {ids['acme']}" in shown.out
    accepted = await running.run("proposal", "accept", ids["acme"])
    move_id = accepted.out.split()[0]
    await made.is_open(move_id)
    report = await running.run("move", "show", move_id)
    assert f"({ids['acme']}, by operator)" in report.out
    dismissed = await running.run(
        "proposal", "dismiss", ids["globex"], "--reason", "a bulk load", "--json"
    )
    assert dismissed.json()["acts"][-1]["reason"] == "a bulk load"
    assert (await running.run("proposal", "list", "--json")).json()["proposals"] == []
    everything = (await running.run("proposal", "list", "--all", "--json")).json()["proposals"]
    assert {item["state"] for item in everything} == {"accepted", "dismissed"}
    both = await running.run("proposal", "list", "--all", "--state", "refused", status=2)
    assert "does not go with" in both.err
    missing = await running.run("proposal", "show", NO_PROPOSAL, status=1)
    assert "there is no proposal" in missing.err


async def test_what_is_refused_before_a_server_sees_it_proposes_nothing(acme):
    running, made = acme
    tenant = await running.api.client(await running.api.key("acme"))
    look = made.review(OrchestrationMode.PROPOSE)
    refused = {"operations": [{"query": "drop table users"}] * 50}
    for _ in range(2):
        for _ in range(-(-BUSY // 50)):
            answer = await tenant.post("/v1/tenants/acme/batch", json=refused)
            assert answer.json()["results"][0]["error"]["status"] == 403
        await made.window(look)
    assert (await running.api.admin.get("/v1/proposals")).json()["proposals"] == []
