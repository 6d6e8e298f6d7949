"""`tenancy up` to `tenancy down` as a user sees it: processes, ports, files, HTTP and commands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from support.listening import beyond_loopback, listening
from support.runtime import TENANCY, Runtime, ended

_SLOW_S = 600
_SLOW_QUERY = "select count(*) from generate_series(1, {}) as a"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with ended(Runtime(tmp_path / "home")) as found:
        yield found


def _until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.timeout(_SLOW_S)
def test_a_runtime_starts_serves_crashes_recovers_and_goes(runtime: Runtime, tmp_path: Path):
    up = runtime.json("up")
    assert up["state"] == "running"
    status = runtime.json("status")
    for name in ("url", "admin_key_file", "postgres_dsn", "redis_url", "ray_address"):
        assert status[name], name
    again = runtime.run("up")
    assert "already running" in again.stderr
    assert up["url"] in again.stdout
    _check_other_settings(runtime, up["url"])

    _check_exposure(runtime, status)
    _use_by_command(runtime, tmp_path)
    _use_by_http(runtime, status)
    asyncio.run(_leave_while_a_statement_runs(status))

    # A crash of the daemon takes all with it, and the next start finds the data.
    os.kill(runtime.daemon(), signal.SIGKILL)
    assert runtime.json("status", status=3)["state"] == "stopped"
    assert runtime.run("sql", "acme", "select 1", status=1).stderr.startswith("error: nothing runs")
    runtime.run("up")
    assert runtime.json("sql", "acme", "select id from users")["rows"] == [[1], [2]]
    assert runtime.json("doctor")["ok"] is True

    _drain(runtime)
    assert runtime.json("status", status=3)["state"] == "stopped"
    _until(lambda: not runtime.processes())
    for address in ("url", "postgres_dsn", "redis_url", "ray_address"):
        assert _is_free(httpx.URL(_with_scheme(status[address])).port or 0)
    assert not [path for path in Path("/tmp").glob("tn-*") if _is_of(path, runtime)]
    assert runtime.json("down") == {"state": "stopped", "was_running": False}


def _check_other_settings(runtime: Runtime, url: str) -> None:
    """Settings that a runtime which runs does not take are told, and no secret is."""
    usual = dict(runtime.env)
    port = str(httpx.URL(url).port)
    runtime.env.update(
        TENANCY_HTTP_PORT="8123",
        TENANCY_FREE_LOCKS_MAX="7",
        TENANCY_POSTGRES_DSN="postgresql://u:hush@127.0.0.1:1/d",
    )
    refused = runtime.run("up", status=1)
    assert "TENANCY_HTTP_PORT is 0 there, and 8123 here" in refused.stderr
    assert "TENANCY_FREE_LOCKS_MAX is 500 there, and 7 here" in refused.stderr
    assert "TENANCY_POSTGRES_DSN is not set there, and is here" in refused.stderr
    assert "hint: `tenancy down` and then `tenancy up`" in refused.stderr
    assert "hush" not in refused.stderr + refused.stdout + runtime.log()
    runtime.env.clear()
    # The port that it found is the one that it has.
    runtime.env.update(usual, TENANCY_HTTP_PORT=port)
    assert "already running" in runtime.run("up").stderr
    runtime.env.clear()
    runtime.env.update(usual)


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"tcp://{address}"


def _is_of(path: Path, runtime: Runtime) -> bool:
    digest = hashlib.sha256(os.fsencode(runtime.home)).hexdigest()
    return path.name.startswith(f"tn-{digest[:8]}-")


def _check_exposure(runtime: Runtime, status: dict[str, Any]) -> None:
    for name in (
        "admin.key",
        "master.key",
        "run/state.json",
        "run/actors.json",
        "run/settings.json",
    ):
        assert stat.S_IMODE((runtime.home / name).stat().st_mode) == 0o600, name
    assert beyond_loopback(listening(runtime.processes())) == []
    assert httpx.URL(status["url"]).host == "127.0.0.1"


def _use_by_command(runtime: Runtime, directory: Path) -> None:
    migrations = directory / "migrations"
    migrations.mkdir()
    (migrations / "0001_users.sql").write_text(
        "create table users (id bigint primary key, email text not null unique);"
    )
    assert runtime.json("schema", "apply", str(migrations))["version"] == 1
    assert runtime.json("schema", "apply", str(migrations))["version"] == 1
    assert runtime.json("schema", "status")["tables"] == ["users"]
    made = runtime.json("tenant", "create", "acme", "--level", "schema")
    assert (made["status"], made["isolation_level"]) == ("active", "schema")
    runtime.json("tenant", "create", "big", "--type", "enterprise", "--compliance", "hipaa")
    insert = "insert into users values ($1, $2) returning id"
    first = runtime.json("sql", "acme", insert, "--param", "1", "-p", "a@b")
    second = runtime.json("sql", "acme", insert, "--params", '[2, "c@d"]')
    assert (first["rows"], second["rows"]) == ([[1]], [[2]])
    assert "a@b" in runtime.run("sql", "acme", "select * from users order by id").stdout
    assert runtime.json("sql", "big", "select count(*) from users")["rows"] == [[0]]

    refused = runtime.run("sql", "acme", "select * from ghosts", status=1)
    assert refused.stderr.startswith("error: ")
    assert "42P01" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert runtime.run("tenant", "show", "ghost", status=1).stderr.startswith("error: ")

    listed = runtime.json("tenant", "list")["tenants"]
    assert [tenant["tenant_id"] for tenant in listed] == ["acme", "big"]
    runtime.json("tenant", "create", "brief")
    assert runtime.json("tenant", "suspend", "brief")["status"] == "suspended"
    assert runtime.json("tenant", "resume", "brief")["status"] == "active"
    runtime.run("tenant", "erase", "brief", status=2)
    assert runtime.json("tenant", "erase", "brief", "--yes")["erased"] is True
    runtime.run("tenant", "show", "brief", status=1)
    _export(runtime, directory)

    runtime.run("operation", "set", "newest", "select max(id) from users")
    assert [item["name"] for item in runtime.json("operation", "list")["operations"]] == ["newest"]
    runtime.run("operation", "remove", "newest")


def _export(runtime: Runtime, directory: Path) -> None:
    target = directory / "export"
    exported = runtime.run("tenant", "export", "acme", "--output", str(target))
    assert exported.stdout.splitlines()[-1] == f"exported to {target}"
    assert (target / "users.ndjson").read_text().splitlines() == [
        '{"id":1,"email":"a@b"}',
        '{"id":2,"email":"c@d"}',
    ]
    again = runtime.run("tenant", "export", "acme", "--output", str(target), status=1)
    assert "is not empty" in again.stderr
    other = runtime.json("tenant", "export", "big", "--output", str(directory / "big"))
    assert (other["tenant_id"], other["tables"][0]["rows"]) == ("big", 0)


def _use_by_http(runtime: Runtime, status: dict[str, Any]) -> None:
    key = runtime.json("key", "create", "--tenant", "acme", "--label", "test")
    with httpx.Client(base_url=status["url"], trust_env=False, timeout=60) as anonymous:
        assert anonymous.get("/healthz").json() == {"status": "ok"}
        ready = anonymous.get("/readyz")
        assert ready.json()["checks"]["actors"] == "ok"
        assert anonymous.get("/v1/tenants/acme").status_code == 401
        headers = {"Authorization": f"Bearer {key['key']}"}
        query, one = "/v1/tenants/acme/query", {"query": "select id from users where id = 1"}
        answer = anonymous.post(query, json=one, headers=headers)
        assert answer.json()["rows"] == [[1]]
        # What steers Ray Serve does not get there from outside.
        hurried = headers | {"X-Request-Timeout-Seconds": "0.000001"}
        assert anonymous.post(query, json=one, headers=hurried).status_code == 200
        other = anonymous.get("/v1/tenants/big", headers=headers)
        ghost = anonymous.get("/v1/tenants/ghost", headers=headers)
        assert other.status_code == ghost.status_code == 404
        assert other.content == ghost.content
        large = anonymous.post(query, content=b"x" * (5 << 20), headers=headers)
        assert (large.status_code, large.headers["content-type"]) == (
            413,
            "application/problem+json",
        )
        limit = anonymous.post(
            query,
            json={"query": _SLOW_QUERY.format(10**12)},
            headers=headers | {"Prefer": "wait=1"},
        )
        assert limit.status_code == 504
        runtime.run("key", "revoke", key["key_id"])
        _until(lambda: anonymous.post(query, json=one, headers=headers).status_code == 401, 10)
    place = httpx.URL(status["url"])
    with socket.create_connection((place.host, place.port), timeout=20) as raw:
        raw.sendall(b"this is not HTTP\r\n\r\n")
        answered = raw.makefile("rb").read()
    assert b" 400 " in answered
    with httpx.Client(base_url=status["url"], trust_env=False) as client:
        unknown = client.request("BREW", "/healthz")
    assert unknown.status_code == 405
    assert unknown.json()["type"] == "urn:tenancy:problem:method-not-allowed"


async def _leave_while_a_statement_runs(status: dict[str, Any]) -> None:
    """The statement of a client that has left does not run on."""
    query = _SLOW_QUERY.format(777_777_777_777)
    key = Path(status["admin_key_file"]).read_text().strip()
    connection = await asyncpg.connect(status["postgres_dsn"])
    running = (
        "select count(*) from pg_stat_activity where state = 'active' "
        "and query like '%777777777777%' and pid <> pg_backend_pid()"
    )
    try:
        async with (
            asyncio.timeout(40),
            httpx.AsyncClient(base_url=status["url"], trust_env=False, timeout=60) as client,
        ):
            request = asyncio.create_task(
                client.post(
                    "/v1/tenants/acme/query",
                    json={"query": query},
                    headers={"Authorization": f"Bearer {key}"},
                )
            )
            while not await connection.fetchval(running):
                await asyncio.sleep(0)
            request.cancel()
            while await connection.fetchval(running):
                await asyncio.sleep(0)
    finally:
        await connection.close()


def _drain(runtime: Runtime) -> None:
    """A request that is in work when everything is told to end may end first."""
    slow = subprocess.Popen(
        [TENANCY, "sql", "acme", _SLOW_QUERY.format(20_000_000), "--json"],
        env=runtime.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        dsn = runtime.json("status")["postgres_dsn"]
        asyncio.run(_until_a_statement_runs(dsn, "%20000000%"))
        runtime.run("down")
        output, errors = slow.communicate(timeout=60)
    finally:
        slow.kill()
    assert slow.returncode == 0, errors
    assert json.loads(output)["rows"] == [[20_000_000]]


async def _until_a_statement_runs(dsn: str, pattern: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(40):
            while not await connection.fetchval(
                "select count(*) from pg_stat_activity where state = 'active' and query like $1 "
                "and pid <> pg_backend_pid()",
                pattern,
            ):
                await asyncio.sleep(0)
    finally:
        await connection.close()


def test_when_the_port_is_taken_nothing_is_left_running(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ended(Runtime(tmp_path / "home", TENANCY_HTTP_PORT=str(port))) as runtime:
            refused = runtime.run("up", status=1)

            assert str(port) in refused.stderr
            assert "TENANCY_HTTP_PORT" in refused.stderr
            assert refused.stderr.splitlines()[-2].startswith("error: ")
            assert runtime.processes() == []
            stopped = runtime.json("status", status=3)
            assert str(port) in stopped["error"]


@pytest.mark.timeout(_SLOW_S)
def test_a_start_that_is_interrupted_leaves_nothing_running(runtime: Runtime):
    up = subprocess.Popen(
        [TENANCY, "up"],
        env=runtime.env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a script has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert up.stderr is not None
    for line in up.stderr:
        if "starting Ray" in line:
            break
    up.send_signal(signal.SIGINT)
    _, errors = up.communicate(timeout=120)

    assert up.returncode == 130, errors
    _until(lambda: not runtime.processes())
    assert runtime.json("status", status=3)["state"] == "stopped"


@pytest.mark.timeout(_SLOW_S)
def test_settings_that_are_wrong_are_told_at_once_and_leave_nothing(tmp_path: Path):
    for name, value in (
        ("TENANCY_STATEMENT_TIMEOUT_MS", "soon"),
        ("TENANCY_JWT_ISSUER", "https://id.example"),
        ("TENANCY_REDIS_URL", "redis://127.0.0.1:1/0"),
    ):
        with ended(Runtime(tmp_path / "home", **{name: value})) as runtime:
            refused = runtime.run("up", status=1)

            assert name.rpartition("_")[0] in refused.stderr
            assert runtime.processes() == []
