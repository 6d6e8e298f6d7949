"""What a tenant learns about others by naming them (A01, A03, A04, A05, A10 and A11 of the attack
catalogue), at every route that the served OpenAPI document has."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from support.http_api import HttpApi

_OWN, _VICTIM, _GHOST = "acme", "globex", "ghosty"
_CANARY = "canary@globex.test"
#: What a body holds by the name of its property; everything else is filled by type.
_VALUES: dict[str, Any] = {
    "query": "select 1",
    "sql": "select 1",
    "scope": "tenant",
    "tenant_type": "free",
    "isolation_level": "row",
    "operations": [{"query": "select 1"}],
}


@dataclass(frozen=True, kw_only=True)
class Route:
    """One operation of the OpenAPI document."""

    method: str
    path: str
    #: Where it can name a tenant: a parameter of the path or behind `?`, or a field of the body.
    names_tenant: bool
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None

    def asked_for(self, tenant: str) -> dict[str, Any]:
        """A request that names this tenant wherever it can, for a client."""
        path = self.path
        for name in ("tenant_id", "name", "key_id", "move_id"):
            path = path.replace(f"{{{name}}}", tenant if name == "tenant_id" else "list_users")
        query = {name: tenant if name == "tenant_id" else text for name, text in self.query.items()}
        body = self.body
        if isinstance(body, dict) and "tenant_id" in body:
            body = body | {"tenant_id": tenant}
        return {"method": self.method, "url": path, "params": query, "json": body}


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def _body(document: dict[str, Any], operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    schema = _resolved(document, content["schema"])
    wanted = [*schema.get("required", ()), "tenant_id"]
    return {name: _VALUES.get(name, "x") for name in schema.get("properties", {}) if name in wanted}


def _routes(document: dict[str, Any]) -> Iterator[Route]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parameters = operation.get("parameters", [])
            query = {p["name"]: "1" for p in parameters if p["in"] == "query"}
            body = _body(document, operation)
            in_body = isinstance(body, dict) and "tenant_id" in body
            yield Route(
                method=method.upper(),
                path=path,
                names_tenant="tenant" in path.partition("}")[0].rpartition("{")[2]
                or "tenant_id" in query
                or in_body,
                query={name: "1" for name in query if name == "tenant_id"},
                body=body,
            )


@pytest.fixture
async def routes(api: HttpApi) -> list[Route]:
    document = (await api.anonymous.get("/openapi.json")).json()
    found = [route for route in _routes(document) if route.path.startswith("/v1/")]
    named = {(route.method, route.path) for route in found if route.names_tenant}
    # The way of finding them finds those that are known to be there.
    assert {
        ("POST", "/v1/tenants/{tenant_id}/query"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("POST", "/v1/tenants"),
        ("DELETE", "/v1/tenants/{tenant_id}"),
    } <= named
    assert all("{tenant_id}" not in route.path or route.names_tenant for route in found)
    return found


@pytest.fixture
async def attacker(api: HttpApi) -> httpx.AsyncClient:
    """The client of a tenant beside which there is another one."""
    await api.migrate()
    own = await api.tenant(_OWN, "row")
    victim = await api.tenant(_VICTIM, "row")
    body = {"query": "insert into users (id, email) values (1, $1)", "params": [_CANARY]}
    assert (await victim.post(f"/v1/tenants/{_VICTIM}/query", json=body)).status_code == 200
    return own


def _seen(answer: httpx.Response) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """All that a client sees of an answer."""
    return answer.status_code, answer.content, answer.headers.raw


async def test_a11_no_route_tells_another_tenant_from_one_that_does_not_exist(
    api: HttpApi, attacker: httpx.AsyncClient, routes: list[Route], subtests: Any
):
    told_apart = 0
    for route in (route for route in routes if route.names_tenant):
        with subtests.test(f"{route.method} {route.path}"):
            other = await attacker.request(**route.asked_for(_VICTIM))
            ghost = await attacker.request(**route.asked_for(_GHOST))

            assert _seen(other) == _seen(ghost)
            assert other.status_code in (403, 404)
            # An administrator sees the difference where the question changes nothing.
            if route.method == "GET":
                known = await api.admin.request(**route.asked_for(_VICTIM))
                unknown = await api.admin.request(**route.asked_for(_GHOST))
                told_apart += _seen(known) != _seen(unknown)
    assert told_apart >= 2
    assert (await api.admin.get(f"/v1/tenants/{_VICTIM}")).json()["status"] == "active"


async def test_a11_nor_do_requests_that_are_wrong_in_other_ways(
    attacker: httpx.AsyncClient, routes: list[Route], subtests: Any
):
    wrong: dict[str, dict[str, Any]] = {
        "body that is no JSON": {"content": b"{", "json": None},
        "body of another shape": {"json": {"nonsense": 1}},
        "body of another kind": {"content": b"x", "json": None, "headers": {"Content-Type": "a/b"}},
        "unknown parameter": {"params": {"nonsense": "1"}},
        "wrong wait": {"headers": {"Prefer": "wait=never"}},
        "wrong idempotency key": {"headers": {"Idempotency-Key": ""}},
        "large body": {"content": b"x" * (5 << 20), "json": None},
    }
    for route in (route for route in routes if "{tenant_id}" in route.path):
        for name, options in wrong.items():
            with subtests.test(f"{route.method} {route.path}: {name}"):
                other = await attacker.request(**(route.asked_for(_VICTIM) | options))
                ghost = await attacker.request(**(route.asked_for(_GHOST) | options))

                assert _seen(other) == _seen(ghost)


async def test_a11_wrong_methods_and_addresses_tell_nothing(
    attacker: httpx.AsyncClient, routes: list[Route]
):
    suffixes = {route.path.partition("{tenant_id}")[2] for route in routes} | {"/nothing"}
    for suffix in sorted(suffixes):
        for method in ("GET", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "HEAD"):
            seen = []
            for tenant in (_VICTIM, _GHOST):
                path = f"/v1/tenants/{tenant}{suffix.replace('{name}', 'x')}"
                seen.append(_seen(await attacker.request(method, path)))
            assert seen[0] == seen[1], (method, suffix)


async def test_a11_both_take_the_same_steps(
    api: HttpApi,
    attacker: httpx.AsyncClient,
    routes: list[Route],
    monkeypatch: pytest.MonkeyPatch,
):
    """Whatever the time is, it is spent on the same: questions to the catalog, calls of actors."""
    steps: Counter[str] = Counter()
    pool, gateway = api.engine.catalog.pool, type(api.engine)
    for owner, names in (
        (pool, ("row", "rows", "value", "write")),
        (gateway, ("execute", "execute_batch", "tenant", "create_tenant", "delete_tenant")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, _counting(steps, name, getattr(owner, name)))
    await attacker.post(f"/v1/tenants/{_OWN}/query", json={"query": "select 1"})
    assert steps["execute"] == 1  # Counting counts.
    for route in (route for route in routes if "{tenant_id}" in route.path):
        taken = []
        for tenant in (_VICTIM, _GHOST):
            steps.clear()
            await attacker.request(**route.asked_for(tenant))
            taken.append(dict(steps))
        # Nothing at all, but that the credential is looked up again when it was believed for long.
        assert {name for step in taken for name in step} <= {"row"}, route


def _counting(steps: Counter[str], name: str, method: Any) -> Any:
    async def counted(*arguments: Any, **options: Any) -> Any:
        steps[name] += 1
        return await method(*arguments, **options)

    return counted


async def test_a01_no_header_but_the_credential_says_who_asks(
    api: HttpApi, attacker: httpx.AsyncClient, subtests: Any
):
    query = {"query": "select email from users"}
    victim = await api.client(await api.key(_VICTIM))
    seen = await victim.post(f"/v1/tenants/{_VICTIM}/query", json=query)
    assert seen.json()["rows"] == [[_CANARY]]  # What the attack would bring to light.
    own = await attacker.post(f"/v1/tenants/{_OWN}/query", json=query)
    ghost = await attacker.post(f"/v1/tenants/{_GHOST}/query", json=query)
    path = f"/v1/tenants/{_VICTIM}/query"
    for headers in (
        {"X-Tenant-ID": _VICTIM},
        {"X-Tenant": _VICTIM, "Tenant": _VICTIM, "Tenant-Id": _VICTIM},
        {"X-Forwarded-Host": f"{_VICTIM}.api.test"},
        {"Host": f"{_VICTIM}.api.test"},
        {"X-Forwarded-User": _VICTIM, "X-Remote-User": _VICTIM, "Remote-User": _VICTIM},
        {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "X-Forwarded-Proto": "https"},
        {"Forwarded": f"for=127.0.0.1;host={_VICTIM}.api.test;proto=https"},
        {"X-Forwarded-Prefix": path, "X-Forwarded-Path": path, "X-Forwarded-Uri": path},
        {"X-Original-URL": path, "X-Rewrite-URL": path},
        {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE"},
        {"X-Session-Id": _VICTIM, "Serve_Multiplexed_Model_Id": _VICTIM},
        {"X-Admin": "true", "X-Internal": "1", "X-Scope": "admin"},
    ):
        with subtests.test(headers=headers):
            mine = await attacker.post(f"/v1/tenants/{_OWN}/query", json=query, headers=headers)
            other = await attacker.post(path, json=query, headers=headers)

            assert _seen(mine) == _seen(own)
            assert _seen(other) == _seen(ghost)
            listed = await attacker.get("/v1/tenants", headers=headers)
            assert listed.status_code == 403


async def test_a03_a04_numbers_and_spellings_lead_to_no_tenant(
    api: HttpApi, attacker: httpx.AsyncClient, subtests: Any
):
    number = (await api.engine.tenant(_VICTIM)).tenant_no
    query = {"query": "select email from users"}
    ghost = await attacker.post(f"/v1/tenants/{_GHOST}/query", json=query)
    for name in (
        *(str(number), str(number - 1), f"0{number}", f"tenant_{number}"),
        *(_VICTIM.upper(), f"{_VICTIM}%20", f"%20{_VICTIM}", f"{_VICTIM}%00", f"{_VICTIM}%0a"),
        *(f"{_OWN},{_VICTIM}", f"{_OWN};{_VICTIM}", f"{_OWN}%00{_VICTIM}", "*", "%25", "_"),
        *("glob%D0%B5x", "%67lobex", "%FF", "a" * 64),
    ):
        with subtests.test(name):
            answer = await attacker.post(f"/v1/tenants/{name}/query", json=query)

            assert _CANARY not in answer.text
            assert answer.status_code == 404
            assert answer.content == ghost.content
    # The same spelling in another encoding is the same name, for its owner as well.
    assert (await attacker.get("/v1/tenants/%61cme")).json()["tenant_id"] == _OWN


async def test_a05_the_same_question_of_two_tenants_has_two_answers(api: HttpApi, install: Any):
    """Equal texts travel and are remembered together; the answers stay apart."""
    await api.migrate()
    clients = {}
    for tenant in (_OWN, _VICTIM, "initech"):
        clients[tenant] = await api.tenant(tenant, "row")
        body = {"query": "insert into users (id, email) values (1, $1)", "params": [tenant]}
        await clients[tenant].post(f"/v1/tenants/{tenant}/query", json=body)
    query = {"query": "select email from users where id = $1", "params": [1]}

    async def ask(tenant: str) -> tuple[str, Any]:
        answer = await clients[tenant].post(f"/v1/tenants/{tenant}/query", json=query)
        return tenant, answer.json()["rows"]

    answers = await asyncio.gather(*(ask(tenant) for tenant in [*clients] * 40))

    assert all(rows == [[tenant]] for tenant, rows in answers)


async def test_a05_nothing_on_the_way_keeps_an_answer(
    api: HttpApi, attacker: httpx.AsyncClient, routes: list[Route], subtests: Any
):
    for client in (attacker, api.anonymous, api.admin):
        for route in routes:
            if client is api.admin and route.method not in ("GET", "POST"):
                continue
            with subtests.test(f"{route.method} {route.path}"):
                answer = await client.request(**route.asked_for(_GHOST))

                assert answer.headers.get_list("cache-control") == ["no-store"]
    assert "cache-control" not in (await api.anonymous.get("/healthz")).headers


async def test_a10_errors_and_figures_hold_nothing_of_a_tenant(
    api: HttpApi, attacker: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
):
    """Statements, parameters, rows and names, in what others than the tenant itself can read."""
    victim = await api.client(await api.key(_VICTIM))
    path = f"/v1/tenants/{_VICTIM}/query"
    secret = "hush-5f1c"
    with caplog.at_level("DEBUG", logger="tenancy"):
        for query, params in (
            (f"selec '{secret}'", []),
            (f"select * from {secret.replace('-', '_')}", []),
            ("insert into users (id, email) values ($1, $2)", [1, secret]),
            ("select $1::int", [secret]),
            ("select ($1::text)::int", [secret]),
            (f"create table {secret.replace('-', '_')} (id int)", []),
            (f"select pg_sleep('{secret}')", []),
        ):
            answer = await victim.post(path, json={"query": query, "params": params})
            assert answer.status_code in (400, 403, 409, 422), answer.text
    figures = (await api.anonymous.get("/metrics")).text
    shown = json.dumps((await attacker.get(f"/v1/tenants/{_OWN}")).json())

    for text in (caplog.text, figures, shown):
        for hidden in (secret, secret.replace("-", "_"), _CANARY, _VICTIM):
            assert hidden not in text
