"""A running runtime sees what clients send to a tenant and proposes to move it."""

from __future__ import annotations

from typing import Any

import pytest
from support.installation import Installation

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)


def test_a_tenant_that_clients_keep_busy_is_proposed_and_moved_by_the_command(
    installation: Installation,
):
    runtime = installation.runtime
    with installation.client(installation.keys["admin"]) as admin:
        body: dict[str, Any] = {"tenant_id": "busybody", "isolation_level": "row"}
        assert admin.post("/v1/tenants", json=body).status_code == 201
        one = {"query": "select count(*) from users"}
        path = "/v1/tenants/busybody"
        wanted = {"tenant_id": "busybody", "state": "proposed"}
        while not (found := admin.get("/v1/proposals", params=wanted).json())["proposals"]:
            assert admin.post(f"{path}/query", json=one).status_code == 200
            answer = admin.post(f"{path}/batch", json={"operations": [one] * 10})
            assert answer.status_code == 200
    assert found["orchestration"]["mode"] == "propose"
    assert found["orchestration"]["deciding"]

    listed = runtime.json("tenant", "proposals", "--tenant", "busybody")
    (proposal,) = listed["proposals"]
    assert proposal["isolation_level"] == "schema"
    move = runtime.json("proposal", "accept", proposal["proposal_id"])
    assert runtime.json("move", "watch", move["move_id"])["state"] == "open"
    with installation.client(installation.keys["admin"]) as admin:
        assert admin.get(path).json()["isolation_level"] == "schema"
    back = runtime.json("move", "rollback", move["move_id"])
    assert back["state"] == "rolled_back"
    report = runtime.json("move", "show", move["move_id"])["report"]
    assert report["why"]["proposal_id"] == proposal["proposal_id"]
    assert [item["act"] for item in report["why"]["acts"]][:2] == ["proposed", "accepted"]
    runtime.run("tenant", "erase", "busybody", "--yes")
