"""The audit of a server: its settings, who may connect how, and what a session of ours travels on.

Nothing is changed. A rule says what a setting must not be, what that would mean, and what it should
be; the SQL that mends it is ALTER SYSTEM, which some servers need to be restarted for.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from tenancy.data_isolation.core.server_tls import ServerTls, SslMode
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.findings import RELOAD, Finding, Severity
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("audit_server.sql")
#: Where a setting comes from that ALTER SYSTEM cannot change.
_ABOVE_FILES: Final = frozenset({"command line", "environment variable", "client", "session"})
_VERIFIED: Final = frozenset({SslMode.VERIFY_CA, SslMode.VERIFY_FULL})
#: Libraries that may be loaded into every session without a word about it.
_KNOWN_LIBRARIES: Final = frozenset({"$libdir/pg_stat_statements", "pg_stat_statements"})
_PRELOADS: Final = (
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
)
_LOGINS: Final = re.compile(r"all|tenancy_(rows|control)|t_[0-9a-f]{20}|[+/].*")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a setting must not be."""

    name: str
    wrong: frozenset[str]
    severity: Severity
    problem: str
    right: str


def _rule(name: str, wrong: str, severity: Severity, problem: str, right: str) -> _Rule:
    return _Rule(name, frozenset(wrong.split()), severity, problem, right)


_UNSAFE, _BROKEN, _WARNING = Severity.UNSAFE, Severity.BROKEN, Severity.WARNING
_RULES: Final = (
    _rule("row_security", "off", _UNSAFE, "refuses statements that row security filters", "on"),
    _rule(
        "session_replication_role",
        "replica local",
        _UNSAFE,
        "switches triggers and foreign keys off in every session",
        "origin",
    ),
    _rule("lo_compat_privileges", "on", _UNSAFE, "opens large objects to everybody", "off"),
    _rule(
        "allow_system_table_mods", "on", _UNSAFE, "lets system catalogs be changed by hand", "off"
    ),
    _rule(
        "standard_conforming_strings",
        "off",
        _UNSAFE,
        "reads quoted text in another way than the guard",
        "on",
    ),
    _rule("default_transaction_read_only", "on", _BROKEN, "refuses every write of tenants", "off"),
    _rule("fsync", "off", _WARNING, "loses or spoils data when the machine stops", "on"),
    _rule("full_page_writes", "off", _WARNING, "spoils pages when the machine stops", "on"),
    _rule(
        "synchronous_commit",
        "off",
        _WARNING,
        "acknowledges writes that a crash takes back",
        "on",
    ),
    _rule("zero_damaged_pages", "on", _WARNING, "empties damaged pages without a word", "off"),
    _rule("autovacuum", "off", _WARNING, "lets tables grow until the server stops", "on"),
    _rule("password_encryption", "md5", _WARNING, "stores passwords as MD5", "scram-sha-256"),
    _rule("log_statement", "mod all", _WARNING, "writes tenants' values to the log", "none"),
    _rule("debug_print_parse", "on", _WARNING, "writes tenants' values to the log", "off"),
    _rule("debug_print_rewritten", "on", _WARNING, "writes tenants' values to the log", "off"),
    _rule("debug_print_plan", "on", _WARNING, "writes tenants' values to the log", "off"),
    _rule("track_activities", "off", _WARNING, "hides from operators what sessions do", "on"),
    _rule("transform_null_equals", "on", _WARNING, "answers `= null` unlike other servers", "off"),
    _rule(
        "ssl_min_protocol_version",
        "TLSv1 TLSv1.1",
        _WARNING,
        "takes TLS versions that are broken",
        "TLSv1.2",
    ),
)


