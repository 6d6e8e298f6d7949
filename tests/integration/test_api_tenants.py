"""Tenants over HTTP, on a real server."""

from __future__ import annotations

import pytest
from support.http_api import HttpApi


async def test_a_new_tenant_is_told_where_it_is_and_why(api: HttpApi):
    made = await api.admin.post("/v1/tenants", json={"tenant_id": "acme"})

    assert made.status_code == 201
    assert made.headers["location"] == "/v1/tenants/acme"
    body = made.json()
    assert body["isolation_level"] in ("row", "schema", "database")
    assert body["placement"] == {
        "level": body["isolation_level"],
        "server": "main",
        "epoch": body["placement"]["epoch"],
    }
    assert body["status"] == "active"
    assert body["strategy"] == f"{body['isolation_level']}_level"
    assert body["reasons"]


@pytest.mark.parametrize("level", ["row", "schema", "database"])
async def test_the_wanted_level_is_given_and_works(api: HttpApi, level):
    await api.migrate()
    tenant = await api.tenant("acme", level)

    shown = await tenant.get("/v1/tenants/acme")
    counted = await tenant.post(
        "/v1/tenants/acme/query", json={"query": "select count(*) from users"}
    )

    assert shown.json()["isolation_level"] == level
    assert counted.json()["rows"] == [[0]]


async def test_it_is_told_whether_results_are_kept_and_who_is_pinned(api: HttpApi):
    reading = {"tenant_id": "reader", "metadata": {"workload": "read_mostly"}}
    made = await api.admin.post("/v1/tenants", json=reading)
    other = await api.admin.post("/v1/tenants", json={"tenant_id": "writer"})
    await api.engine.pin_tenant("reader", True)
    told = [
        (await api.admin.get("/v1/tenants/reader")).json(),
        (await api.admin.get("/v1/tenants")).json()["tenants"][0],
    ]

    assert (made.json()["results_kept"], made.json()["pinned"]) == (True, False)
    assert (other.json()["results_kept"], other.json()["pinned"]) == (False, False)
    assert [(item["results_kept"], item["pinned"]) for item in told] == [(True, True)] * 2
    assert "nonce" not in str(told)
    await api.engine.keep_results("reader", False)
    found = (await api.admin.get("/v1/tenants/reader")).json()
    assert (found["results_kept"], found["pinned"]) == (False, False)


async def test_an_unknown_workload_starts_as_a_hybrid_tenant(api: HttpApi):
    await api.migrate()
    body = {"tenant_id": "new", "metadata": {"workload": "unknown"}}
    made = await api.admin.post("/v1/tenants", json=body)
    shown = await api.admin.get("/v1/tenants/new")
    figures = await api.admin.get("/metrics")
    counted = await api.admin.post(
        "/v1/tenants/new/query", json={"query": "select count(*) from users"}
    )

    assert made.status_code == 201
    assert (made.json()["strategy"], made.json()["isolation_level"]) == ("hybrid", "row")
    assert any("hybrid is chosen" in reason for reason in made.json()["reasons"])
    assert shown.json() == {key: made.json()[key] for key in shown.json()}
    assert "tenancy_hybrid_tenants 1.0" in figures.text
    assert 'tenancy_tenants{level="row"} 1.0' in figures.text
    assert counted.json()["rows"] == [[0]]
    assert (await api.admin.delete("/v1/tenants/new")).status_code == 204


async def test_regulated_data_is_kept_apart_more_strongly_and_the_reason_told(api: HttpApi):
    plain = await api.admin.post("/v1/tenants", json={"tenant_id": "blog", "tenant_type": "free"})
    clinic = await api.admin.post(
        "/v1/tenants", json={"tenant_id": "clinic", "compliance": ["HIPAA"]}
    )

    assert plain.json()["isolation_level"] == "row"
    assert clinic.json()["isolation_level"] != "row"
    assert "hipaa" in " ".join(clinic.json()["reasons"]).lower()


