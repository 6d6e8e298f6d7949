"""What a line of pg_hba.conf, and the way to a server, may look like."""

from __future__ import annotations

from typing import Any

import pytest

from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.server_audit import (
    _listening,
    _of_setting,
    _preload,
    access_findings,
    session_findings,
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
        ("10.0.0.7", False, "postgresql://db.example/db?sslmode=disable", "without TLS"),
        ("10.0.0.7", True, "postgresql://db.example/db", None),
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


def of_addresses(addresses: str, *, ssl: str, dsn: str) -> list[Finding]:
    row = {"source": "configuration file", "context": "postmaster"}
    found = {
        "listen_addresses": row | {"name": "listen_addresses", "setting": addresses},
        "ssl": row | {"name": "ssl", "setting": ssl},
    }
    return list(_listening(ServerConfig(dsn=dsn), found))


def test_a_server_that_is_used_here_needs_no_address_of_the_network():
    here, far = "postgresql://127.0.0.1/db", "postgresql://db.example/db"

    assert of_addresses("localhost, 127.0.0.1,::1", ssl="off", dsn=here) == []
    assert of_addresses("", ssl="off", dsn="postgresql:///db") == []
    (finding,) = of_addresses("*", ssl="on", dsn=here)
    assert finding.statements[0] == "alter system set listen_addresses = 'localhost'"
    assert finding.advice == "then restart the server"
    assert of_addresses("0.0.0.0", ssl="on", dsn=far) == []
    (finding,) = of_addresses("0.0.0.0", ssl="off", dsn=far)
    assert "without TLS" in finding.problem


def test_what_alter_system_cannot_change_is_told_in_another_way():
    row = {"name": "fsync", "setting": "off", "source": "command line", "context": "sighup"}
    config = ServerConfig(dsn="postgresql:///db")

    finding = _of_setting(config, row, Severity.WARNING, "loses data", "on")

    assert finding.statements == ()
    assert finding.advice == "it comes from its command line: start the server with fsync=on"


def test_a_library_that_another_file_loads_has_to_be_taken_out_there():
    row = {
        "name": "session_preload_libraries",
        "setting": "auto_explain",
        "source": "configuration file",
        "context": "superuser",
        "sourcefile": "/etc/postgresql.conf",
        "sourceline": 12,
    }
    config = ServerConfig(dsn="postgresql:///db")

    assert _preload(config, row).advice == "take it out of /etc/postgresql.conf, line 12"
    own = row | {"sourcefile": "/data/postgresql.auto.conf"}
    assert _preload(config, own).advice == ""
    assert _preload(config, own).statements[0] == "alter system reset session_preload_libraries"
