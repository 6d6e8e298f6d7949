"""Attacks by forged, stretched and confused JSON Web Tokens (A02 and A03 of the attack catalogue).

The attacker wants the tenant `globex`. Each case is a token together with a reader that lacks the
one check that the case is about: that reader is taken in, so the token is one that would work, and
the HTTP interface is not.
"""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from jwt.utils import base64url_decode, base64url_encode
from support.http_api import HttpApi
from support.token_issuer import AUDIENCE, ISSUER, TokenIssuer

_VICTIM = "globex"
_CANARY = "canary@globex.test"
_QUERY = {"query": "select email from users"}
_STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_OTHER_CURVE = ec.generate_private_key(ec.SECP256R1())

#: Reads a token with a check missing; the claims that it believes.
Reader = Callable[[str, TokenIssuer], dict[str, Any]]


def _claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 300, "tenant_id": _VICTIM} | changed
    return {name: value for name, value in claims.items() if value is not None}


def _by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token that libraries refuse to make. `secret` None = no signature."""
    message = ".".join(
        base64url_encode(json.dumps(part).encode()).decode() for part in (header, claims)
    )
    signature = b"" if secret is None else hmac.digest(secret, message.encode(), "sha256")
    return f"{message}.{base64url_encode(signature).decode()}"


def _pem(issuer: TokenIssuer) -> bytes:
    public = issuer.keys["rsa"][1].public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _der(issuer: TokenIssuer) -> bytes:
    public = issuer.keys["rsa"][1].public_key()
    return bytes(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# Readers that lack a check


def _no_signature_checked(token: str, _: TokenIssuer) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def _takes_key_as_secret(key: Callable[[TokenIssuer], bytes]) -> Reader:
    """Verifies with the one key it has, by whatever algorithm the token names."""

    def read(token: str, issuer: TokenIssuer) -> dict[str, Any]:
        message, _, signature = token.rpartition(".")
        expected = hmac.digest(key(issuer), message.encode(), "sha256")
        assert hmac.compare_digest(expected, base64url_decode(signature))
        claims: dict[str, Any] = json.loads(base64url_decode(message.partition(".")[2]))
        return claims

    return read


def _takes_key_of_token(token: str, _: TokenIssuer) -> dict[str, Any]:
    header = jwt.get_unverified_header(token)
    key = RSAAlgorithm.from_jwk(header["jwk"])
    found: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], audience=AUDIENCE)
    return found


def _takes_key_of_attacker(token: str, _: TokenIssuer) -> dict[str, Any]:
    """Has fetched the key from where the token says."""
    found: dict[str, Any] = jwt.decode(
        token, _STRANGER.public_key(), algorithms=["RS256"], audience=AUDIENCE
    )
    return found


def _checks_signature_alone(token: str, issuer: TokenIssuer) -> dict[str, Any]:
    algorithm, key = issuer.keys["rsa"]
    message, _, signature = token.rpartition(".")
    verifier = jwt.get_algorithm_by_name(algorithm)
    assert verifier.verify(message.encode(), key.public_key(), base64url_decode(signature))
    claims: dict[str, Any] = json.loads(base64url_decode(message.partition(".")[2]))
    return claims


def _takes_first_of_two(token: str, issuer: TokenIssuer) -> dict[str, Any]:
    _checks_signature_alone(token, issuer)
    pairs: list[tuple[str, Any]] = json.loads(
        base64url_decode(token.split(".")[1]), object_pairs_hook=list
    )
    return dict(reversed(pairs))


# Tokens


def _forged(header: dict[str, Any], secret: bytes | None = None, **changed: Any) -> str:
    return _by_hand({"typ": "JWT", "kid": "rsa"} | header, _claims(**changed), secret)


def _of_stranger(**header: Any) -> str:
    return jwt.encode(_claims(), _STRANGER, "RS256", headers={"kid": "rsa"} | header)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _twice(issuer: TokenIssuer) -> str:
    """`tenant_id` stands twice: the first is the victim, the last one the attacker's own."""
    text = _dumped(_claims())[:-1] + b', "tenant_id": "acme"}'
    return issuer.signed(_dumped({"alg": "RS256", "kid": "rsa"}), text)


def _algorithm_twice(issuer: TokenIssuer) -> str:
    return issuer.signed(b'{"alg": "none", "kid": "rsa", "alg": "RS256"}', _dumped(_claims()))


