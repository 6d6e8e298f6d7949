"""What a line of pg_hba.conf, and the way to a server, may look like."""

from __future__ import annotations

from typing import Any

import pytest

from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.server_audit import (
    access_findings,
    session_findings,
    ssl_mode,
)


def of_line(**given: Any) -> list[Finding]:
    line: dict[str, Any] = {
        "file": "/etc/pg_hba.conf",
        "line": 7,
        "type": "host",
        "databases": ["all"],
        "users": ["all"],
        "address": "127.0.0.1",
        "netmask": "255.255.255.255",
        "method": "scram-sha-256",
        "error": None,
        "ssl": "on",
    }
    return list(access_findings("main", line | given))


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"address": "::1", "netmask": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
        {"address": "127.0.0.0", "netmask": "255.0.0.0"},
        {"type": "local", "address": None, "netmask": None},
        {"type": "hostssl", "address": "10.0.0.0", "netmask": "255.0.0.0"},
        {"method": "reject", "address": "all", "netmask": None},
        # Nobody of ours.
        {"users": ["postgres"], "method": "trust"},
        {"type": "local", "users": ["postgres"], "method": "peer"},
        {"databases": ["replication"], "method": "trust"},
    ],
)
def test_lines_that_are_as_they_should_be(line: dict[str, Any]):
    assert of_line(**line) == []


@pytest.mark.parametrize(
    ("line", "severity", "words"),
    [
        ({"method": "trust"}, Severity.WARNING, "without a password"),
        (
            {"method": "trust", "type": "hostssl", "address": "all", "netmask": None},
            Severity.UNSAFE,
            "without a password",
        ),
        (
            {"method": "trust", "type": "hostssl", "address": "127.0.0.1", "netmask": "0.0.0.0"},
            Severity.UNSAFE,
            "without a password",
        ),
        ({"method": "md5"}, Severity.WARNING, "a password that is easy to take"),
        ({"method": "password"}, Severity.WARNING, "a password that is easy to take"),
        ({"method": "ident"}, Severity.WARNING, "by the name of the system's user alone"),
        ({"users": ["t_" + "0" * 20], "method": "trust"}, Severity.WARNING, "t_0000"),
        ({"users": ["+staff"], "method": "trust"}, Severity.WARNING, "+staff"),
        ({"users": ["/^t_"], "method": "trust"}, Severity.WARNING, "/^t_"),
        ({"address": "10.0.0.0", "netmask": "255.0.0.0"}, Severity.WARNING, "without TLS"),
        ({"type": "hostnossl", "address": "samenet"}, Severity.WARNING, "without TLS"),
        ({"error": "invalid"}, Severity.WARNING, "cannot be read: invalid"),
    ],
)
def test_lines_that_let_in_too_easily(line: dict[str, Any], severity: Severity, words: str):
    (finding,) = of_line(**line)

    assert finding.severity is severity
    assert words in finding.problem
    assert "sed -i -E" in finding.advice
    assert "/etc/pg_hba.conf" in finding.advice


def test_a_line_without_tls_becomes_one_with_it_where_the_server_has_it():
    far = {"address": "10.0.0.0", "netmask": "255.0.0.0"}

    assert "hostssl" in of_line(**far)[0].advice
    assert "'7s/^/#/'" in of_line(**far, ssl="off")[0].advice


@pytest.mark.parametrize(
    ("address", "encrypted", "dsn", "words"),
    [
        (None, False, "postgresql:///db", None),
        ("127.0.0.1", False, "postgresql://localhost/db", None),
        ("::1", False, "postgresql://[::1]/db", None),
        ("10.0.0.7", False, "postgresql://db.example/db", "without TLS"),
        ("10.0.0.7", True, "postgresql://db.example/db", "nobody checks"),
        ("10.0.0.7", True, "postgresql://db.example/db?sslmode=require", "nobody checks"),
        ("10.0.0.7", True, "postgresql://db.example/db?sslmode=verify-full", None),
    ],
)
def test_a_session_over_the_network_wants_tls(
    address: str | None, encrypted: bool, dsn: str, words: str | None
):
    config = ServerConfig(dsn=dsn)
    found = list(session_findings(config, client_address=address, encrypted=encrypted))

    assert [words in finding.problem for finding in found] == ([] if words is None else [True])


def test_the_mode_of_tls_comes_from_the_dsn_then_from_the_environment(monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "verify-ca")
    assert ssl_mode("postgresql://host/db") == "verify-ca"
    assert ssl_mode("postgresql://host/db?sslmode=disable") == "disable"
    monkeypatch.delenv("PGSSLMODE")
    assert ssl_mode("postgresql://host/db") == "prefer"
