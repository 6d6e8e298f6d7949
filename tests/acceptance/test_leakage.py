"""A10: no secret and nothing of a tenant in logs, errors, figures, processes or Ray's own store.

Texts that stand nowhere else are planted as keys, passwords, parameters, rows and SQL, errors of
every kind are provoked, and then everything that can be reached is searched for them.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import psutil
import pytest
from support.installation import Installation
from support.leaks import files_below, in_files, in_processes, in_text
from support.listening import listening

from tenancy.data_isolation.core.crypto import parse_master_key, role_password
from tenancy.data_isolation.core.identifiers import RoleName

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)

#: What is secret itself, and so may hold secrets; for its owner only.
_SECRET_FILES = {
    *("admin.key", "master.key", "run/state.json", "run/actors.json"),
    *("redis/redis.conf", "redis/server.json", "postgres/server.json"),
}
_SECRET_DIRECTORIES = ("secrets/", "postgres/data/", "redis/data/")
_RAY_STORE = """
    import sys
    import ray
    from ray._raylet import GcsClient
    ray.init(address=sys.argv[1], namespace="tenancy", log_to_driver=False, logging_level="ERROR")
    print(ray.util.list_named_actors(all_namespaces=True))
    print(ray._private.state.actors())
    client = GcsClient(address=sys.argv[1])
    print(client.get_all_job_info(timeout=30))
    for namespace in (None, b"serve", b"fun", b"job", b"session", b"metrics", b"dashboard"):
        for key in client.internal_kv_keys(b"", namespace, timeout=30):
            value = client.internal_kv_get(key, namespace, timeout=30)
            sys.stdout.flush()
            sys.stdout.buffer.write(key + b" = " + (value or b"") + b"\\n")
    ray.shutdown()