async def test_a_wish_against_the_rules_is_refused_and_leaves_nothing(api: HttpApi):
    refused = await api.admin.post(
        "/v1/tenants",
        json={"tenant_id": "clinic", "compliance": ["hipaa"], "isolation_level": "row"},
    )

    assert refused.status_code == 409
    assert (await api.admin.get("/v1/tenants/clinic")).status_code == 404


async def test_a_wrong_value_is_refused_and_leaves_nothing(api: HttpApi, subtests):
    for change in (
        {"tenant_id": "Acme"},
        {"tenant_id": ""},
        {"tenant_id": "a" * 64},
        {"tenant_id": 5},
        {"tenant_id": None},
        {"tenant_type": "gold"},
        {"tenant_type": "ROW"},
        {"isolation_level": "ROW"},
        {"isolation_level": "cell"},
        {"region": "Not A Region"},
        {"region": "nowhere"},
        {"compliance": "hipaa"},
        {"compliance": [1]},
        {"compliance": ["x"] * 33},
        {"isolation": "row"},
        {"metadata": []},
        {"metadata": {"size_bytes": "big"}},
    ):
        with subtests.test(change=change):
            refused = await api.admin.post("/v1/tenants", json={"tenant_id": "acme"} | change)

            assert refused.status_code == 422
            assert refused.headers["content-type"] == "application/problem+json"
            assert (await api.admin.get("/v1/tenants")).json()["tenants"] == []


async def test_wrong_fields_are_named(api: HttpApi):
    refused = await api.admin.post("/v1/tenants", json={"tenant_type": "gold", "colour": "red"})

    assert {item["field"] for item in refused.json()["errors"]} == {
        "tenant_id",
        "tenant_type",
        "colour",
    }


async def test_a_second_tenant_of_the_same_id_is_a_conflict(api: HttpApi):
    await api.tenant("acme", "row")

    again = await api.admin.post("/v1/tenants", json={"tenant_id": "acme"})
    other = await api.admin.post(
        "/v1/tenants", json={"tenant_id": "acme", "tenant_type": "free", "metadata": {"plan": 1}}
    )

    assert (again.status_code, again.json()["type"]) == (409, "urn:tenancy:problem:tenant-exists")
    assert "exists already, just as it was asked for" in again.json()["detail"]
    assert other.status_code == 409
    assert "tenant_type is standard, not free; metadata differs in 'plan'" in other.json()["detail"]


async def test_with_an_idempotency_key_a_repeated_creation_gets_the_first_answer(api: HttpApi):
    headers = {"Idempotency-Key": "8e03978e"}
    body = {"tenant_id": "acme", "tenant_type": "premium"}

    first = await api.admin.post("/v1/tenants", json=body, headers=headers)
    again = await api.admin.post("/v1/tenants", json=body, headers=headers)
    other = await api.admin.post("/v1/tenants", json=body | {"region": None}, headers=headers)
    conflict = await api.admin.post(
        "/v1/tenants", json=body | {"tenant_id": "globex"}, headers=headers
    )

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert other.content == first.content
    assert conflict.status_code == 409
    assert (await api.admin.get("/v1/tenants/globex")).status_code == 404


async def test_a_creation_that_is_repeated_in_another_process_succeeds_as_well(make_api):
    one, two = await make_api(), await make_api()
    headers = {"Idempotency-Key": "8e03978e"}
    body = {"tenant_id": "acme", "isolation_level": "schema"}

    first = await one.admin.post("/v1/tenants", json=body, headers=headers)
    again = await two.admin.post("/v1/tenants", json=body, headers=headers)
    other = await two.admin.post(
        "/v1/tenants", json=body | {"isolation_level": "row"}, headers={"Idempotency-Key": "x"}
    )

    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 409)
    assert again.json()["placement"] == first.json()["placement"]


