"""`tenancy key`: making, rotating and revoking API keys at the command line."""

from __future__ import annotations

import stat

from support.running_api import RunningApi


async def _status(running: RunningApi, key: str) -> int:
    client = await running.api.client(key)
    return (await client.get("/v1/tenants/acme")).status_code


async def test_a_key_is_made_rotated_listed_and_revoked(running: RunningApi):
    await running.api.tenant("acme", "row")
    made = (await running.run("key", "create", "--tenant", "acme", "--json")).json()
    assert await _status(running, made["key"]) == 200

    overlapping = await running.run("key", "rotate", made["key_id"], "--overlap", "60")
    second = overlapping.out.strip()
    during = [await _status(running, key) for key in (made["key"], second)]
    third = (await running.run("key", "rotate", made["key_id"], "--json")).json()["key"]
    after = [await _status(running, key) for key in (made["key"], second, third)]

    assert made["key_id"] in overlapping.err
    assert (during, after) == ([200, 200], [401, 401, 200])
    listed = await running.run("key", "list", "--tenant", "acme", "--json")
    mine = next(item for item in listed.json()["keys"] if item["key_id"] == made["key_id"])
    assert mine["rotated_at"] is not None
    assert mine["last_used_at"] is not None
    for secret in (made["key"], second, third):
        assert secret.split("_", 2)[2] not in listed.out
    await running.run("key", "revoke", made["key_id"])
    assert await _status(running, third) == 401
    refused = await running.run("key", "rotate", made["key_id"], status=1)
    assert "revoked" in refused.err
    assert refused.out == ""


async def test_who_rotates_the_key_of_the_command_itself_is_not_locked_out(running: RunningApi):
    file = running.home / "admin.key"
    old = file.read_text()
    key_id = old.split("_")[1]

    rotated = await running.run("key", "rotate", key_id)

    assert file.read_text() == rotated.out != old
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(file) in rotated.err
    assert (await running.run("key", "list", "--json")).json()["keys"]
    assert await _status(running, old.strip()) == 401