"""


class Canaries:
    """The texts, and the requests that make errors with them."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.data = {
            name: f"canary-{name}-{secrets.token_hex(6)}"
            for name in ("parameter", "row", "statement", "body", "key", "label", "idempotency")
        }
        self.secrets = self._secrets()
        self.answers: list[httpx.Response] = []

    def _secrets(self) -> dict[str, str]:
        """Everything secret that the installation has."""
        found = installation_secrets(self.installation)
        issuer = self.installation.issuer
        for name, token in (
            ("token", issuer.token(tenant_id="acme")),
            ("expired token", issuer.token(tenant_id="acme", exp=1)),
        ):
            found[name] = token
            found[f"{name}'s signature"] = token.rpartition(".")[2]
        return found

    def provoke(self) -> None:
        """Use every credential, and make an error of every kind with every text."""
        data, keys = self.data, self.installation.keys
        query = "/v1/tenants/acme/query"
        with self.installation.client(keys["acme"]) as client:
            insert = "insert into users (id, email) values (700, $1)"
            self._send(client, query, {"query": insert, "params": [data["row"]]}, 200)
            for sql, params, status in self._statements():
                self._send(client, query, {"query": sql, "params": params}, status)
            self._send(client, query, {"query": data["statement"], "x": data["body"]}, 422)
            self._send(client, query, f'{{"query": "{data["body"]}', 422)
            # A process learns of a new table within seconds, so it may not know this one yet.
            operations = "/v1/tenants/acme/operations"
            self._send(client, f"{operations}/create_users", {"id": data["body"]}, 400, 404)
            self._send(client, f"{operations}/nothing", {"x": data["body"]}, 404)
            slow = "select count(*) from generate_series(1, 1000000000) as g(x) where x::text = $1"
            self._send(
                client, query, {"query": slow, "params": [data["parameter"]]}, 504, Prefer="wait=1"
            )
            batch = [{"query": f"select '{data['statement']}'::int"}, {"query": "select 1"}]
            self._send(client, "/v1/tenants/acme/batch", {"operations": batch, "atomic": True}, 400)
            again = {"query": "select 1", "params": []}
            key = {"Idempotency-Key": data["idempotency"]}
            self._send(client, query, again, 200, **key)
        for name in ("token", "expired token"):
            with self.installation.client(self.secrets[name]) as client:
                self.answers.append(client.get("/v1/tenants/acme"))
        self._administer()

    def _statements(self) -> Iterator[tuple[str, list[Any], int]]:
        """Statements that fail, with the texts in every part."""
        text, value = self.data["statement"], self.data["parameter"]
        yield f"selec '{text}'", [], 400
        yield f'select "{text}" from users', [], 400
        yield f"select '{text}'::int", [], 400
        yield f"/* {text} */ select * from nothing", [], 400
        yield f"do $$ begin raise '{text}'; end $$", [], 403
        yield f"select pg_read_file('{text}')", [], 403
        yield "select $1::text::int", [value], 400
        yield "insert into users (id, email) values (700, $1)", [value], 409
        yield "insert into users (id, email) values (701, $1)", [self.data["row"]], 409
        yield "insert into users (id, email, amount) values (702, $1, $2)", [value, value], 400
        yield "select $1::text", [value, value], 400
        yield "select 1/0 from users where email = $1", [self.data["row"]], 400

    def _administer(self) -> None:
        data = self.data
        with self.installation.client(self.installation.keys["admin"]) as admin:
            made = admin.post("/v1/keys", json={"scope": "admin", "label": data["label"]}).json()
            self.secrets["revoked key"] = made["key"].split("_", 2)[2]
            rotated = admin.post(f"/v1/keys/{made['key_id']}/rotate", json={}).json()
            self.secrets["rotated key"] = rotated["key"].split("_", 2)[2]
            admin.delete(f"/v1/keys/{made['key_id']}")
            self._send(
                admin,
                "/v1/schema/migrations",
                {
                    "name": "9000_bad",
                    "sql": f"create table x (y int default '{data['statement']}')",
                },
                422,
            )
        with self.installation.client(f"tk_0123456789abcdef_{data['key']}") as stranger:
            self.answers.append(stranger.get("/v1/tenants/acme"))
        asyncio.run(self._break_connections())

    async def _break_connections(self) -> None:
        """End the sessions of the runtime while one of its statements runs."""
        connection = await asyncpg.connect(self.installation.status["postgres_dsn"])
        mark = secrets.randbelow(10**6) + 10**12
        running = (
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where query like $1 and pid <> pg_backend_pid()"
        )
        body = {
            "query": f"select count(*) from generate_series(1, {mark}) as g(x) where x::text = $1",
            "params": [self.data["parameter"]],
        }
        try:
            async with (
                asyncio.timeout(40),
                httpx.AsyncClient(
                    base_url=self.installation.url,
                    headers={"Authorization": f"Bearer {self.installation.keys['acme']}"},
                    trust_env=False,
                    timeout=60,
                ) as client,
            ):
                asked = asyncio.create_task(client.post("/v1/tenants/acme/query", json=body))
                while not await connection.fetchval(running, f"%{mark}%"):
                    await asyncio.sleep(0)
                self.answers.append(await asked)
        finally:
            await connection.close()
        assert self.answers[-1].status_code >= 500

    def _send(
        self, client: httpx.Client, path: str, body: Any, *statuses: int, **headers: str
    ) -> None:
        content = body if isinstance(body, str) else json.dumps(body)
        answer = client.post(
            path, content=content, headers={"Content-Type": "application/json"} | headers
        )
        assert answer.status_code in statuses, (content[:200], answer.text)
        self.answers.append(answer)


def installation_secrets(installation: Installation) -> dict[str, str]:
    """Keys, passwords and tokens of an installation."""
    home, status = installation.runtime.home, installation.status
    master = (home / "master.key").read_text().strip()
    found = {
        "master key": master,
        "ray token": Path(status["ray_auth_token_file"]).read_text().strip(),
        "postgres password": urlsplit(status["postgres_dsn"]).password or "",
        "redis password": urlsplit(status["redis_url"]).password or "",
    }
    for name, key in installation.keys.items():
        found[f"key of {name}"] = key.split("_", 2)[2]
    for role in ("tenancy_rows", "tenancy_control", "tenancy_hybrid"):
        password = role_password(parse_master_key(master), "main", RoleName(role))
        found[f"password of {role}"] = password
    assert all(len(text) >= 16 for text in found.values()), found.keys()
    return found


@pytest.fixture(scope="module")
def canaries(installation: Installation) -> Canaries:
    made = Canaries(installation)
    made.provoke()
    return made


