"""Statements, batches and named operations over HTTP, on a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest
from support.http_api import USERS, HttpApi

pytestmark = pytest.mark.migrated("0001_users", USERS)

_QUERY = "/v1/tenants/acme/query"
_BATCH = "/v1/tenants/acme/batch"


@pytest.fixture
async def acme(api: HttpApi) -> httpx.AsyncClient:
    await api.migrate()
    return await api.tenant("acme", "row")


async def _rows(client: httpx.AsyncClient, query: str, params: Any = ()) -> Any:
    answer = await client.post(_QUERY, json={"query": query, "params": params})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


async def test_a_result_has_columns_with_types_rows_and_their_number(acme):
    answer = await acme.post(
        _QUERY,
        json={
            "query": "insert into users (id, email, amount) values ($1, $2, $3) "
            "returning id, email, amount, about",
            "params": [7, "a@b", "1.10"],
        },
    )

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "columns": [
            {"name": "id", "type": "bigint"},
            {"name": "email", "type": "text"},
            {"name": "amount", "type": "numeric"},
            {"name": "about", "type": "jsonb"},
        ],
        "rows": [[7, "a@b", "1.10", None]],
        "row_count": 1,
    }


async def test_placeholders_can_have_names(acme):
    assert await _rows(acme, "select :a::int + :b::int", {"a": 1, "b": 2}) == [[3]]


async def test_numbers_travel_without_loss_in_both_directions(acme, subtests):
    for kind, given, returned in (
        ("numeric", "12345678901234567890.12345", '"12345678901234567890.12345"'),
        ("bigint", "9223372036854775807", "9223372036854775807"),
        ("jsonb", '{"big": 123456789012345678901234567890}', "123456789012345678901234567890"),
        ("jsonb", "[0.10000000000000000001]", "[0.10000000000000000001]"),
    ):
        with subtests.test(kind=kind, given=given):
            body = f'{{"query": "select $1::{kind}", "params": [{given}]}}'
            answer = await acme.post(
                _QUERY, content=body, headers={"Content-Type": "application/json"}
            )

            assert answer.status_code == 200, answer.text
            assert returned in answer.text


async def test_a_value_comes_back_as_it_was_given(acme, subtests):
    for kind, value in (
        ("int", 5),
        ("bigint", -(2**63)),
        ("float8", 0.1),
        ("float8", "Infinity"),
        ("boolean", True),
        ("text", "ünï\U0001f600'\""),
        ("uuid", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("timestamptz", "2026-11-23 10:00:00+00"),
        ("bytea", "\\xdeadbeef"),
        ("int[]", [1, None, 3]),
        ("text[]", ["a", "b,c", None]),
        ("jsonb", {"a": [1, {"b": None}]}),
        ("jsonb", [1, 2]),
        ("jsonb", None),
        ("numeric", "1.500"),
    ):
        with subtests.test(kind=kind, value=value):
            assert await _rows(acme, f"select $1::{kind}", [value]) == [[value]]


async def test_a_mistake_in_the_sql_is_the_clients_and_has_its_sqlstate(acme, subtests):
    for query, params, status, sqlstate in (
        ("selec 1", [], 400, "42601"),
        ("select 1; select 2", [], 400, None),
        ("", [], 400, None),
        ("select * from ghosts", [], 400, "42P01"),
        ("select colour from users", [], 400, "42703"),
        ("select 1/0", [], 400, "22012"),
        ("select $1::int", ["x"], 400, None),
        ("select $1::int", [], 400, None),
        ("select $1::int", [1, 2], 400, None),
        ("select :a::int", {}, 400, None),
        ("select :a::int", {"a": 1, "b": 2}, 400, None),
        ("select $1::text", ["\x00"], 400, None),
        ("drop table users", [], 403, None),
        ("set role tenancy_owner", [], 403, None),
        ("select pg_sleep(1)", [], 403, None),
        ("copy users to stdout", [], 403, None),
    ):
        with subtests.test(query=query, params=params):
            answer = await acme.post(_QUERY, json={"query": query, "params": params})

            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            if sqlstate is not None:
                assert answer.json()["sqlstate"] == sqlstate


async def test_a_broken_constraint_is_a_conflict(acme):
    insert = {"query": "insert into users (id, email) values (1, 'a@b')"}
    assert (await acme.post(_QUERY, json=insert)).status_code == 200

    again = await acme.post(_QUERY, json=insert)

    assert again.status_code == 409
    assert again.json()["sqlstate"] == "23505"
    assert again.json()["retryable"] is False


async def test_one_tenant_does_not_see_the_rows_of_another(api: HttpApi, acme):
    globex = await api.tenant("globex", "row")
    await _rows(acme, "insert into users (id, email) values (1, 'a@b')")

    answer = await globex.post("/v1/tenants/globex/query", json={"query": "select * from users"})

    assert answer.json()["rows"] == []
    assert await _rows(acme, "select id from users") == [[1]]


async def test_an_administrator_can_run_statements_of_any_tenant(api: HttpApi, acme):
    await _rows(acme, "insert into users (id, email) values (1, 'a@b')")

    assert await _rows(api.admin, "select id from users") == [[1]]


async def test_in_a_batch_each_statement_has_its_own_outcome(acme):
    answer = await acme.post(
        _BATCH,
        json={
            "operations": [
                {"query": "insert into users (id, email) values (1, 'a@b')"},
                {"query": "insert into users (id, email) values (1, 'c@d')"},
                {"query": "drop table users"},
                {"query": "select $1::int", "params": ["x"]},
                {"query": "select id from users"},
            ]
        },
    )

    assert answer.status_code == 200
    results = answer.json()["results"]
    assert results[0]["row_count"] == 1
    assert [results[i]["error"]["status"] for i in (1, 2, 3)] == [409, 403, 400]
    assert results[1]["error"]["sqlstate"] == "23505"
    assert results[4]["rows"] == [[1]]


async def test_an_atomic_batch_happens_as_a_whole_or_not_at_all(acme):
    good = {"query": "insert into users (id, email) values (1, 'a@b')"}
    bad = {"query": "insert into users (id, email) values (1, 'c@d')"}

    failed = await acme.post(_BATCH, json={"operations": [good, bad], "atomic": True})
    rows = await _rows(acme, "select * from users")
    done = await acme.post(
        _BATCH, json={"operations": [good, {"query": "select id from users"}], "atomic": True}
    )

    assert failed.status_code == 409
    assert failed.json()["sqlstate"] == "23505"
    assert rows == []
    assert done.json()["results"][1]["rows"] == [[1]]


async def test_an_empty_batch_does_nothing(acme):
    answer = await acme.post(_BATCH, json={"operations": []})

    assert (answer.status_code, answer.json()) == (200, {"results": []})


@pytest.mark.parametrize("how", ["query", "batch", "atomic", "operation"])
async def test_a_write_with_an_idempotency_key_happens_once(api: HttpApi, acme, how):
    query = "insert into users (id, email) select count(*) + 1, 'u' || count(*) from users"
    path, body = {
        "query": (_QUERY, {"query": query}),
        "batch": (_BATCH, {"operations": [{"query": query}, {"query": query}]}),
        "atomic": (_BATCH, {"operations": [{"query": query}, {"query": query}], "atomic": True}),
        "operation": ("/v1/tenants/acme/operations/add_one", {"query": query}),
    }[how]
    written = 2 if how in ("batch", "atomic") else 1

    answers = [
        await acme.post(path, json=body, headers={"Idempotency-Key": "k1"}) for _ in range(3)
    ]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert await _rows(acme, "select count(*) from users") == [[written]]


async def test_an_idempotency_key_with_another_statement_is_a_conflict(acme):
    headers = {"Idempotency-Key": "k1"}
    first = {"query": "insert into users (id, email) values (1, 'a@b')"}
    other = {"query": "insert into users (id, email) values (2, 'c@d')"}
    assert (await acme.post(_QUERY, json=first, headers=headers)).status_code == 200

    refused = await acme.post(_QUERY, json=other, headers=headers)

    assert (refused.status_code, refused.json()["type"]) == (
        409,
        "urn:tenancy:problem:idempotency-conflict",
    )
    assert await _rows(acme, "select id from users") == [[1]]


async def test_concurrent_requests_with_one_idempotency_key_write_once(acme):
    body = {"query": "insert into users (id, email) select count(*) + 1, 'x' from users"}

    answers = await asyncio.gather(
        *(acme.post(_QUERY, json=body, headers={"Idempotency-Key": "same"}) for _ in range(8))
    )

    assert {answer.status_code for answer in answers} <= {200, 409}
    assert 200 in {answer.status_code for answer in answers}
    assert await _rows(acme, "select count(*) from users") == [[1]]


_SLOW = "select count(*) from generate_series(1, 1000000000)"


@pytest.mark.parametrize("how", ["query", "batch", "operation"])
async def test_a_statement_ends_when_the_client_does_not_want_to_wait_longer(acme, how):
    path, body = {
        "query": (_QUERY, {"query": _SLOW}),
        "batch": (_BATCH, {"operations": [{"query": _SLOW}], "atomic": True}),
        "operation": ("/v1/tenants/acme/operations/slow", {"query": _SLOW}),
    }[how]

    answer = await acme.post(path, json=body, headers={"Prefer": "wait=1"}, timeout=30)

    assert answer.status_code == 504, answer.text
    assert answer.json()["type"] == "urn:tenancy:problem:statement-timeout"


async def test_the_preference_that_was_followed_is_told(acme):
    answer = await acme.post(_QUERY, json={"query": "select 1"}, headers={"Prefer": "wait=5"})

    assert answer.headers["preference-applied"] == "wait=5"


async def test_a_registered_operation_runs_its_sql_with_the_values_of_the_body(api: HttpApi, acme):
    await api.admin.put(
        "/v1/operations/add_user",
        json={"sql": "insert into users (id, email) values (:id, :email) returning id"},
    )

    answer = await acme.post("/v1/tenants/acme/operations/add_user", json={"id": 3, "email": "a@b"})

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["rows"] == [[3]]
    assert (body["tenant_id"], body["operation"]) == ("acme", "add_user")
    assert (body["strategy"], body["isolation_level"]) == ("row_level", "row")
    assert body["orchestrator"]["selected_strategy"] == "row_level"
    assert body["orchestrator"]["processing_time"] > 0
    assert body["orchestrator"]["reasons"]


async def test_a_verb_and_a_table_make_an_operation(acme):
    path = "/v1/tenants/acme/operations"

    made = await acme.post(f"{path}/create_user", json={"id": 1, "email": "a@b"})
    listed = await acme.post(f"{path}/list_users", json={})

    assert made.status_code == listed.status_code == 200, made.text
    assert listed.json()["row_count"] == 1


async def test_an_operation_that_does_not_exist_lists_what_does(acme):
    answer = await acme.post("/v1/tenants/acme/operations/fly_away", json={})

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:tenancy:problem:operation-not-found"
    assert "users" in answer.json()["detail"]


async def test_an_operation_never_makes_a_tenant(api: HttpApi):
    answer = await api.admin.post("/v1/tenants/ghost/operations/list_users", json={})

    assert answer.status_code == 404
    assert (await api.admin.get("/v1/tenants")).json()["tenants"] == []


async def test_what_a_client_leaves_is_cancelled_in_the_database(api: HttpApi, acme, install):
    request = asyncio.create_task(acme.post(_QUERY, json={"query": _SLOW}, timeout=30))
    running = (
        "select count(*) from pg_stat_activity where state = 'active' "
        "and query like '%generate_series(1, 1000000000)%' and pid <> pg_backend_pid()"
    )
    connection = await asyncpg.connect(install.admin_dsn())
    try:
        async with asyncio.timeout(20):
            while not await connection.fetchval(running):
                await asyncio.sleep(0)
            request.cancel()
            while await connection.fetchval(running):
                await asyncio.sleep(0)
    finally:
        await connection.close()

    assert await _rows(acme, "select 1") == [[1]]


async def test_a_result_beyond_the_limit_is_refused_and_not_cut(make_api):
    api = await make_api(result_rows_max=5)
    await api.migrate()
    acme = await api.tenant("acme", "row")

    fits = await acme.post(_QUERY, json={"query": "select generate_series(1, 5)"})
    refused = await acme.post(_QUERY, json={"query": "select generate_series(1, 6)"})

    assert fits.json()["row_count"] == 5
    assert (refused.status_code, refused.json()["type"]) == (
        413,
        "urn:tenancy:problem:result-too-large",
    )


async def test_json_that_is_not_ascii_survives(acme):
    text = "日本語 \U0001f600"

    answer = await acme.post(
        _QUERY,
        content=json.dumps({"query": "select $1::text", "params": [text]}, ensure_ascii=False),
        headers={"Content-Type": "application/json; charset=utf-8"},
    )

    assert answer.json()["rows"] == [[text]]
