"""Whatever a client sends, the answer is its own fault or a success, and problem details if not."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

from support.http_api import HttpApi

_ROUTES = (
    ("POST", "/v1/tenants"),
    ("GET", "/v1/tenants"),
    ("GET", "/v1/tenants/{}"),
    ("DELETE", "/v1/tenants/{}"),
    ("POST", "/v1/tenants/{}/suspend"),
    ("POST", "/v1/tenants/acme/query"),
    ("POST", "/v1/tenants/{}/query"),
    ("POST", "/v1/tenants/acme/batch"),
    ("POST", "/v1/tenants/acme/operations/{}"),
    ("POST", "/v1/schema/migrations"),
    ("PUT", "/v1/operations/{}"),
    ("DELETE", "/v1/operations/{}"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys/{}/rotate"),
    ("DELETE", "/v1/keys/{}"),
)
_NAMES = (
    *("query", "params", "operations", "atomic", "tenant_id", "tenant_type", "isolation_level"),
    *("region", "compliance", "metadata", "name", "sql", "scope", "label", "expires_at", "id"),
    *("email", "limit", "after", "offset", "", "size_bytes", "workload", "x" * 300),
)
_TEXTS = (
    *("", "acme", "ACME", "row", "free", "admin", "tenant", "hipaa", "0001_x", "x_1", "_", "null"),
    *("select 1", "select $1::int", "select :a", "select * from users", "list_users", "get_user"),
    *("select $1::jsonb", "select $1::numeric", "select $1::int[]", "select $1::timestamptz"),
    *("create table x (id int primary key)", "drop table users", "--", "/*", "'", '"', "\\", "%s"),
    *("\x00", "\x1b[0m", "\u202e", "\ufeff", "ä" * 100, "\U0001f600", "9" * 400, "2100-01-01"),
    *("2100-01-01T00:00:00Z", "infinity", "NaN", "{}", "[]", "../..", "%2e%2e", "a" * 70_000),
)
_NUMBERS = (0, 1, -1, 2**31, 2**63, -(2**63) - 1, 2**200, 0.5, -0.0, 1e308, 5e-324)
#: Of a client's mistakes and of what is done. 5xx is none of them.
_FINE = {200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429}


def _value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 4 else 5)
    match kind:
        case 0:
            return None
        case 1:
            return chance.random() < 0.5
        case 2:
            return chance.choice(_NUMBERS)
        case 3 | 4:
            return chance.choice(_TEXTS)
        case 5:
            return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        case _:
            return {
                chance.choice(_NAMES): _value(chance, depth + 1) for _ in range(chance.randrange(5))
            }


def _body(chance: random.Random) -> Any:
    """Mostly something that comes near to what a route takes."""
    if chance.random() < 0.2:
        return _value(chance)
    near = {
        "query": chance.choice(_TEXTS),
        "params": _value(chance, 2),
        "operations": [{"query": chance.choice(_TEXTS), "params": _value(chance, 2)}],
        "tenant_id": chance.choice(_TEXTS),
        "isolation_level": chance.choice(("row", "schema", _value(chance))),
        "metadata": _value(chance, 2),
        "name": chance.choice(_TEXTS),
        "sql": chance.choice(_TEXTS),
        "scope": chance.choice(("admin", "tenant", _value(chance))),
    }
    names = chance.sample(sorted(near), chance.randrange(1, 4))
    return {name: near[name] for name in names}


async def test_nonsense_is_never_an_error_of_the_server(api: HttpApi):
    await api.migrate()
    await api.tenant("acme", "row")
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(600):
        method, path = chance.choice(_ROUTES)
        path = path.format(quote(chance.choice(_TEXTS)[:200], safe=""))
        content: bytes | None = None
        if method in ("POST", "PUT"):
            content = json.dumps(_body(chance)).encode()
            if chance.random() < 0.1:
                cut = chance.randrange(len(content) + 1)
                content = content[:cut] + bytes([chance.randrange(256)]) + content[cut + 1 :]
        headers = {"Content-Type": "application/json"}
        if chance.random() < 0.1:
            headers["Idempotency-Key"] = chance.choice(("k", '"k"', "", "a b", "x" * 300))
        if chance.random() < 0.1:
            headers["Prefer"] = chance.choice(("wait=1", "wait=", "x", "wait=9" * 9))
        params = {chance.choice(_NAMES): "x"} if chance.random() < 0.1 else None

        answer = await api.admin.request(
            method, path, content=content, headers=headers, params=params
        )

        told = (seed, number, method, path[:100], (content or b"")[:300], answer.text[:500])
        assert answer.status_code in _FINE, told
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", told
            assert answer.json()["status"] == answer.status_code, told
        await api.admin.post("/v1/tenants", json={"tenant_id": "acme"})
