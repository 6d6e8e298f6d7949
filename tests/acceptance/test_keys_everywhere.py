"""API keys while several processes answer HTTP: what is revoked, rotated or expired is so for all.

What is promised is a second. That is held against the clock of the answers: a good answer that
began later than a second after the change is a failure, however slow the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from support.installation import Installation
from support.listening import listening

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)

_PROMISED_S = 1.0
_GIVE_UP_S = 30.0


def _replicas(installation: Installation) -> list[str]:
    """Where each HTTP process listens behind HAProxy: those that answer as the endpoint does."""
    found = []
    for item in listening(installation.runtime.tree()):
        if item.process != "ray::ServeReplica:tenancy:http":
            continue
        url = f"http://127.0.0.1:{item.port}"
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok"}:
                found.append(url)
        except httpx.HTTPError:
            continue  # One of its servers that speak gRPC.
    assert len(found) == 2
    return found


def _last_good(urls: list[str], key: str, changed_at: float) -> float:
    """When the last request began that a process took the key for, after all refuse it."""
    last = changed_at
    headers = {"Authorization": f"Bearer {key}"}
    waiting = list(urls)
    deadline = time.monotonic() + _GIVE_UP_S
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        while waiting:
            assert time.monotonic() < deadline, f"still good at {waiting}"
            for url in list(waiting):
                began = time.monotonic()
                status = client.get(f"{url}/v1/tenants/acme").status_code
                if status == 200:
                    last = max(last, began)
                else:
                    assert status == 401
                    waiting.remove(url)
    return last


@pytest.mark.parametrize("how", ["revoke", "rotate", "expire"])
def test_a_key_that_is_good_no_more_is_refused_by_every_process_within_a_second(
    installation: Installation, how: str
):
    urls = _replicas(installation)
    with installation.client(installation.keys["admin"]) as admin:
        body = {"scope": "tenant", "tenant_id": "acme"}
        if how == "expire":
            ends = datetime.now(UTC) + timedelta(seconds=3)
            body["expires_at"] = ends.isoformat()
        made = admin.post("/v1/keys", json=body).json()
        # Every process has it in its memory.
        headers = {"Authorization": f"Bearer {made['key']}"}
        for url in urls:
            answer = httpx.get(f"{url}/v1/tenants/acme", headers=headers, trust_env=False)
            assert answer.status_code == 200
        path = f"/v1/keys/{made['key_id']}"
        change: dict[str, Callable[[], httpx.Response]] = {
            "revoke": lambda: admin.delete(path),
            "rotate": lambda: admin.post(f"{path}/rotate", json={}),
        }
        if how == "expire":
            changed_at = time.monotonic() + (ends - datetime.now(UTC)).total_seconds()
        else:
            done = change[how]()
            assert done.status_code in (200, 204)
            changed_at = time.monotonic()

        last = _last_good(urls, made["key"], changed_at)

        # An expiry needs no news of it, so that there is nothing to wait for.
        assert last - changed_at <= (0.05 if how == "expire" else _PROMISED_S)
        if how == "rotate":
            fresh = {"Authorization": f"Bearer {done.json()['key']}"}
            for url in urls:
                found = httpx.get(f"{url}/v1/tenants/acme", headers=fresh, trust_env=False)
                assert found.status_code == 200
