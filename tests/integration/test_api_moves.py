"""Moves of tenants over HTTP, on a real server. Some tests carry moves out, in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from support.http_api import HttpApi

from tenancy.data_isolation.core.errors import LimitError
from tenancy.data_isolation.core.identifiers import Region, ServerName, TenantId
from tenancy.data_isolation.core.types import TenantSize
from tenancy.data_isolation.serve.move_models import ERROR_FOR_TENANTS

NO_MOVE = "m_" + "0" * 20


@pytest.fixture
async def acme(api: HttpApi) -> HttpApi:
    """The interface with a tenant that has some rows."""
    await api.migrate()
    tenant = await api.tenant("acme", "row")
    for number in range(3):
        await tenant.post(
            "/v1/tenants/acme/query",
            json={
                "query": "insert into users (id, email) values ($1, $2)",
                "params": [number, f"{number}@b"],
            },
        )
    return api


async def started(api: HttpApi, level: str = "schema", tenant: str = "acme", **more: Any) -> Any:
    body = {"isolation_level": level} | more
    answer = await api.admin.post(f"/v1/tenants/{tenant}/moves", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def until(api: HttpApi, move_id: str, *phases: str) -> Any:
    """The move, once it is in one of the phases; the test's time limit ends it otherwise."""
    while True:
        found = (await api.admin.get(f"/v1/moves/{move_id}")).json()
        if found["phase"] in phases:
            return found
        await asyncio.sleep(0.01)


