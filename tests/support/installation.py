"""One running installation that the tests of what outsiders can do share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.runtime import Runtime, ended
from support.token_issuer import AUDIENCE, ISSUER, TokenIssuer

_USERS = "create table users (id bigint primary key, email text not null unique, amount numeric);\n"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A runtime with two HTTP processes, three tenants, and an issuer of tokens."""

    runtime: Runtime
    issuer: TokenIssuer
    status: dict[str, Any]
    keys: dict[str, str]

    @property
    def url(self) -> httpx.URL:
        return httpx.URL(self.status["url"])

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the endpoint."""
        assert self.url.port is not None
        return self.url.host, self.url.port

    def client(self, credential: str | None, **options: Any) -> httpx.Client:
        """A client that sends this credential."""
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return httpx.Client(
            base_url=self.url, headers=headers, trust_env=False, timeout=60, **options
        )


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("installation")
    issuer = TokenIssuer(directory / "jwks.json")
    runtime = Runtime(
        directory / "home",
        TENANCY_HTTP_REPLICAS="2",
        TENANCY_JWT_JWKS=str(issuer.path),
        TENANCY_JWT_ISSUER=ISSUER,
        TENANCY_JWT_AUDIENCE=AUDIENCE,
        TENANCY_REQUEST_READ_TIMEOUT_S="1",
        TENANCY_STREAM_WRITE_TIMEOUT_S="1",
        # So that a tenant is proposed to be moved after some seconds of many requests.
        TENANCY_LOAD_WINDOW_S="1",
        TENANCY_PROMOTE_WINDOWS="2",
        TENANCY_SCHEMA_PROMOTE_OPERATIONS_PER_S="20",
        TENANCY_SCHEMA_DEMOTE_OPERATIONS_PER_S="5",
    )
    with ended(runtime):
        runtime.run("up")
        status = runtime.json("status")
        keys = {"admin": Path(status["admin_key_file"]).read_text().strip()}
        found = Installation(runtime=runtime, issuer=issuer, status=status, keys=keys)
        with found.client(keys["admin"]) as admin:
            _make(admin, "/v1/schema/migrations", name="users", sql=_USERS)
            for name, level in (("acme", "row"), ("globex", "schema"), ("initech", "row")):
                _make(admin, "/v1/tenants", tenant_id=name, isolation_level=level)
                made = _make(admin, "/v1/keys", scope="tenant", tenant_id=name)
                keys[name] = made["key"]
        yield found


def _make(client: httpx.Client, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()
