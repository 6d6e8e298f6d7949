"""Requests as such over HTTP: bodies, limits, wrong addresses, and what a failure leaves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from support.http_api import HttpApi

_QUERY = "/v1/tenants/acme/query"
_JSON = {"Content-Type": "application/json"}
#: What is done to a thing without saying more.
_WITHOUT_BODY = ("/suspend", "/resume", "/cancel", "/confirm", "/rollback", "/abandon", "/pause")


@pytest.fixture
async def acme(api: HttpApi) -> httpx.AsyncClient:
    return await api.tenant("acme", "row")


def _is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert set(body) >= {"type", "title", "status", "detail", "retryable"}
    return body


async def test_a_body_that_is_not_what_it_must_be_is_refused(acme, subtests):
    deep = "[" * 100 + "]" * 100
    for content, status in (
        (b"", 422),
        (b"{", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"select 1"', 422),
        (b"{}", 422),
        (b'{"query": 5}', 422),
        (b'{"query": null}', 422),
        (b'{"query": "select 1", "params": "x"}', 422),
        (b'{"query": "select 1", "params": 5}', 422),
        (b'{"query": "select 1", "param": []}', 422),
        (b'{"query": "select 1", "tenant_id": "globex"}', 422),
        (b'{"query": "select 1", "query": "select 2"}', 422),
        (b'{"query": "select $1::float8", "params": [NaN]}', 422),
        (b'{"query": "select $1::float8", "params": [Infinity]}', 422),
        (b'{"query": "select $1::text", "params": ["\\ud800"]}', 422),
        (b'{"query": "select \\ud800"}', 422),
        (b'{"query": "select \xff"}', 422),
        (f'{{"query": "select $1::jsonb", "params": [{deep}]}}'.encode(), 422),
        (("[" * 200_000).encode(), 422),
        (f'{{"query": "select $1::numeric", "params": [{"9" * 5000}]}}'.encode(), 422),
        ('{"query": "select 1"}'.encode("utf-16"), 422),
    ):
        with subtests.test(content=content[:60]):
            _is_problem(await acme.post(_QUERY, content=content, headers=_JSON), status)


async def test_wrong_fields_of_a_batch_are_named_with_their_place(acme):
    answer = await acme.post(
        "/v1/tenants/acme/batch",
        json={"operations": [{"query": "select 1"}, {"qery": "select 1"}], "atomic": "yes"},
    )

    found = {item["field"]: item["detail"] for item in _is_problem(answer, 422)["errors"]}
    assert found.keys() == {"operations.1.query", "operations.1.qery", "atomic"}
    assert found["operations.1.qery"] == "there is no such field; the fields are query, params"


async def test_only_json_is_taken(acme, subtests):
    body = json.dumps({"query": "select 1"})
    for headers, status in (
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ({"Content-Type": "application/vnd.acme+json"}, 200),
    ):
        with subtests.test(headers=headers):
            answer = await acme.post(_QUERY, content=body, headers=headers)

            assert answer.status_code == status, answer.text


async def test_an_address_that_does_not_exist_and_a_wrong_method_are_told(api: HttpApi, acme):
    for path in ("/", "/v1", "/v1/tenants/acme/qery", "/v1/tenants/", "/docs", "/v2/tenants"):
        _is_problem(await acme.get(path), 404)
    wrong = {
        ("PUT", "/v1/tenants"): {"GET", "POST"},
        ("PATCH", "/v1/tenants/acme"): {"GET", "DELETE"},
        ("GET", _QUERY): {"POST"},
        ("GET", "/v1/tenants/acme/batch"): {"POST"},
        ("POST", "/healthz"): {"GET"},
    }
    for (method, path), allowed in wrong.items():
        answer = await api.admin.request(method, path)
        _is_problem(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == allowed


async def test_a_parameter_behind_the_question_mark_is_refused_where_there_is_none(acme):
    answer = await acme.post(f"{_QUERY}?timeout=5", json={"query": "select 1"})

    assert "timeout" in _is_problem(answer, 422)["detail"]


async def test_a_body_beyond_the_limit_is_refused_with_and_without_its_length(make_api):
    api = await make_api(request_bytes_max=1_000)
    acme = await api.tenant("acme", "row")
    large = json.dumps({"query": f"select 1 -- {'x' * 2_000}"}).encode()

    async def parts():
        for _ in range(100):
            yield b"x" * 100

    told = await acme.post(_QUERY, content=large, headers=_JSON)
    untold = await acme.post(_QUERY, content=parts(), headers=_JSON)
    fits = await acme.post(_QUERY, json={"query": "select 1"})

    for answer in (told, untold):
        assert _is_problem(answer, 413)["type"] == "urn:tenancy:problem:request-too-large"
    assert fits.status_code == 200


async def test_no_more_of_a_body_is_read_than_the_limit_allows(make_api):
    api = await make_api(request_bytes_max=1_000)
    acme = await api.tenant("acme", "row")
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    # The transport of these tests asks for a part when the application does.
    answer = await acme.post(_QUERY, content=endless(), headers=_JSON)

    _is_problem(answer, 413)
    assert sent <= 1_200


async def test_a_body_that_does_not_arrive_is_given_up(make_api):
    api = await make_api(request_read_timeout_s=0.05)
    acme = await api.tenant("acme", "row")
    never = asyncio.Event()

    async def stuck():
        yield b"{"
        await never.wait()

    answer = await acme.post(_QUERY, content=stuck(), headers=_JSON)

    _is_problem(answer, 408)


async def test_a_statement_and_its_parameters_have_limits(make_api, subtests):
    api = await make_api(statement_bytes_max=100, statement_params_max=3, batch_operations_max=2)
    acme = await api.tenant("acme", "row")
    batch = "/v1/tenants/acme/batch"
    operation = "/v1/tenants/acme/operations/x"
    for path, body in (
        (_QUERY, {"query": f"select 1 -- {'x' * 100}"}),
        (_QUERY, {"query": f"select 1 -- {'ä' * 50}"}),
        (_QUERY, {"query": "select 1", "params": [1, 2, 3, 4]}),
        (_QUERY, {"query": "select 1", "params": {"a": 1, "b": 1, "c": 1, "d": 1}}),
        (batch, {"operations": [{"query": "select 1"}] * 3}),
        (operation, {"query": f"select 1 -- {'x' * 100}"}),
        (operation, {"query": "select 1", "params": [1, 2, 3, 4]}),
        (operation, {"query": "select 1", "a": 1, "b": 1, "c": 1}),
    ):
        with subtests.test(path=path, body=str(body)[:60]):
            _is_problem(await acme.post(path, json=body), 413)
    fits = {"query": "select $1::int + $2::int + $3::int", "params": [1, 2, 3]}
    assert (await acme.post(_QUERY, json=fits)).json()["rows"] == [[6]]


class _Held:
    """Requests that wait in the gateway until they are let go."""

    def __init__(self, api: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        execute = type(api.engine).execute

        async def held(engine, tenant_id, operation):
            self.arrived.release()
            await self.go.wait()
            return await execute(engine, tenant_id, operation)

        monkeypatch.setattr(type(api.engine), "execute", held)


async def test_a_tenant_with_too_many_requests_is_told_to_wait_and_others_go_on(
    make_api, monkeypatch
):
    api = await make_api(tenant_requests_in_flight_max=2)
    acme, globex = await api.tenant("acme", "row"), await api.tenant("globex", "row")
    held, body = _Held(api, monkeypatch), {"query": "select 1"}
    waiting = [asyncio.create_task(acme.post(_QUERY, json=body)) for _ in range(2)]
    for _ in waiting:
        await held.arrived.acquire()

    refused = await acme.post(_QUERY, json=body)
    other = asyncio.create_task(globex.post("/v1/tenants/globex/query", json=body))
    await held.arrived.acquire()
    held.go.set()

    assert _is_problem(refused, 429)["retryable"] is True
    assert refused.headers["retry-after"]
    assert [answer.status_code for answer in await asyncio.gather(*waiting, other)] == [200] * 3
    assert (await acme.post(_QUERY, json=body)).status_code == 200


async def test_a_process_with_too_many_requests_turns_further_ones_away_but_not_probes(
    make_api, monkeypatch
):
    api = await make_api(requests_in_flight_max=1)
    acme = await api.tenant("acme", "row")
    held, body = _Held(api, monkeypatch), {"query": "select 1"}
    waiting = asyncio.create_task(acme.post(_QUERY, json=body))
    await held.arrived.acquire()

    refused = await acme.post(_QUERY, json=body)
    probes = [await api.anonymous.get(path) for path in ("/healthz", "/readyz", "/metrics")]
    held.go.set()

    assert _is_problem(refused, 503)["retryable"] is True
    assert refused.headers["retry-after"]
    assert [answer.status_code for answer in probes] == [200] * 3
    assert (await waiting).status_code == 200
    assert (await acme.post(_QUERY, json=body)).status_code == 200


async def test_an_error_that_nobody_foresaw_is_told_by_its_id_only(
    api: HttpApi, acme, monkeypatch, caplog
):
    async def broken(*_):
        raise ZeroDivisionError("password=hush")

    monkeypatch.setattr(type(api.engine), "execute", broken)

    answer = await acme.post(_QUERY, json={"query": "select 1"})

    body = _is_problem(answer, 500)
    assert "hush" not in answer.text
    assert body["instance"] in caplog.text
    assert "hush" in caplog.text


async def test_health_and_figures_need_no_credential_and_name_no_tenant(api: HttpApi, acme):
    await acme.post(_QUERY, json={"query": "select 1"})
    await acme.post(_QUERY, json={"query": "selec 1"})

    alive = await api.anonymous.get("/healthz")
    ready = await api.anonymous.get("/readyz")
    figures = await api.anonymous.get("/metrics")

    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert ready.status_code == 200
    assert ready.json() == {"status": "ok", "checks": {"catalog": "ok", "server main": "ok"}}
    assert figures.headers["content-type"].startswith("text/plain")
    route = 'route="/v1/tenants/{tenant_id}/query"'
    for status in (200, 400):
        line = f'tenancy_http_requests_total{{method="POST",{route},status="{status}"}} 1.0'
        assert line in figures.text
    assert 'tenancy_tenants{level="row"} 1.0' in figures.text
    assert "acme" not in figures.text


async def test_a_path_that_does_not_exist_makes_no_series_of_its_own(api: HttpApi):
    for path in ("/v1/tenants/acme/x", "/a", "/b"):
        await api.anonymous.get(path)
    await api.anonymous.request("BREW", "/c")

    figures = (await api.anonymous.get("/metrics")).text

    assert 'route="none"' in figures
    assert "/v1/tenants/acme" not in figures
    assert "BREW" not in figures


async def test_what_does_not_answer_makes_the_process_not_ready_and_is_named(api: HttpApi, install):
    await api.engine.catalog.close()

    ready = await api.anonymous.get("/readyz")
    alive = await api.anonymous.get("/healthz")

    assert ready.status_code == 503
    assert ready.headers["retry-after"]
    assert ready.json()["status"] == "unavailable"
    assert ready.json()["checks"]["catalog"] != "ok"
    assert ready.json()["checks"]["server main"] == "ok"
    assert alive.status_code == 200


async def test_the_openapi_document_has_every_route_with_its_body_problems_and_credentials(
    api: HttpApi,
):
    document = (await api.anonymous.get("/openapi.json")).json()
    routes = {(method, path) for path, item in document["paths"].items() for method in item}

    assert routes == {
        ("post", "/v1/tenants"),
        ("get", "/v1/tenants"),
        ("post", "/v1/tenant-batches"),
        ("get", "/v1/tenants/{tenant_id}"),
        ("delete", "/v1/tenants/{tenant_id}"),
        ("post", "/v1/tenants/{tenant_id}/suspend"),
        ("post", "/v1/tenants/{tenant_id}/resume"),
        ("post", "/v1/tenants/{tenant_id}/query"),
        ("post", "/v1/tenants/{tenant_id}/batch"),
        ("post", "/v1/tenants/{tenant_id}/operations/{name}"),
        ("post", "/v1/tenants/{tenant_id}/moves"),
        ("get", "/v1/tenants/{tenant_id}/moves"),
        ("get", "/v1/moves"),
        ("get", "/v1/moves/{move_id}"),
        ("post", "/v1/moves/{move_id}/cancel"),
        ("post", "/v1/moves/{move_id}/confirm"),
        ("post", "/v1/moves/{move_id}/rollback"),
        ("post", "/v1/moves/{move_id}/abandon"),
        ("post", "/v1/moves/{move_id}/pause"),
        ("post", "/v1/moves/{move_id}/resume"),
        ("get", "/v1/proposals"),
        ("get", "/v1/proposals/{proposal_id}"),
        ("post", "/v1/proposals/{proposal_id}/accept"),
        ("post", "/v1/proposals/{proposal_id}/dismiss"),
        ("get", "/v1/schema"),
        ("get", "/v1/schema/advice"),
        ("post", "/v1/schema/migrations"),
        ("post", "/v1/schema/statistics"),
        ("get", "/v1/operations"),
        ("get", "/v1/operations/{name}"),
        ("put", "/v1/operations/{name}"),
        ("delete", "/v1/operations/{name}"),
        ("get", "/v1/keys"),
        ("post", "/v1/keys"),
        ("get", "/v1/keys/{key_id}"),
        ("post", "/v1/keys/{key_id}/rotate"),
        ("delete", "/v1/keys/{key_id}"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"]
            assert bool(operation["security"]) == path.startswith("/v1/")
            if path.startswith("/v1/"):
                assert {"401", "403", "500", "503"} <= set(operation["responses"])
            has_body = method in ("post", "put") and not path.endswith(_WITHOUT_BODY)
            assert ("requestBody" in operation) is has_body
    assert "wait=" in json.dumps(document["paths"]["/v1/tenants/{tenant_id}/query"])
    assert set(document["components"]["securitySchemes"]) == {"apiKey", "token"}


async def test_every_problem_in_the_openapi_document_is_problem_details(api: HttpApi):
    document = (await api.anonymous.get("/openapi.json")).json()

    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                if path.startswith("/v1/") and status >= "400":
                    told = (path, method, status)
                    assert list(response["content"]) == ["application/problem+json"], told
    assert "422" in document["paths"]["/v1/tenants/{tenant_id}"]["get"]["responses"]
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


async def test_every_reference_in_the_openapi_document_leads_somewhere(api: HttpApi):
    document = (await api.anonymous.get("/openapi.json")).json()
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for item in value.values():
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    look(document)
    assert len(found) > 20
    for reference in found:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