def _ray_directory(installation: Installation) -> Path:
    """Where Ray and HAProxy keep their files: HAProxy's configuration is an argument of it."""
    for process in installation.runtime.tree():
        if process.name() == "haproxy":
            arguments = process.cmdline()
            path = Path(arguments[arguments.index("-f") + 1])
            return next(parent for parent in path.parents if parent.parent == Path("/tmp"))
    raise AssertionError("no HAProxy")


def test_logs_and_files_hold_nothing_of_it(installation: Installation, canaries: Canaries):
    home, hidden = installation.runtime.home, canaries.secrets | canaries.data
    paths = [
        path
        for path in files_below(home)
        if (name := str(path.relative_to(home))) not in _SECRET_FILES
        and not name.startswith(_SECRET_DIRECTORIES)
    ]
    ray = list(files_below(_ray_directory(installation)))
    assert {"daemon.log", "cluster.log"} <= {path.name for path in paths}
    assert any("postgres" in str(path) and path.suffix == ".log" for path in paths)
    assert any(path.name == "raylet.out" for path in ray)
    assert any("serve" in str(path) for path in ray)

    assert list(in_files(paths + ray, hidden)) == []

    # The control: one line of a log, and the secret files themselves.
    planted = home / "log" / "planted.log"
    planted.write_text(f"password={hidden['postgres password']} for {hidden['row']}\n")
    try:
        assert {leak.name for leak in in_files([planted], hidden)} == {"postgres password", "row"}
    finally:
        planted.unlink()
    secret = [home / name for name in _SECRET_FILES if (home / name).exists()]
    named = {leak.name for leak in in_files(secret, canaries.secrets)}
    assert {"master key", "postgres password", "redis password", "key of admin"} <= named
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}


def test_processes_show_nothing_of_it(installation: Installation, canaries: Canaries):
    hidden = canaries.secrets | canaries.data | {"tenant": "globex"}
    tree = installation.runtime.tree()
    assert len(tree) > 15

    assert list(in_processes(tree, hidden)) == []

    # The control: a process that has one as an argument, and another one in its environment.
    shown = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", hidden["row"]],
        env=os.environ | {"PGPASSWORD": hidden["postgres password"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with shown:
        assert shown.stdout is not None
        shown.stdout.readline()  # From now on it is the program, and not yet a copy of this one.
        found = {leak.name for leak in in_processes([psutil.Process(shown.pid)], hidden)}
        shown.kill()
    assert found == {"row", "postgres password"}


def test_errors_and_figures_hold_nothing_of_it(installation: Installation, canaries: Canaries):
    errors = [answer for answer in canaries.answers if answer.status_code >= 400]
    assert {400, 401, 403, 404, 409, 422, 504} <= {answer.status_code for answer in errors}
    # Whoever asked may be told what it sent itself; rows, keys and passwords are in no error.
    own = ("statement", "body", "parameter")
    hidden = canaries.secrets | {k: v for k, v in canaries.data.items() if k not in own}
    for answer in errors:
        told = answer.content + repr(answer.headers.raw).encode()
        assert list(in_text(str(answer.request.url), told, hidden)) == [], answer.text
    names = {"tenant": "globex", "another": "initech"}
    seen = 0
    for item in listening(installation.runtime.tree()):
        try:
            found = httpx.get(f"http://127.0.0.1:{item.port}/metrics", trust_env=False, timeout=5)
        except httpx.HTTPError:
            continue
        if found.status_code == 200:
            seen += b"tenancy_http_requests_total" in found.content
            told = canaries.secrets | canaries.data | names
            assert list(in_text(f"{item.process}:{item.port}", found.content, told)) == []
    assert seen >= 3  # Two processes and HAProxy in front of them.


def test_rays_own_store_holds_nothing_of_it(installation: Installation, canaries: Canaries):
    """Names and arguments of actors, environments of jobs, and the state that Serve keeps."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_RAY_STORE), installation.status["ray_address"]],
        env=kept
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": installation.status["ray_auth_token_file"],
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert told.returncode == 0, told.stderr.decode()[-2_000:]
    # What is known to be there was read: actors, and the arguments of the deployment.
    for known in (b"tenancy-shared-default-0", b"TenantActorProcess", b"actors.json"):
        assert known in told.stdout

    hidden = canaries.secrets | canaries.data | {"tenant": "globex"}
    assert list(in_text("Ray's store", told.stdout, hidden)) == []