_NOW = int(time.time())
Build = Callable[[TokenIssuer], str]
_CASES: dict[str, tuple[Build, Reader]] = {
    **{
        f"A02-alg-{name}": (lambda _, name=name: _forged({"alg": name}), _no_signature_checked)
        for name in ("none", "None", "NONE", "nOnE", "")
    },
    "A02-alg-missing": (lambda _: _forged({}), _no_signature_checked),
    "A02-alg-is-no-text": (lambda _: _forged({"alg": ["RS256"]}), _no_signature_checked),
    "A02-hs256-with-public-key-pem": (
        lambda issuer: _forged({"alg": "HS256"}, _pem(issuer)),
        _takes_key_as_secret(_pem),
    ),
    "A02-hs256-with-public-key-der": (
        lambda issuer: _forged({"alg": "HS256"}, _der(issuer)),
        _takes_key_as_secret(_der),
    ),
    "A02-hs256-named-rs256": (
        lambda issuer: _forged({"alg": "RS256"}, _pem(issuer)),
        _takes_key_as_secret(_pem),
    ),
    "A02-hs256-with-empty-secret-of-kid-dev-null": (
        lambda _: _forged({"alg": "HS256", "kid": "../../../../dev/null"}, b""),
        _takes_key_as_secret(lambda _: b""),
    ),
    "A02-wrong-key": (lambda _: _of_stranger(), _takes_key_of_attacker),
    "A02-unknown-kid": (lambda _: _of_stranger(kid="other"), _takes_key_of_attacker),
    "A02-kid-of-another-key": (
        lambda i: i.token(tenant_id=_VICTIM, header={"kid": "ed"}),
        _checks_signature_alone,
    ),
    "A02-kid-is-sql": (lambda _: _of_stranger(kid="' or 1=1 --"), _takes_key_of_attacker),
    "A02-key-of-another-algorithm": (
        lambda _: jwt.encode(_claims(), _OTHER_CURVE, "ES256", headers={"kid": "rsa"}),
        _no_signature_checked,
    ),
    "A02-jwk-in-header": (
        lambda _: _of_stranger(jwk=RSAAlgorithm.to_jwk(_STRANGER.public_key(), as_dict=True)),
        _takes_key_of_token,
    ),
    "A02-signature-removed": (
        lambda i: i.token(tenant_id=_VICTIM).rpartition(".")[0] + ".",
        _no_signature_checked,
    ),
    "A02-claims-exchanged": (
        lambda i: _exchanged(i.token(tenant_id="acme"), _claims()),
        _no_signature_checked,
    ),
    **{
        f"A02-{name}": (
            lambda i, changed=changed: i.token(**({"tenant_id": _VICTIM} | changed)),
            _checks_signature_alone,
        )
        for name, changed in {
            "wrong-audience": {"aud": "others"},
            "audience-longer": {"aud": AUDIENCE + "x"},
            "audiences-of-others": {"aud": ["others", "more"]},
            "no-audience": {"aud": None},
            "audience-empty": {"aud": []},
            "wrong-issuer": {"iss": "https://evil.test"},
            "issuer-with-slash": {"iss": ISSUER + "/"},
            "no-issuer": {"iss": None},
            "expired": {"exp": _NOW - 3_600},
            "no-expiry": {"exp": None},
            "expiry-is-text": {"exp": "never"},
            "expiry-beyond-numbers": {"exp": 10**400},
            "not-yet-valid": {"nbf": _NOW + 3_600},
            "issued-in-the-future": {"iat": _NOW + 3_600},
        }.items()
    },
    "A02-issuer-in-list": (
        lambda i: i.signed(_dumped({"alg": "RS256", "kid": "rsa"}), _dumped(_claims(iss=[ISSUER]))),
        _checks_signature_alone,
    ),
    "A02-critical-header": (
        lambda i: i.token(tenant_id=_VICTIM, header={"crit": ["exp"], "exp": 1}),
        _checks_signature_alone,
    ),
    "A02-critical-b64": (
        lambda i: i.token(tenant_id=_VICTIM, header={"crit": ["b64"], "b64": True}),
        _checks_signature_alone,
    ),
    "A02-critical-empty": (
        lambda i: i.token(tenant_id=_VICTIM, header={"crit": []}),
        _checks_signature_alone,
    ),
    "A02-duplicate-claim": (_twice, _takes_first_of_two),
    "A02-duplicate-header": (_algorithm_twice, _checks_signature_alone),
    "A02-oversized": (
        lambda i: i.token(tenant_id=_VICTIM, padding="x" * 17_000),
        _checks_signature_alone,
    ),
    "A02-nested": (
        lambda i: i.signed(
            _dumped({"alg": "RS256", "kid": "rsa"}),
            _dumped(_claims())[:-1] + b', "x": ' + b"[" * 100 + b"]" * 100 + b"}",
        ),
        _checks_signature_alone,
    ),
}
#: Signed by the issuer itself, but they name no tenant that can be meant.
_NO_TENANT = {
    "missing": None,
    "a-number": 5,
    "a-list": [_VICTIM],
    "an-object": {"id": _VICTIM},
    "true": True,
    "empty": "",
    "upper-case": "GLOBEX",
    "with-a-blank": f" {_VICTIM}",
    "with-a-newline": f"{_VICTIM}\n",
    "with-a-zero-byte": f"{_VICTIM}\0",
    "a-path": f"acme/../{_VICTIM}",
    "a-pattern": "%",
    "look-alike": "glob\u0435x",
}