async def audit_settings(
    connection: asyncpg.Connection, *, config: ServerConfig, settings: Settings
) -> list[Finding]:
    """What is set so that tenants are in danger, and what does not fit the runtime's budgets."""
    names = [rule.name for rule in _RULES]
    wanted = [*names, *_PRELOADS, "log_min_duration_statement", "listen_addresses", "ssl"]
    rows = await connection.fetch(_SQL.statement("settings"), wanted)
    found: dict[str, Mapping[str, Any]] = {row["name"]: dict(row) for row in rows}
    findings = [
        _of_setting(config, found[rule.name], rule.severity, rule.problem, rule.right)
        for rule in _RULES
        if rule.name in found and found[rule.name]["setting"] in rule.wrong
    ]
    duration = found["log_min_duration_statement"]
    if int(duration["setting"]) >= 0:
        problem = "writes slow statements to the log, tenants' values among them"
        findings.append(_of_setting(config, duration, _WARNING, problem, "-1"))
    findings += _preloads(config, found)
    findings += _listening(config, found)
    (room,) = await connection.fetch(_SQL.statement("connection_room"))
    return [*findings, *_budget(config, settings, room["most"], room["kept"])]


async def audit_access(connection: asyncpg.Connection, *, config: ServerConfig) -> list[Finding]:
    """Lines of pg_hba.conf by which somebody gets in too easily.

    Raises `asyncpg.InsufficientPrivilegeError` when the admin may not read them.
    """
    rows = await connection.fetch(_SQL.statement("access_rules"))
    return [finding for row in rows for finding in access_findings(config.name, dict(row))]


async def audit_session(connection: asyncpg.Connection, *, config: ServerConfig) -> list[Finding]:
    """Whether a session of ours can be overheard or led astray."""
    (row,) = await connection.fetch(_SQL.statement("session"))
    return list(
        session_findings(config, client_address=row["client_address"], encrypted=row["encrypted"])
    )


# The rules themselves, without I/O


