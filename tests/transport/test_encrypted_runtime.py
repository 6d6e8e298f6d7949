"""A runtime as a whole with TLS everywhere: to PostgreSQL, to Redis, and to its clients.

Run by `make transport`. It needs PostgreSQL with TLS (`--postgres-bin`), and uses a Redis with TLS
when there is one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import Authority
from support.postgres import PostgresServer, postgres_running

from tenancy.data_isolation.engine.supervision import free_port

_TENANCY = Path(sys.executable).with_name("tenancy")
_SLOW_S = 400
#: Whoever comes without TLS, or without a certificate of the runtime's CA, does not get in.
_ACCESS = """
local   all all              scram-sha-256
hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
"""


@pytest.mark.timeout(_SLOW_S)
def test_a_runtime_speaks_tls_with_everybody(postgres_bin: Path, tmp_path: Path):
    authority = Authority(tmp_path)
    pair = authority.issue("server", "localhost", "127.0.0.1", "tenancy.example.com")
    ours = authority.issue("runtime")
    tls = (pair.certificate, pair.key, authority.certificate)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(postgres_running(postgres_bin, tls=tls, access=_ACCESS))
        settings = _settings(postgres, authority, tmp_path) | {
            "TENANCY_POSTGRES_SSLCERT": str(ours.certificate),
            "TENANCY_POSTGRES_SSLKEY": str(ours.key),
            "TENANCY_HTTP_TLS_CERTIFICATE": str(pair.certificate),
            "TENANCY_HTTP_TLS_KEY": str(pair.key),
            "TENANCY_HTTP_TLS_CA": str(authority.certificate),
        }
        settings |= stack.enter_context(_redis(authority, tmp_path))
        for name, told in (
            ("TENANCY_POSTGRES_SSLCERT", "sslcert and sslkey belong together"),
            ("TENANCY_HTTP_TLS_KEY", "TENANCY_HTTP_TLS_CERTIFICATE has nothing to act on"),
        ):
            without = {key: value for key, value in settings.items() if key != name}
            assert told in _run(without, "up", status=1).stderr
        up = json.loads(_run(settings, "up", "--json").stdout)
        try:
            _look(up, settings, authority)
        finally:
            _run(settings, "down")
        _search_for_keys(tmp_path, pair.key.read_text(), ours.key.read_text())


def _settings(server: PostgresServer, authority: Authority, home: Path) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TENANCY_")}
    return kept | {
        "TENANCY_HOME": str(home / "home"),
        "TENANCY_HTTP_PORT": "0",
        # On this machine, so that nothing would be encrypted if it were not asked for.
        "TENANCY_POSTGRES_DSN": server.admin_dsn,
        "TENANCY_POSTGRES_SSLMODE": "verify-full",
        "TENANCY_POSTGRES_SSLROOTCERT": str(authority.certificate),
    }


def _look(up: dict[str, Any], settings: dict[str, str], authority: Authority) -> None:
    assert up["url"].startswith("https://")
    for level in ("row", "schema", "database"):
        _run(settings, "tenant", "create", f"{level}-tenant", "--level", level)
        said = _run(settings, "sql", f"{level}-tenant", "select 7 as n", "--json")
        assert json.loads(said.stdout)["rows"] == [[7]]
    assert json.loads(_run(settings, "status", "--json").stdout)["state"] == "running"
    doctor = _run(settings, "doctor").stdout
    assert "https://" in doctor

    trusting = ssl.create_default_context(cafile=authority.certificate)
    key = {"Authorization": f"Bearer {Path(up['admin_key_file']).read_text().strip()}"}
    answer = httpx.get(f"{up['url']}/v1/tenants", headers=key, verify=trusting, trust_env=False)
    assert len(answer.json()["tenants"]) == 3
    assert "max-age=" in answer.headers["Strict-Transport-Security"]
    plain = up["url"].replace("https:", "http:")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{plain}/healthz", trust_env=False)


@contextlib.contextmanager
def _redis(authority: Authority, directory: Path) -> Iterator[dict[str, str]]:
    """A Redis with TLS, if there is one; the embedded one else."""
    program = shutil.which("redis-server")
    if program is None:
        yield {}
        return
    port = free_port()
    pair = authority.issue("redis", "127.0.0.1")
    process = subprocess.Popen(
        [
            program,
            *("--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", ""),
            *("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key)),
            *("--tls-ca-cert-file", str(authority.certificate), "--requirepass", "very-secret"),
        ],
        cwd=directory,
        stdout=subprocess.DEVNULL,
    )
    ours = authority.issue("redis-client")
    try:
        yield {
            "TENANCY_REDIS_URL": f"rediss://:very-secret@127.0.0.1:{port}/0",
            "TENANCY_REDIS_SSL_CA_CERTS": str(authority.certificate),
            "TENANCY_REDIS_SSL_CERTFILE": str(ours.certificate),
            "TENANCY_REDIS_SSL_KEYFILE": str(ours.key),
        }
    finally:
        process.terminate()
        process.wait()


def _search_for_keys(directory: Path, *keys: str) -> None:
    """No key is anywhere in what the runtime wrote."""
    secrets = [key.splitlines()[1] for key in keys]
    written = [path for path in (directory / "home").rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        text = path.read_bytes()
        assert not any(secret.encode() in text for secret in secrets), path


def _run(
    settings: dict[str, str], *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [_TENANCY, *arguments],
        env=settings,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SLOW_S,
        check=False,
    )
    assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done