def _exchanged(token: str, claims: dict[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{base64url_encode(_dumped(claims)).decode()}.{signature}"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> TokenIssuer:
    return TokenIssuer(tmp_path_factory.mktemp("issuer") / "keys.json")


@pytest.fixture
async def attacked(make_api: Any, issuer: TokenIssuer) -> HttpApi:
    """An interface that takes the issuer's tokens, with the victim and the attacker's tenant."""
    api: HttpApi = await make_api(
        jwt_jwks=str(issuer.path), jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_leeway_s=1.0
    )
    await api.migrate()
    await api.tenant("acme", "row")
    victim = await api.tenant(_VICTIM, "row")
    insert = "insert into users (id, email) values (1, $1)"
    body = {"query": insert, "params": [_CANARY]}
    assert (await victim.post(f"/v1/tenants/{_VICTIM}/query", json=body)).status_code == 200
    return api


async def _asked(api: HttpApi, token: str, tenant: str = _VICTIM, **headers: str) -> Any:
    return await api.anonymous.post(
        f"/v1/tenants/{tenant}/query",
        json=_QUERY,
        headers={"Authorization": f"Bearer {token}"} | headers,
    )


async def test_a02_forged_and_stretched_tokens_are_refused(
    attacked: HttpApi, issuer: TokenIssuer, subtests: Any
):
    right = await _asked(attacked, issuer.token(tenant_id=_VICTIM))
    assert right.json()["rows"] == [[_CANARY]]
    answers = set()
    for name, (build, weak) in _CASES.items():
        with subtests.test(name):
            token = build(issuer)
            assert weak(token, issuer)["tenant_id"] == _VICTIM

            answer = await _asked(attacked, token)

            assert answer.status_code == 401
            assert _CANARY not in answer.text
            answers.add(answer.json()["type"])
    assert answers == {"urn:tenancy:problem:unauthenticated"}


async def test_a02_tokens_that_name_no_tenant_are_refused(
    attacked: HttpApi, issuer: TokenIssuer, subtests: Any
):
    for name, value in _NO_TENANT.items():
        with subtests.test(f"A02-tenant-{name}"):
            token = issuer.token(tenant_id=value)
            assert _checks_signature_alone(token, issuer).get("tenant_id") == value

            answer = await _asked(attacked, token)

            assert answer.status_code == 401
            assert _CANARY not in answer.text


async def test_a02_keys_are_never_fetched_from_where_a_token_says(
    attacked: HttpApi, issuer: TokenIssuer
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        for header in ({"jku": url}, {"x5u": url}, {"jku": url, "x5u": url, "kid": "new"}):
            token = _of_stranger(**header)
            assert _takes_key_of_attacker(token, issuer)["tenant_id"] == _VICTIM
            assert (await _asked(attacked, token)).status_code == 401
        # In a token that is right they have no effect.
        own = issuer.token(tenant_id=_VICTIM, header={"jku": url, "x5u": url})
        assert (await _asked(attacked, own)).status_code == 200
        with pytest.raises(BlockingIOError):
            listener.accept()
        # What would have been seen if there had been a connection.
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


async def test_a02_a_credential_counts_in_the_authorization_header_alone(
    attacked: HttpApi, issuer: TokenIssuer, subtests: Any
):
    token, own = issuer.token(tenant_id=_VICTIM), issuer.token(tenant_id="acme")
    path = f"/v1/tenants/{_VICTIM}/query"
    elsewhere: dict[str, dict[str, Any]] = {
        "cookie": {"headers": {"Cookie": f"access_token={token}; token={token}"}},
        "parameter": {"params": {"access_token": token}},
        "X-Authorization": {"headers": {"X-Authorization": f"Bearer {token}"}},
        "Proxy-Authorization": {"headers": {"Proxy-Authorization": f"Bearer {token}"}},
        "X-Forwarded-Access-Token": {"headers": {"X-Forwarded-Access-Token": token}},
        "Basic": {"headers": {"Authorization": f"Basic {token}"}},
    }
    for name, options in elsewhere.items():
        with subtests.test(name):
            answer = await attacked.anonymous.post(path, json=_QUERY, **options)

            assert answer.status_code in (401, 422)
            assert _CANARY not in answer.text
    for first, second in ((token, own), (own, token)):
        both = [("Authorization", f"Bearer {item}") for item in (first, second)]
        answer = await attacked.anonymous.post(path, json=_QUERY, headers=both)
        assert answer.status_code == 401
    joined = await _asked(attacked, f"{own}, Bearer {token}")
    assert joined.status_code == 401


async def test_a03_a_token_for_one_tenant_on_the_path_of_another_finds_nothing(
    attacked: HttpApi, issuer: TokenIssuer
):
    own = issuer.token(tenant_id="acme")

    other, ghost = await _asked(attacked, own), await _asked(attacked, own, "ghosty")
    names_both = await _asked(attacked, issuer.token(tenant_id="acme", tenant=_VICTIM))

    assert (await _asked(attacked, own, "acme")).json()["rows"] == []
    assert (await _asked(attacked, issuer.token(tenant_id=_VICTIM))).json()["rows"] == [[_CANARY]]
    for answer in (other, names_both):
        assert answer.status_code == 404
        assert (answer.content, answer.headers.raw) == (ghost.content, ghost.headers.raw)