def access_findings(server: str, row: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with one line of pg_hba.conf."""
    subject = f"{row['file']} line {row['line']}"

    def finding(severity: Severity, problem: str, change: str) -> Finding:
        edit = shlex.join(["sed", "-i", "-E", f"{row['line']}{change}", row["file"]])
        return Finding(
            check="access_rules",
            severity=severity,
            server=server,
            database="",
            subject=subject,
            problem=problem,
            advice=f"on the server's machine: {edit}; then: {RELOAD}",
        )

    if row["error"] is not None:
        yield finding(_WARNING, f"cannot be read: {row['error']}", "s/^/#/")
        return
    users, method = row["users"] or [], row["method"]
    if not any(_LOGINS.fullmatch(user) for user in users) or row["databases"] == ["replication"]:
        return
    beyond = row["type"] != "local" and not _is_local(row["address"], row["netmask"])
    told = f"{', '.join(users)} into {', '.join(row['databases'])}"
    # The last such word before a comment, and the options behind it, which are that method's own.
    scram = f"s/^([^#]*)\\b{method}\\b[^#]*/\\1scram-sha-256 /"
    match method:
        case "trust":
            severity = _UNSAFE if beyond else _WARNING
            yield finding(severity, f"lets {told} without a password", scram)
        case "peer" | "ident":
            yield finding(_WARNING, f"lets {told} by the name of the system's user alone", scram)
        case "md5" | "password":
            yield finding(_WARNING, f"lets {told} with a password that is easy to take", scram)
    if beyond and row["type"] in ("host", "hostnossl") and method != "reject":
        # Without TLS a line for it is not understood, and then no line of the file counts.
        change = "s/^( *)host(nossl)?\\b/\\1hostssl/" if row["ssl"] == "on" else "s/^/#/"
        yield finding(_WARNING, f"lets {told} from {row['address']} without TLS", change)


def session_findings(
    config: ServerConfig, *, client_address: str | None, encrypted: bool
) -> Iterator[Finding]:
    """What is wrong with how sessions reach a server. No address: a socket of this machine."""
    if client_address is None or _is_local(client_address):
        return
    problem = ""
    if not encrypted:
        problem = "is reached over the network without TLS: passwords and rows can be read"
    elif ServerTls.of(config).mode not in _VERIFIED:
        problem = "is reached with TLS, but nobody checks that it is the right server"
    if problem:
        yield Finding(
            check="tls",
            severity=_WARNING,
            server=config.name,
            database="",
            subject=f"server {config.name}",
            problem=problem,
            advice="add sslmode=verify-full&sslrootcert=<file of the CA> to its DSN",
        )


def _of_setting(
    config: ServerConfig, row: Mapping[str, Any], severity: Severity, problem: str, right: str
) -> Finding:
    name = row["name"]
    above = row["source"] in _ABOVE_FILES
    advice = ""
    if above:
        advice = f"it comes from its {row['source']}: start the server with {name}={right}"
    elif row["context"] == "postmaster":
        advice = "then restart the server"
    return Finding(
        check="settings",
        severity=severity,
        server=config.name,
        database="",
        subject=f"setting {name}",
        problem=f"is {row['setting'] or 'empty'}: it {problem}",
        statements=() if above else (f"alter system set {name} = '{right}'", RELOAD),
        advice=advice,
    )


def _preloads(config: ServerConfig, found: Mapping[str, Any]) -> Iterator[Finding]:
    for name in _PRELOADS:
        if name not in found:
            continue  # For superusers alone to see.
        listed = {part.strip().strip('"') for part in found[name]["setting"].split(",")} - {""}
        if listed - _KNOWN_LIBRARIES:
            yield _preload(config, found[name])


def _preload(config: ServerConfig, row: Mapping[str, Any]) -> Finding:
    problem = "runs its code in every session"
    finding = _of_setting(config, row, _WARNING, problem, "")
    if not finding.statements:
        return finding
    file = str(row["sourcefile"] or "")
    # ALTER SYSTEM SET to an empty list would write a library with an empty name, which no session
    # could load; and what another file says stays when its own entry goes.
    advice = finding.advice
    if not file.endswith("postgresql.auto.conf"):
        advice = f"take it out of {file or 'the configuration file'}, line {row['sourceline']}"
    statements = (f"alter system reset {row['name']}", RELOAD)
    return dataclasses.replace(finding, statements=statements, advice=advice)


def _listening(config: ServerConfig, found: Mapping[str, Any]) -> Iterator[Finding]:
    addresses = [part.strip() for part in found["listen_addresses"]["setting"].split(",")]
    beyond = [address for address in addresses if address and not _is_local(address)]
    if not beyond:
        return
    row = dict(found["listen_addresses"])
    host = urlsplit(config.dsn).hostname
    if host is None or _is_local(host):
        problem = "listens beyond this machine, from where the runtime does not come"
        yield _of_setting(config, row, _WARNING, problem, "localhost")
    elif found["ssl"]["setting"] == "off":
        problem = "takes connections from the network without TLS"
        yield _of_setting(config, dict(found["ssl"]), _WARNING, problem, "on")


def _budget(config: ServerConfig, settings: Settings, most: int, kept: int) -> Iterator[Finding]:
    each = settings.admin_connections_max + settings.catalog_connections_max
    processes = settings.http_replicas
    wanted = settings.server_connections_max + processes * each
    if wanted > most - kept:
        fitting = most - kept - wanted + settings.server_connections_max
        advice = f"set TENANCY_SERVER_CONNECTIONS_MAX={fitting}"
        if fitting < 1:
            advice = f"raise max_connections to {wanted + kept}, and restart the server"
        yield Finding(
            check="connections",
            severity=_WARNING,
            server=config.name,
            database="",
            subject="setting max_connections",
            problem=f"leaves {most - kept} connections, and the runtime may want {wanted}: "
            f"{settings.server_connections_max} for tenants, and {each} for each of {processes} "
            f"process{'' if processes == 1 else 'es'} that answer{'s' * (processes == 1)} HTTP",
            advice=advice,
        )


def _is_local(address: str | None, netmask: str | None = None) -> bool:
    """Whether an address, or a name of pg_hba.conf, means this machine and no other."""
    if address in (None, "", "localhost", "samehost"):
        return True
    given = f"{address}/{_prefix(netmask)}" if netmask else str(address)
    try:
        return ipaddress.ip_network(given, strict=False).is_loopback
    except ValueError:
        return False


def _prefix(netmask: str) -> int:
    """The length of the prefix that a netmask stands for, of both families."""
    return int(ipaddress.ip_address(netmask)).bit_count()
