"""What of a runtime can be reached or read from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.serve.check import Result
from tenancy.data_isolation.serve.exposure import (
    check_home,
    check_redis,
    check_secrets,
    listening_checks,
)


def chmod(remedy: str | None) -> None:
    """Do what a remedy says: `chmod go-rwx A B` or `chmod go-w A`."""
    assert remedy is not None
    command, bits, *paths = remedy.split()
    assert command == "chmod"
    mask = {"go-rwx": 0o077, "go-w": 0o022}[bits]
    for path in map(Path, paths):
        path.chmod(path.stat().st_mode & 0o777 & ~mask)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    for name in ("secrets/postgres", "run/actors.json", "log/daemon.log", "doctor/main.json"):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o600)
        path.parent.chmod(0o700)
    for name in ("admin.key", "master.key"):
        (made / name).write_text("")
        (made / name).chmod(0o600)
    made.chmod(0o700)
    return made


def results(home: Path) -> list[Result]:
    return [check.result for check in (*check_home(home), *check_secrets(home))]


def test_a_home_that_is_closed_has_no_finding(home: Path):
    assert results(home) == [Result.OK, Result.OK]
    (home / "log" / "daemon.log").chmod(0o644)  # Nobody else gets into its directory.
    assert results(home) == [Result.OK, Result.OK]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (".", 0o770),
        ("master.key", 0o640),
        ("admin.key", 0o604),
        ("secrets/postgres", 0o644),
        ("run/actors.json", 0o666),
        ("doctor/main.json", 0o640),
        ("secrets", 0o777),
    ],
)
def test_what_others_can_reach_is_told_and_mended_by_the_remedy(home: Path, name: str, mode: int):
    (home / name).chmod(mode)

    (bad,) = [
        check
        for check in (*check_home(home), *check_secrets(home))
        if check.result is not Result.OK
    ]

    assert bad.result is Result.FAIL
    assert str((home / name).resolve()) in bad.detail
    chmod(bad.remedy)
    assert results(home) == [Result.OK, Result.OK]


def test_logs_in_an_open_directory_are_told(home: Path):
    (home / "log" / "daemon.log").chmod(0o644)
    (home / "log").chmod(0o755)
    (check,) = check_secrets(home)
    assert check.result is Result.FAIL
    chmod(check.remedy)
    assert results(home) == [Result.OK, Result.OK]


def test_a_secret_that_leads_elsewhere_is_told(home: Path, tmp_path: Path):
    elsewhere = tmp_path / "key"
    elsewhere.write_text("")
    elsewhere.chmod(0o600)
    (home / "master.key").unlink()
    (home / "master.key").symlink_to(elsewhere)
    (check,) = check_secrets(home)
    assert check.result is Result.WARN
    assert "leads elsewhere" in check.detail


def test_sockets_beyond_the_machine_are_told_one_by_one():
    own = [("postgres", "127.0.0.1", 5432), ("haproxy", "::1", 80), ("gcs", "127.0.0.1", 6379)]
    url = "http://tenancy.example"
    (check,) = listening_checks(own, url)
    assert (check.result, check.detail[:2]) == (Result.OK, "3 ")

    first, second = listening_checks([*own, ("haproxy", "0.0.0.0", 80), ("ray", "::", 8265)], url)

    assert {first.result, second.result} == {Result.WARN}
    assert "haproxy listens on 0.0.0.0 port 80" in first.detail
    assert "TENANCY_HTTP_HOST=127.0.0.1" in str(first.remedy)
    assert "ray listens on :: port 8265" in second.detail
    assert "firewall" in str(second.remedy)


def test_an_endpoint_with_https_needs_no_proxy_and_hides_no_other_socket():
    endpoint = ("haproxy", "0.0.0.0", 8443)
    url = "https://tenancy.example:8443"

    (fine,) = listening_checks([endpoint, ("gcs", "127.0.0.1", 6379)], url)
    assert (fine.result, fine.remedy) == (Result.OK, None)
    assert "only HTTPS, on 0.0.0.0 port 8443" in fine.detail

    # The same socket without TLS is told, and so is another one beside HTTPS.
    (plain,) = listening_checks([endpoint], "http://tenancy.example:8443")
    assert plain.result is Result.WARN
    assert "TENANCY_HTTP_TLS_CERTIFICATE" in str(plain.remedy)
    (other,) = listening_checks([endpoint, ("ray", "0.0.0.0", 8265)], url)
    assert other.result is Result.WARN
    assert "ray listens on 0.0.0.0 port 8265" in other.detail
    (usual,) = listening_checks([("haproxy", "::", 443)], "https://tenancy.example")
    assert usual.result is Result.OK


@pytest.mark.parametrize(
    ("url", "result"),
    [
        ("redis://127.0.0.1:6379", Result.OK),
        ("redis://localhost", Result.OK),
        ("unix:///run/redis.sock", Result.OK),
        ("rediss://cache.example:6380", Result.OK),
        ("redis://:secret@cache.example:6379", Result.WARN),
        ("redis://10.0.0.9", Result.WARN),
    ],
)
def test_redis_over_the_network_wants_tls(url: str, result: Result):
    (check,) = check_redis(url)

    assert check.result is result
    assert "secret" not in f"{check.detail} {check.remedy}"


def test_loopback_is_this_machine_in_every_spelling():
    assert all(map(is_local, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_local, ("::", "0.0.0.0", "10.0.0.1", "example.com", "")))
