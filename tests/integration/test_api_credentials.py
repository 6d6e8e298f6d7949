"""Who may do what over HTTP: keys, tokens, and what others learn about a tenant."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm
from support.http_api import HttpApi
from support.token_issuer import AUDIENCE, ISSUER, TokenIssuer

_ADMIN_ROUTES = (
    ("POST", "/v1/tenants", {"tenant_id": "other"}),
    ("GET", "/v1/tenants", None),
    ("POST", "/v1/tenants/acme/suspend", None),
    ("POST", "/v1/tenants/acme/resume", None),
    ("DELETE", "/v1/tenants/acme", None),
    ("GET", "/v1/schema", None),
    ("POST", "/v1/schema/migrations", {"name": "x", "sql": "create table x (id int primary key)"}),
    ("GET", "/v1/operations", None),
    ("GET", "/v1/operations/x", None),
    ("PUT", "/v1/operations/x", {"sql": "select 1"}),
    ("DELETE", "/v1/operations/x", None),
    ("GET", "/v1/keys", None),
    ("POST", "/v1/keys", {"scope": "admin"}),
    ("GET", "/v1/keys/0123456789abcdef", None),
    ("POST", "/v1/keys/0123456789abcdef/rotate", {}),
    ("DELETE", "/v1/keys/0123456789abcdef", None),
)
_TENANT_ROUTES = (
    ("GET", "", None),
    ("DELETE", "", None),
    ("POST", "/suspend", None),
    ("POST", "/resume", None),
    ("POST", "/query", {"query": "select 1"}),
    ("POST", "/batch", {"operations": [{"query": "select 1"}]}),
    ("POST", "/operations/list_users", {}),
)


async def test_without_a_valid_credential_nothing_is_done(api: HttpApi, subtests):
    await api.tenant("acme", "row")
    good = await api.key("acme")
    routes = [
        *_ADMIN_ROUTES,
        *((method, f"/v1/tenants/acme{path}", body) for method, path, body in _TENANT_ROUTES),
    ]
    for authorization in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Basic {good}",
        good,
        f"Bearer {good} {good}",
        f"Bearer {'x' * 20_000}",
        "Bearer a.b.c",
    ):
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path, body in routes:
            with subtests.test(authorization=authorization, method=method, path=path):
                answer = await api.anonymous.request(method, path, json=body, headers=headers)

                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json()["type"] == "urn:tenancy:problem:unauthenticated"
    assert (await api.admin.get("/v1/tenants/acme")).status_code == 200


async def test_two_authorization_headers_are_refused(api: HttpApi):
    await api.tenant("acme", "row")
    key = f"Bearer {await api.key('acme')}"

    answer = await api.anonymous.get(
        "/v1/tenants/acme", headers=[("Authorization", key), ("Authorization", key)]
    )

    assert answer.status_code == 401


async def test_a_tenants_key_does_not_administer(api: HttpApi, subtests):
    tenant = await api.tenant("acme", "row")
    for method, path, body in _ADMIN_ROUTES:
        with subtests.test(method=method, path=path):
            answer = await tenant.request(method, path, json=body)

            assert answer.status_code == 403
            assert answer.json()["type"] == "urn:tenancy:problem:access-denied"
    shown = await tenant.get("/v1/tenants/acme")
    assert (shown.status_code, shown.json()["status"]) == (200, "active")


async def test_another_tenant_is_answered_as_one_that_does_not_exist(api: HttpApi, subtests):
    tenant = await api.tenant("acme", "row")
    await api.tenant("globex", "schema")
    for method, path, body in _TENANT_ROUTES:
        with subtests.test(method=method, path=path):
            other = await tenant.request(method, f"/v1/tenants/globex{path}", json=body)
            ghost = await tenant.request(method, f"/v1/tenants/ghosty{path}", json=body)

            assert other.status_code == ghost.status_code == 404
            assert other.content == ghost.content
            assert other.headers.raw == ghost.headers.raw
            # Not even as it is told to administrators.
            assert other.json()["detail"] == "There is no such tenant."
    assert (await api.admin.get("/v1/tenants/globex")).json()["status"] == "active"


async def test_another_tenant_is_told_apart_from_a_missing_one_by_no_question_to_the_catalog(
    api: HttpApi, monkeypatch
):
    tenant = await api.tenant("acme", "row")
    await api.tenant("globex", "row")
    await tenant.get("/v1/tenants/acme")
    asked = []
    for name in ("row", "rows", "value", "write"):
        monkeypatch.setattr(api.engine.catalog.pool, name, lambda *_: asked.append(1))

    for name in ("globex", "ghosty"):
        assert (await tenant.get(f"/v1/tenants/{name}")).status_code == 404

    assert asked == []


async def test_a_missing_body_or_a_wrong_one_tells_nothing_about_another_tenant(api: HttpApi):
    tenant = await api.tenant("acme", "row")
    await api.tenant("globex", "row")

    for content in (b"", b"{", b"[]"):
        for name in ("globex", "ghosty"):
            answer = await tenant.post(f"/v1/tenants/{name}/query", content=content)
            assert answer.status_code == 404


async def test_the_tenant_comes_from_the_credential_whatever_headers_say(api: HttpApi):
    tenant = await api.tenant("acme", "row")
    await api.tenant("globex", "row")

    answer = await tenant.post(
        "/v1/tenants/globex/query",
        json={"query": "select 1"},
        headers={"X-Tenant-Id": "globex", "X-Forwarded-User": "globex", "Tenant": "globex"},
    )

    assert answer.status_code == 404


async def test_a_revoked_key_is_good_for_nothing_at_once(api: HttpApi):
    await api.tenant("acme", "row")
    made = await api.admin.post("/v1/keys", json={"scope": "tenant", "tenant_id": "acme"})
    client = await api.client(made.json()["key"])
    assert (await client.get("/v1/tenants/acme")).status_code == 200

    revoked = await api.admin.delete(f"/v1/keys/{made.json()['key_id']}")

    assert revoked.status_code == 204
    assert (await client.get("/v1/tenants/acme")).status_code == 401


async def test_the_key_of_an_erased_tenant_does_not_work_for_its_successor(make_api):
    api = await make_api(credential_cache_ms=1)
    tenant = await api.tenant("acme", "row")
    await api.admin.delete("/v1/tenants/acme")
    await api.tenant("acme", "row")

    assert (await tenant.get("/v1/tenants/acme")).status_code == 401


async def test_keys_are_made_shown_once_listed_and_revoked(api: HttpApi):
    await api.tenant("acme", "row")
    made = await api.admin.post(
        "/v1/keys",
        json={
            "scope": "tenant",
            "tenant_id": "acme",
            "label": "app",
            "expires_at": "2100-01-01T00:00:00Z",
        },
    )
    body = made.json()
    listed = (await api.admin.get("/v1/keys", params={"tenant_id": "acme"})).json()["keys"]

    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert (body["scope"], body["tenant_id"], body["label"]) == ("tenant", "acme", "app")
    mine = next(item for item in listed if item["key_id"] == body["key_id"])
    assert mine["tenant_id"] == "acme"
    assert mine["revoked_at"] is None
    assert body["key"] not in json.dumps(listed)
    assert body["key"].split("_", 2)[2] not in json.dumps(listed)
    client = await api.client(body["key"])
    assert (await client.get("/v1/tenants/acme")).status_code == 200


async def test_a_key_is_rotated_over_http(api: HttpApi):
    await api.tenant("acme", "row")
    made = (await api.admin.post("/v1/keys", json={"scope": "tenant", "tenant_id": "acme"})).json()
    path = f"/v1/keys/{made['key_id']}"
    old = await api.client(made["key"])
    assert (await old.get("/v1/tenants/acme")).status_code == 200

    overlapping = await api.admin.post(f"{path}/rotate", json={"overlap_s": 60})
    second = await api.client(overlapping.json()["key"])
    during = [(await client.get("/v1/tenants/acme")).status_code for client in (old, second)]
    at_once = await api.admin.post(f"{path}/rotate", json={})
    third = await api.client(at_once.json()["key"])
    after = [(await client.get("/v1/tenants/acme")).status_code for client in (old, second, third)]

    assert (overlapping.status_code, at_once.status_code) == (200, 200)
    assert overlapping.json()["previous_until"] is not None
    assert at_once.json()["previous_until"] is None
    assert (during, after) == ([200, 200], [401, 401, 200])
    shown = await api.admin.get(path)
    told = {name: value for name, value in at_once.json().items() if name != "key"}
    assert shown.json() | {"last_used_at": None} == told | {"last_used_at": None}
    for secret in (made["key"], overlapping.json()["key"], at_once.json()["key"]):
        assert secret.split("_", 2)[2] not in shown.text
    assert shown.json()["last_used_at"] is not None


async def test_what_cannot_be_rotated_is_told(api: HttpApi, subtests):
    made = (await api.admin.post("/v1/keys", json={"scope": "admin"})).json()
    path = f"/v1/keys/{made['key_id']}/rotate"
    for body, status in (
        ({"overlap_s": -1}, 422),
        ({"overlap_s": 1e9}, 422),
        ({"overlap_s": "1"}, 422),
        ({"overlap_s": True}, 422),
        ({"overlap": 1}, 422),
    ):
        with subtests.test(body=body):
            assert (await api.admin.post(path, json=body)).status_code == status
    ghost = "/v1/keys/0123456789abcdef"
    assert (await api.admin.post(f"{ghost}/rotate", json={})).status_code == 404
    assert (await api.admin.get(ghost)).status_code == 404
    repeated = await api.admin.post(path, json={}, headers={"Idempotency-Key": "k"})
    assert repeated.status_code == 422
    await api.admin.delete(f"/v1/keys/{made['key_id']}")
    assert (await api.admin.post(path, json={})).status_code == 409


async def test_a_key_for_administrators_administers(api: HttpApi):
    made = await api.admin.post("/v1/keys", json={"scope": "admin"})
    client = await api.client(made.json()["key"])

    assert (await client.get("/v1/tenants")).status_code == 200


async def test_a_key_that_cannot_be_is_refused(api: HttpApi, subtests):
    await api.tenant("acme", "row")
    for body, status in (
        ({}, 422),
        ({"scope": "root"}, 422),
        ({"scope": "tenant"}, 422),
        ({"scope": "admin", "tenant_id": "acme"}, 422),
        ({"scope": "tenant", "tenant_id": "ghost"}, 404),
        ({"scope": "tenant", "tenant_id": "No!"}, 422),
        ({"scope": "tenant", "tenant_id": "acme", "expires_at": "2000-01-01T00:00:00Z"}, 422),
        ({"scope": "tenant", "tenant_id": "acme", "expires_at": "2100-01-01T00:00:00"}, 422),
        ({"scope": "tenant", "tenant_id": "acme", "expires_at": "soon"}, 422),
        ({"scope": "tenant", "tenant_id": "acme", "label": "x" * 201}, 422),
        ({"scope": "tenant", "tenant_id": "acme", "labl": "x"}, 422),
    ):
        with subtests.test(body=body):
            assert (await api.admin.post("/v1/keys", json=body)).status_code == status
    repeatable = await api.admin.post(
        "/v1/keys", json={"scope": "admin"}, headers={"Idempotency-Key": "k"}
    )
    assert repeatable.status_code == 422
    assert (await api.admin.delete("/v1/keys/0123456789abcdef")).status_code == 404
    assert (await api.admin.get("/v1/keys", params={"tenant_id": "ghost"})).status_code == 404


@pytest.fixture(scope="module")
def issuer(tmp_path_factory) -> TokenIssuer:
    return TokenIssuer(tmp_path_factory.mktemp("issuer") / "keys.json")


@pytest.fixture
async def token_api(make_api, issuer: TokenIssuer) -> HttpApi:
    issuer.publish()
    api = await make_api(
        jwt_jwks=str(issuer.path),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_leeway_s=1.0,
        jwt_keys_retry_s=0.001,
    )
    await api.tenant("acme", "row")
    await api.tenant("globex", "row")
    return api


def _signed_by_hand(claims: dict[str, Any], secret: bytes) -> str:
    """A token that libraries refuse to make: signed with a public key as if that were a secret."""
    parts = [
        jwt.utils.base64url_encode(json.dumps(part).encode()).decode()
        for part in ({"alg": "HS256", "kid": "rsa"}, claims)
    ]
    message = ".".join(parts)
    signature = hmac.digest(secret, message.encode(), "sha256")
    return f"{message}.{jwt.utils.base64url_encode(signature).decode()}"


async def _status(api: HttpApi, token: str, path: str = "/v1/tenants/acme") -> int:
    answer = await api.anonymous.get(path, headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def test_a_token_reaches_the_tenant_that_it_names_and_no_other(token_api, issuer, subtests):
    for kid in ("rsa", "ec", "ed"):
        with subtests.test(kid=kid):
            token = issuer.token(kid)

            assert await _status(token_api, token) == 200
            assert await _status(token_api, token, "/v1/tenants/globex") == 404
            assert await _status(token_api, token, "/v1/tenants/ghost") == 404
            assert await _status(token_api, token, "/v1/tenants") == 403


async def test_a_token_for_a_tenant_that_does_not_exist_finds_nothing_and_makes_nothing(
    token_api, issuer
):
    token = issuer.token(tenant_id="newcorp")
    client = await token_api.client(token)

    shown = await client.get("/v1/tenants/newcorp")
    asked = await client.post("/v1/tenants/newcorp/query", json={"query": "select 1"})
    operated = await client.post("/v1/tenants/newcorp/operations/list_users", json={})

    assert [shown.status_code, asked.status_code, operated.status_code] == [404, 404, 404]
    assert (await token_api.admin.get("/v1/tenants/newcorp")).status_code == 404


async def test_a_token_that_is_not_right_in_everything_is_refused(token_api, issuer, subtests):
    now = int(time.time())
    stranger = ec.generate_private_key(ec.SECP256R1())
    good = issuer.token()
    header, payload, signature = good.split(".")
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "tenant_id": "acme"}
    public = (
        issuer.keys["rsa"][1]
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    bad = {
        "expired": issuer.token(exp=now - 60),
        "without expiry": issuer.token(exp=None),
        "not valid yet": issuer.token(nbf=now + 600),
        "another issuer": issuer.token(iss="https://evil.test"),
        "without issuer": issuer.token(iss=None),
        "another audience": issuer.token(aud="others"),
        "without audience": issuer.token(aud=None),
        "without tenant": issuer.token(tenant_id=None),
        "tenant is a number": issuer.token(tenant_id=5),
        "tenant is no name": issuer.token(tenant_id="No!"),
        "tenant is a list": issuer.token(tenant_id=["acme"]),
        "unknown key": issuer.token(header={"kid": "other"}),
        "key is no text": issuer.token(header={"kid": "other", "crit": ["x"], "x": 1}),
        "another key of the set": jwt.encode(claims, stranger, "ES256", headers={"kid": "ec"}),
        "symmetric": jwt.encode(claims, "x" * 64, "HS256", headers={"kid": "rsa"}),
        "symmetric with the public key": _signed_by_hand(claims, public),
        "no signature": jwt.encode(claims, None, "none", headers={"kid": "rsa"}),
        "signature removed": f"{header}.{payload}.",
        "signature changed": f"{header}.{payload}.{signature[:-4]}AAAA",
        "another algorithm of the list": jwt.encode(
            claims, stranger, "ES256", headers={"kid": "rsa"}
        ),
        "key of its own": jwt.encode(
            claims,
            stranger,
            "ES256",
            headers={"jwk": ECAlgorithm.to_jwk(stranger.public_key(), as_dict=True)},
        ),
        "far too large an expiry": issuer.token(exp=10**400),
    }
    assert await _status(token_api, good) == 200
    for name, token in bad.items():
        with subtests.test(name):
            assert await _status(token_api, token) == 401


async def test_a_key_that_is_published_later_is_found(token_api, issuer):
    assert await _status(token_api, issuer.token()) == 200
    issuer.keys["new"] = ("ES256", ec.generate_private_key(ec.SECP256R1()))
    try:
        assert await _status(token_api, issuer.token("new")) == 401
        issuer.publish()
        assert await _status(token_api, issuer.token("new")) == 200
    finally:
        del issuer.keys["new"]


async def test_symmetric_keys_in_the_set_are_not_used(token_api, issuer):
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"
    issuer.publish(more=[{"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"}])
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "tenant_id": "acme"}
    token = jwt.encode(claims, jwt.utils.base64url_decode(secret), "HS256", headers={"kid": "oct"})

    assert await _status(token_api, token) == 401


async def test_while_the_keys_cannot_be_read_tokens_are_unavailable_and_api_keys_work(
    make_api, tmp_path, issuer
):
    api = await make_api(
        jwt_jwks=str(tmp_path / "missing.json"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE
    )
    tenant = await api.tenant("acme", "row")

    answer = await api.anonymous.get(
        "/v1/tenants/acme", headers={"Authorization": f"Bearer {issuer.token()}"}
    )

    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert answer.headers["retry-after"]
    assert (await tenant.get("/v1/tenants/acme")).status_code == 200


async def test_without_keys_for_tokens_a_token_is_no_credential(api: HttpApi, issuer):
    assert await _status(api, issuer.token()) == 401