def problem(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("urn:tenancy:problem:")


async def test_a_move_from_its_plan_to_its_confirmation(acme: HttpApi):
    path = "/v1/tenants/acme/moves"
    plan = await acme.admin.post(path, json={"isolation_level": "schema", "dry_run": True})

    assert plan.status_code == 200
    assert plan.json()["source"] == {"isolation_level": "row", "server": "main"}
    assert plan.json()["target"] == {"isolation_level": "schema", "server": "main"}
    assert (plan.json()["possible"], plan.json()["refused"]) == (True, [])
    assert plan.json()["rows"] == 3
    assert (await acme.admin.get(path)).json() == {"moves": [], "next": None}

    answer = await acme.admin.post(path, json={"isolation_level": "schema", "priority": 5})
    move = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/moves/{move['move_id']}"
    assert (move["state"], move["phase"], move["priority"]) == ("planned", "waiting", 5)
    assert (move["source"], move["target"]) == (plan.json()["source"], plan.json()["target"])

    acme.engine.moves.work()
    opened = await until(acme, move["move_id"], "open")
    shown = (await acme.admin.get("/v1/tenants/acme")).json()
    assert (opened["state"], opened["settled"]) == ("open", False)
    assert opened["confirms_at"] > opened["opened_at"] > opened["created_at"]
    assert opened["progress"]["rows_copied"] == opened["progress"]["rows_total"] >= 3
    assert shown["isolation_level"] == "schema"

    confirmed = await acme.admin.post(f"/v1/moves/{move['move_id']}/confirm")
    assert confirmed.status_code == 202
    done = await until(acme, move["move_id"], "settled")
    assert (done["state"], done["confirms_at"], done["error"]) == ("confirmed", None, None)
    compared = {item["table"]: item for item in done["report"]["after"]}
    assert compared["users"]["equal"]
    assert compared["users"]["rows"] == 3
    assert done["report"]["cutover"]["held_ms"] > 0
    rows = await acme.admin.post(
        "/v1/tenants/acme/query", json={"query": "select count(*) from users"}
    )
    assert rows.json()["rows"] == [[3]]


async def test_a_move_that_is_open_is_rolled_back(acme: HttpApi, install):
    acme.engine.moves.work()
    move = await started(acme)
    await until(acme, move["move_id"], "open")
    placement = (await acme.engine.tenant("acme")).placement
    assert placement is not None
    async with install.connected() as connection:
        # No name of a database object is told.
        await connection.execute(
            "update catalog.move set error = 'relation ' || $1 || '.users is away'",
            placement.schema,
        )
    for path in (f"/v1/moves/{move['move_id']}", "/v1/moves"):
        told = await acme.admin.get(path)
        assert "users is away" in told.text
        assert placement.schema not in told.text
    await acme.admin.post(
        "/v1/tenants/acme/query",
        json={"query": "insert into users (id, email) values (9, 'there')"},
    )

    asked = await acme.admin.post(f"/v1/moves/{move['move_id']}/rollback")
    done = await until(acme, move["move_id"], "settled")

    assert (asked.status_code, done["state"]) == (202, "rolled_back")
    assert (await acme.admin.get("/v1/tenants/acme")).json()["isolation_level"] == "row"
    rows = await acme.admin.post(
        "/v1/tenants/acme/query", json={"query": "select email from users where id = 9"}
    )
    assert rows.json()["rows"] == [["there"]]


async def test_a_move_that_waits_is_paused_resumed_and_cancelled(acme: HttpApi):
    move_id = (await started(acme))["move_id"]

    going = await acme.admin.post(f"/v1/moves/{move_id}/resume")
    assert (going.status_code, going.json()["paused"]) == (200, False)
    paused = await acme.admin.post(f"/v1/moves/{move_id}/pause")
    again = await acme.admin.post(f"/v1/moves/{move_id}/pause")
    assert (paused.status_code, again.status_code) == (200, 200)
    assert (paused.json()["paused"], paused.json()["phase"]) == (True, "paused")
    acme.engine.moves.work()
    resumed = await acme.admin.post(f"/v1/moves/{move_id}/resume")
    assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    await until(acme, move_id, "open")

    for what in ("pause", "resume"):
        refused = await acme.admin.post(f"/v1/moves/{move_id}/{what}")
        assert problem(refused) == (409, "conflict")
        assert refused.json()["detail"] == (
            f"move {move_id} is open; only a move that is not open yet can be paused or resumed"
        )
    assert problem(await acme.admin.post(f"/v1/moves/{move_id}/cancel")) == (409, "conflict")
    answered = await acme.admin.post(f"/v1/moves/{move_id}/abandon")
    assert problem(answered) == (409, "conflict")
    assert "server main answers" in answered.json()["detail"]


async def test_what_does_not_fit_the_state_of_a_move_is_a_conflict(acme: HttpApi, subtests):
    move_id = (await started(acme))["move_id"]
    for what in ("confirm", "rollback", "abandon"):
        with subtests.test(what=what, state="planned"):
            answer = await acme.admin.post(f"/v1/moves/{move_id}/{what}")
            assert problem(answer) == (409, "conflict")
            assert "is planned" in answer.json()["detail"]
    cancelled = await acme.admin.post(f"/v1/moves/{move_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["phase"]) == (202, "cancelling")
    assert (await acme.admin.post(f"/v1/moves/{move_id}/cancel")).status_code == 202
    acme.engine.moves.work()
    assert (await until(acme, move_id, "settled"))["state"] == "cancelled"
    for what in ("confirm", "rollback", "abandon", "cancel", "pause", "resume"):
        with subtests.test(what=what, state="cancelled"):
            answer = await acme.admin.post(f"/v1/moves/{move_id}/{what}")
            assert problem(answer) == (409, "conflict")
            if what in ("pause", "resume"):
                assert answer.json()["detail"] == (
                    f"move {move_id} is cancelled; only a move that is not open yet can be paused "
                    "or resumed"
                )


async def test_a_move_that_was_paused_as_it_came_to_its_end_is_cleaned_up(acme: HttpApi, install):
    move_id = (await started(acme))["move_id"]
    await acme.admin.post(f"/v1/moves/{move_id}/pause")
    async with install.connected() as connection:
        # As when it fails before its mover has seen that it shall stand still.
        await connection.execute("update catalog.move set state = 'failed'")
    acme.engine.moves.work()
    settled = await until(acme, move_id, "settled")
    assert (settled["state"], settled["paused"]) == ("failed", False)


async def test_what_stands_against_a_move_is_told_before_anything_is_done(acme: HttpApi):
    path = "/v1/tenants/acme/moves"
    there = {"isolation_level": "row"}

    plan = await acme.admin.post(path, json=there | {"dry_run": True})
    refused = await acme.admin.post(path, json=there)

    assert (plan.status_code, plan.json()["possible"]) == (200, False)
    assert [item["code"] for item in plan.json()["refused"]] == ["already_there"]
    assert problem(refused) == (409, "move-refused")
    assert plan.json()["refused"][0]["detail"] in refused.json()["detail"]
    assert (await acme.admin.get(path)).json()["moves"] == []

    move_id = (await started(acme))["move_id"]
    second = await acme.admin.post(path, json={"isolation_level": "database"})
    assert problem(second) == (409, "move-refused")
    assert move_id in second.json()["detail"]
    for method, suffix in (("DELETE", ""), ("POST", "/suspend")):
        answer = await acme.admin.request(method, f"/v1/tenants/acme{suffix}")
        assert problem(answer) == (409, "conflict")
        assert move_id in answer.json()["detail"]


async def test_a_tenant_is_moved_only_while_it_is_active_and_where_it_may_be(
    acme: HttpApi, install, subtests
):
    path, body = "/v1/tenants/acme/moves", {"isolation_level": "schema"}
    async with install.connected() as connection:
        for status in ("suspended", "creating", "deleting"):
            with subtests.test(status=status):
                await connection.execute("update catalog.tenant set status = $1", status)
                refused = await acme.admin.post(path, json=body)
                assert refused.status_code == 409
                assert status in refused.json()["detail"]
        await connection.execute("update catalog.tenant set status = 'active', region = 'us'")

    await acme.engine.catalog.add_server(ServerName("main"), Region("eu"))
    plan = await acme.admin.post(path, json=body | {"dry_run": True})
    assert [item["code"] for item in plan.json()["refused"]] == ["residency"]
    assert (await acme.admin.get("/v1/moves")).json()["moves"] == []


async def test_a_wrong_value_is_refused_and_starts_nothing(acme: HttpApi, subtests):
    for body in (
        {},
        [],
        None,
        {"dry_run": True},
        {"priority": 5},
        {"isolation_level": "ROW"},
        {"isolation_level": "cell"},
        {"isolation_level": 1},
        {"server": "elsewhere"},
        {"server": "Not A Server"},
        {"server": "x" * 300},
        {"server": "nul\x00"},
        {"server": 5},
        {"region": "nowhere"},
        {"region": ""},
        {"isolation_level": "schema", "server": "main", "region": "nowhere"},
        {"isolation_level": "schema", "priority": 101},
        {"isolation_level": "schema", "priority": -101},
        {"isolation_level": "schema", "priority": 10**30},
        {"isolation_level": "schema", "priority": "5"},
        {"isolation_level": "schema", "priority": 1.5},
        {"isolation_level": "schema", "priority": True},
        {"isolation_level": "schema", "priority": None},
        {"isolation_level": "schema", "priority": 5, "dry_run": True},
        {"isolation_level": "schema", "priority": 0, "dry_run": True},
        {"isolation_level": "schema", "dry_run": "yes"},
        {"isolation_level": "schema", "dryrun": True},
        {"level": "schema"},
    ):
        with subtests.test(body=body):
            refused = await acme.admin.post("/v1/tenants/acme/moves", json=body)

            assert refused.status_code == 422, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
    assert (await acme.admin.get("/v1/moves")).json()["moves"] == []
    no_body = await acme.admin.post("/v1/tenants/acme/moves")
    assert no_body.status_code == 422


async def test_what_does_not_exist_is_not_found(api: HttpApi, subtests):
    body = {"isolation_level": "schema"}
    for name in ("ghost", "Ghost", "a" * 100, "%00", "%FF"):
        with subtests.test(tenant=name):
            for method in ("GET", "POST"):
                answer = await api.admin.request(method, f"/v1/tenants/{name}/moves", json=body)
                assert problem(answer) == (404, "tenant-not-found")
    assert (await api.admin.get("/v1/moves", params={"tenant_id": "ghost"})).status_code == 404
    for move_id in (NO_MOVE, "m_1", "x" * 300, "%00", "%FF", "M_" + "0" * 20, "m_" + "0" * 21):
        with subtests.test(move=move_id):
            shown = await api.admin.get(f"/v1/moves/{move_id}")
            assert problem(shown) == (404, "move-not-found")
            for what in ("cancel", "confirm", "rollback", "abandon", "pause", "resume"):
                answer = await api.admin.post(f"/v1/moves/{move_id}/{what}")
                assert problem(answer) == (404, "move-not-found")


async def test_who_names_a_tenant_in_place_of_a_move_is_told_how_to_find_its_moves(api: HttpApi):
    for wrong, told in (("acme", "acme"), ("M_1 x", "TENANT")):
        shown = await api.admin.get(f"/v1/moves/{wrong}")
        assert problem(shown) == (404, "move-not-found")
        assert f"`tenancy move list --tenant {told}`" in shown.json()["detail"]


async def test_moves_are_listed_page_by_page_the_newest_first(api: HttpApi, subtests):
    await api.migrate()
    made = []
    for name in ("a", "b", "c", "d", "e"):
        await api.tenant(name, "row")
        made.append((await started(api, tenant=name))["move_id"])

    async def pages(path: str, **params: Any) -> list[list[str]]:
        seen, after = [], None
        while True:
            asked = params | ({"after": after} if after else {})
            page = (await api.admin.get(path, params=asked)).json()
            seen.append([item["move_id"] for item in page["moves"]])
            after = page["next"]
            if after is None:
                return seen

    newest = made[::-1]
    assert await pages("/v1/moves", limit=2) == [newest[:2], newest[2:4], newest[4:]]
    assert await pages("/v1/moves", tenant_id="b") == [[made[1]]]
    assert await pages("/v1/tenants/b/moves") == [[made[1]]]
    for params in (
        {"limit": 0},
        {"limit": 10**6},
        {"limit": "x"},
        {"after": "NO!"},
        {"after": NO_MOVE},
        {"unsettled": "perhaps"},
        {"tenant_id": "Ghost"},
        {"before": NO_MOVE},
    ):
        with subtests.test(params=params):
            assert (await api.admin.get("/v1/moves", params=params)).status_code == 422
    for params in ({"limit": 0}, {"after": NO_MOVE}, {"after": made[1]}, {"tenant_id": "a"}):
        with subtests.test(params=params, of="tenant"):
            answer = await api.admin.get("/v1/tenants/a/moves", params=params)
            assert answer.status_code == 422
    assert (await api.admin.get(f"/v1/moves/{made[1]}", params={"x": 1})).status_code == 422
    await api.admin.post(f"/v1/moves/{made[0]}/cancel")
    api.engine.moves.work()
    await until(api, made[0], "settled")
    unsettled = (await pages("/v1/moves", unsettled="true"))[0]
    assert made[0] not in unsettled
    assert set(unsettled) <= set(made)


async def test_what_was_not_counted_is_told_as_unknown(acme: HttpApi, subtests):
    async def too_many(_tenant: TenantId) -> TenantSize:
        return TenantSize(rows=7, bytes=70, complete=False)

    async def too_busy(_tenant: TenantId) -> TenantSize:
        raise LimitError("not in time")

    path, body = "/v1/tenants/acme/moves", {"isolation_level": "schema", "dry_run": True}
    for measure in (too_many, too_busy):
        with subtests.test(measure=measure.__name__):
            acme.engine.moves.measure_by(measure)
            plan = (await acme.admin.post(path, json=body)).json()
            told = (plan["rows"], plan["bytes"], plan["duration_s"])
            assert told == (None, None, None)
            assert plan["possible"]
            assert plan["pause_ms"] > 0
            assert plan["estimate"]["rows_per_s"] > 0


async def test_a_tenant_is_not_told_the_words_of_its_operator(acme: HttpApi, install):
    ours = await acme.client(await acme.key("acme"))
    move_id = (await started(acme))["move_id"]
    one, listed = f"/v1/moves/{move_id}", "/v1/tenants/acme/moves"
    assert (await ours.get(one)).json()["error"] is None
    table = {"table": "users", "rows": 3, "source": "a", "target": "a", "left_out": 0}
    report = {
        "before": [table | {"equal": True, "host": "db7.internal"}],
        "cutover": {"held_ms": 5.0, "drain_ms": 1.0, "rows": 2, "epoch": 4, "atomic": True},
        "notes": "db7.internal",
    }
    async with install.connected() as connection:
        await connection.execute(
            "update catalog.move set error = $1, report = $2::jsonb",
            "server second at db7.internal:5432 does not answer",
            json.dumps(report),
        )

    for path in (one, listed):
        assert "db7.internal" in (await acme.admin.get(path)).text
        told = await ours.get(path)
        assert "db7.internal" not in told.text
        assert ERROR_FOR_TENANTS in told.text
    assert (await acme.admin.get(one)).json()["report"] == report
    shown = (await ours.get(one)).json()
    assert shown["error"] == ERROR_FOR_TENANTS
    assert shown["report"] == {
        "before": [table | {"equal": True}],
        "cutover": {"held_ms": 5.0, "drain_ms": 1.0},
    }


async def test_a_tenant_reads_its_own_moves_and_changes_none(acme: HttpApi, subtests):
    ours = await acme.client(await acme.key("acme"))
    other = await acme.tenant("other", "row")
    move_id = (await started(acme))["move_id"]

    shown = await ours.get(f"/v1/moves/{move_id}")
    listed = await ours.get("/v1/tenants/acme/moves")
    assert (shown.status_code, shown.json()["move_id"]) == (200, move_id)
    assert [item["move_id"] for item in listed.json()["moves"]] == [move_id]

    theirs = await other.get(f"/v1/moves/{move_id}")
    nobodys = await other.get(f"/v1/moves/{NO_MOVE}")
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace(move_id, "") == nobodys.text.replace(NO_MOVE, "")
    assert dict(theirs.headers) == dict(nobodys.headers)
    foreign = await other.get("/v1/tenants/acme/moves")
    ghost = await other.get("/v1/tenants/ghost/moves")
    assert (foreign.status_code, foreign.content) == (404, ghost.content)

    body = {"isolation_level": "schema"}
    assert (await other.post("/v1/tenants/acme/moves", json=body)).status_code == 404
    assert (await ours.post("/v1/tenants/acme/moves", json=body)).status_code == 403
    assert (await ours.get("/v1/moves")).status_code == 403
    for what in ("cancel", "confirm", "rollback", "abandon", "pause", "resume"):
        with subtests.test(what=what):
            path = f"/v1/moves/{move_id}/{what}"
            assert (await ours.post(path)).status_code == 403
            assert (await other.post(path)).status_code == 403
            assert (await acme.anonymous.post(path)).status_code == 401
    assert (await acme.anonymous.get(f"/v1/moves/{move_id}")).status_code == 401
    unchanged = (await acme.admin.get(f"/v1/moves/{move_id}")).json()
    assert (unchanged["wish"], unchanged["paused"]) == (None, False)