async def test_tenants_are_listed_page_by_page_in_the_order_of_their_ids(api: HttpApi):
    for name in ("c", "a", "d", "b", "e"):
        await api.tenant(name, "row")

    seen, after = [], None
    while True:
        params = {"limit": 2} | ({"after": after} if after else {})
        page = (await api.admin.get("/v1/tenants", params=params)).json()
        seen.append([item["tenant_id"] for item in page["tenants"]])
        after = page["next"]
        if after is None:
            break

    assert seen == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_listing_with_a_wrong_bound_is_refused(api: HttpApi, subtests):
    for params in (
        {"limit": 0},
        {"limit": -1},
        {"limit": 10**6},
        {"limit": "x"},
        {"after": "NO!"},
        {"limt": 5},
    ):
        with subtests.test(params=params):
            assert (await api.admin.get("/v1/tenants", params=params)).status_code == 422

    assert (await api.admin.get("/v1/tenants/acme", params={"x": 5})).status_code == 422


async def test_a_suspended_tenant_takes_no_operations_until_it_is_resumed(api: HttpApi):
    tenant = await api.tenant("acme", "schema")
    path, body = "/v1/tenants/acme/query", {"query": "select 1"}

    suspended = await api.admin.post("/v1/tenants/acme/suspend")
    refused = await tenant.post(path, json=body)
    resumed = await api.admin.post("/v1/tenants/acme/resume")
    taken = await tenant.post(path, json=body)

    assert (suspended.status_code, suspended.json()["status"]) == (200, "suspended")
    assert (refused.status_code, refused.json()["type"]) == (
        409,
        "urn:tenancy:problem:tenant-suspended",
    )
    assert (resumed.status_code, resumed.json()["status"]) == (200, "active")
    assert taken.status_code == 200


@pytest.mark.parametrize("level", ["row", "schema", "database"])
async def test_an_erased_tenant_is_gone_and_its_name_free(api: HttpApi, level):
    await api.migrate()
    tenant = await api.tenant("acme", level)
    await tenant.post(
        "/v1/tenants/acme/query",
        json={"query": "insert into users (id, email) values (1, 'a@b')"},
    )

    erased = await api.admin.delete("/v1/tenants/acme")
    again = await api.admin.delete("/v1/tenants/acme")
    anew = await api.tenant("acme", level)
    rows = await anew.post("/v1/tenants/acme/query", json={"query": "select * from users"})

    assert (erased.status_code, erased.content) == (204, b"")
    assert again.status_code == 404
    assert rows.json()["rows"] == []


async def test_administrators_are_told_which_tenant_there_is_not(api: HttpApi, subtests):
    for method, path, body in (
        ("GET", "/v1/tenants/ghost", None),
        ("POST", "/v1/tenants/ghost/suspend", None),
        ("POST", "/v1/tenants/ghost/query", {"query": "select 1"}),
        ("POST", "/v1/tenants/ghost/moves", {"isolation_level": "schema"}),
        ("GET", "/v1/moves?tenant_id=ghost", None),
        ("GET", "/v1/keys?tenant_id=ghost", None),
        ("POST", "/v1/keys", {"scope": "tenant", "tenant_id": "ghost"}),
    ):
        with subtests.test(method=method, path=path):
            answer = await api.admin.request(method, path, json=body)
            assert answer.json()["type"] == "urn:tenancy:problem:tenant-not-found"
            assert answer.json()["detail"] == "There is no tenant 'ghost'."
    long = (await api.admin.get(f"/v1/tenants/{'%C3%A9' * 200}")).json()
    assert long["detail"] == f"There is no tenant '{(chr(92) + 'xe9') * 80}'."


async def test_what_is_done_to_a_tenant_that_does_not_exist_is_not_found(api: HttpApi, subtests):
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/suspend", None),
        ("POST", "/resume", None),
        ("POST", "/query", {"query": "select 1"}),
        ("POST", "/batch", {"operations": [{"query": "select 1"}]}),
        ("POST", "/operations/list_users", {}),
    ):
        for name in ("ghost", "Ghost", "a" * 100, "a b", "%2E%2E", "%00", "%FF"):
            with subtests.test(method=method, path=path, name=name):
                answer = await api.admin.request(method, f"/v1/tenants/{name}{path}", json=body)

                assert answer.status_code == 404

    assert (await api.admin.get("/v1/tenants")).json()["tenants"] == []
