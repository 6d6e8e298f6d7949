"""Checks of an installation: each with what was found and, where something is wrong, the remedy.

Nothing is changed. Checks of servers need a server: the one of the runtime that runs, or the one
that `TENANCY_POSTGRES_DSN` names.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tenancy.data_isolation.actors.configuration import configuration_path, read_configuration
from tenancy.data_isolation.core import EngineConfig, Settings, TenancyError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.bootstrap import Bootstrap
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.engine.server_facts import read_facts
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.runtime_state import Phase, RuntimeDirectory, RuntimeState

_PYTHON = (3, 11)
_RAY = "2.60.0"
_DISK_COMFORTABLE_BYTES = 1 << 30
_MEMORY_COMFORTABLE_BYTES = 1536 << 20
_FILES_COMFORTABLE = 4_096
_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 30.0
_ANSWER_TIMEOUT_S = 10.0
_SHOWN_BYTES = 2_000
_LISTED = 5
_NOT_BOUND = "TN001"
_LOOPBACK = "127.0.0.1"


class Result(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check: what was looked at, what was found, and what to do about it."""

    name: str
    result: Result
    detail: str
    remedy: str | None = None


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, result=Result.OK, detail=detail)


def _warn(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, result=Result.WARN, detail=detail, remedy=remedy)


def _fail(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, result=Result.FAIL, detail=detail, remedy=remedy)


def check_machine(settings: Settings) -> Iterator[Check]:
    """What can be looked at without a server."""
    directory = RuntimeDirectory(settings.home)
    state = directory.present()
    yield _python()
    yield _ray_package()
    yield _home(settings.home)
    yield _secrets(settings.home)
    yield _disk(settings)
    yield _memory()
    yield _open_files()
    yield _runtime(state)
    if state.state is Phase.STOPPED:
        yield _port(settings)
    if state.url is not None:
        yield _endpoint(state.endpoint())
    if state.ray_address is not None:
        yield _ray(state)


async def check_servers(settings: Settings) -> AsyncIterator[Check]:
    """What has to be asked of PostgreSQL."""
    try:
        config = _engine_config(settings)
    except TenancyError as error:
        yield _fail("servers", error.detail, "run `tenancy down`, then `tenancy up`")
        return
    if config is None:
        yield _ok("servers", "nothing runs, so they were not looked at")
        return
    try:
        engine = await Engine.attach(config)
    except TenancyError as error:
        yield _fail("servers", error.detail, "see that the server runs, then `tenancy up`")
        return
    try:
        for check in (_facts, _clocks, _bindings, _schema):
            async for found in _guarded(check, engine):
                yield found
        async for found in _guarded(_roles, engine):
            yield found
    finally:
        await engine.close()


# The machine


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < _PYTHON:
        return _fail("python", f"this is Python {found}", "use Python 3.11 or later")
    return _ok("python", found)


def _ray_package() -> Check:
    try:
        found = version("ray")
    except PackageNotFoundError:
        return _fail(
            "ray package", "Ray is not installed", "pip install 'tenancy-data-isolation[serve]'"
        )
    if found != _RAY:
        return _warn("ray package", f"Ray {found} was not tested", f"install ray[serve]=={_RAY}")
    return _ok("ray package", found)


def _home(home: Path) -> Check:
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        return _fail("home", f"{place} is not writable", "set TENANCY_HOME to another directory")
    if home.exists() and stat.S_IMODE(home.stat().st_mode) & 0o022:
        return _fail("home", f"others can write to {home}", f"chmod 700 {home}")
    return _ok("home", str(home))


def _secrets(home: Path) -> Check:
    named = [home / "admin.key", home / "master.key", *home.glob("secrets/*"), *home.glob("run/*")]
    files = [path for path in named if path.is_file()]
    open_ones = [str(path) for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_ones:
        listed = " ".join(open_ones)
        return _fail("secrets", f"others can read {listed}", f"chmod 600 {listed}")
    return _ok("secrets", f"{len(files)} files that only their owner can read")


def _disk(settings: Settings) -> Check:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    told = f"{free >> 20} MiB free at {place}"
    remedy = "free some space, or set TENANCY_HOME to a directory elsewhere"
    if free < settings.server_free_disk_min_bytes:
        return _fail("disk", told, remedy)
    if free < _DISK_COMFORTABLE_BYTES:
        return _warn("disk", told, remedy)
    return _ok("disk", told)


def _memory() -> Check:
    available = psutil.virtual_memory().available
    told = f"{available >> 20} MiB available"
    if available < _MEMORY_COMFORTABLE_BYTES:
        return _warn("memory", told, "end other programs; the runtime takes about 1.5 GiB")
    return _ok("memory", told)


def _open_files() -> Check:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = "unlimited" if most == resource.RLIM_INFINITY else str(most)
    if most != resource.RLIM_INFINITY and most < _FILES_COMFORTABLE:
        return _warn("open files", told, f"raise the limit (ulimit -Hn) to {_FILES_COMFORTABLE}")
    return _ok("open files", told)


def _runtime(state: RuntimeState) -> Check:
    match state.state:
        case Phase.RUNNING:
            return _ok("runtime", f"running since {state.started_at}")
        case Phase.STOPPED if state.error:
            return _warn("runtime", f"the last start failed: {state.error}", "`tenancy up`")
        case Phase.STOPPED:
            return _ok("runtime", "stopped")
        case Phase.DEGRADED:
            return _fail("runtime", state.detail, f"the logs are in {state.log_directory}")
        case Phase.STARTING | Phase.STOPPING:
            return _warn("runtime", f"{state.state}: {state.detail}", "look again in a minute")


def _port(settings: Settings) -> Check:
    host, port = settings.http_host, settings.http_port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return _fail(
                "port",
                f"{host}, port {port}: {(error.strerror or str(error)).lower()}",
                "set TENANCY_HTTP_PORT to another one (0 = a free one)",
            )
    return _ok("port", f"{port} is free")


def _endpoint(endpoint: Endpoint) -> Check:
    try:
        status, body = endpoint.ask("/readyz", _ANSWER_TIMEOUT_S)
        if status == HTTPStatus.OK:
            return _ok("endpoint", f"{endpoint.url} is ready")
        detail = body[:_SHOWN_BYTES].decode(errors="replace")
    except (OSError, TenancyError) as error:
        detail = str(error)
    return _fail(
        "endpoint", f"{endpoint.url}: {detail}", "wait a little, else `tenancy down; tenancy up`"
    )


def _ray(state: RuntimeState) -> Check:
    parts = urlsplit(f"//{state.ray_address}")
    try:
        with socket.create_connection((parts.hostname, parts.port), _ANSWER_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        return _fail("ray", f"{state.ray_address}: {error}", "`tenancy down`, then `tenancy up`")
    if parts.hostname != _LOOPBACK:
        return _warn("ray", f"it listens on {state.ray_address}", "close its ports with a firewall")
    return _ok("ray", f"{state.ray_address} answers")


# The servers


def _engine_config(settings: Settings) -> EngineConfig | None:
    """What to attach to: what the runtime works on, or the user's own server."""
    if RuntimeDirectory(settings.home).is_alive():
        path = configuration_path(settings)
        if not path.exists():
            return None
        found = read_configuration(path)
        return EngineConfig(servers=found.servers, settings=found.settings)
    server = settings.postgres_server()
    return None if server is None else EngineConfig(servers=[server], settings=settings)


async def _guarded(
    check: Callable[[Engine], AsyncIterator[Check]], engine: Engine
) -> AsyncIterator[Check]:
    """The findings of a check; one that cannot be carried out is a finding as well."""
    name = check.__name__.strip("_")
    try:
        async for found in check(engine):
            yield found
    except TenancyError as error:
        yield _fail(name, error.detail, "see that the server runs, then try again")
    except Exception as error:
        yield _fail(name, f"{type(error).__name__}: {error}", "see that the server runs")


async def _facts(engine: Engine) -> AsyncIterator[Check]:
    for server in engine.servers:
        name = f"server {server.name}"
        async with engine.admin.session(ServerName(server.name)) as connection:
            facts = await read_facts(connection, ServerName(server.name))
        if facts.notes:
            yield _warn(name, f"PostgreSQL {facts.version}: {'; '.join(facts.notes)}", "see there")
        else:
            yield _ok(name, f"PostgreSQL {facts.version}")


async def _clocks(engine: Engine) -> AsyncIterator[Check]:
    for server in engine.servers:
        name = f"clock of {server.name}"
        async with engine.admin.session(ServerName(server.name)) as connection:
            before = datetime.now(UTC)
            there: datetime = await connection.fetchval("select clock_timestamp()")
            after = datetime.now(UTC)
        apart_s = max((before - there).total_seconds(), (there - after).total_seconds(), 0.0)
        told = f"{apart_s:.1f} s from ours"
        remedy = "let NTP set the clocks of both machines"
        if apart_s > _CLOCK_FAIL_S:
            yield _fail(name, told, remedy)
        elif apart_s > _CLOCK_WARN_S:
            yield _warn(name, told, remedy)
        else:
            yield _ok(name, told)


async def _bindings(engine: Engine) -> AsyncIterator[Check]:
    """A session that is not bound must get an error, and nothing else."""
    database = shared_database(engine.settings)
    for server in engine.servers:
        name = f"binding on {server.name}"
        said: Any = None
        async with engine.admin.session(ServerName(server.name), database) as connection:
            try:
                await connection.fetchval("select tenancy.tenant()")
            except Exception as error:
                said = getattr(error, "sqlstate", type(error).__name__)
        if said == _NOT_BOUND:
            yield _ok(name, "a session that is not bound is refused")
        else:
            yield _fail(
                name,
                f"a session that is not bound got {said or 'an answer'} in place of {_NOT_BOUND}",
                "`tenancy down; tenancy up` installs the functions anew; then look again",
            )


async def _schema(engine: Engine) -> AsyncIterator[Check]:
    status = await engine.fleet.status()
    late = [item for item in status if item.version != item.newest or item.error]
    if not late:
        newest = status[0].newest if status else 0
        yield _ok("schema", f"{len(status)} copies, all at version {newest}")
        return
    first = late[0]
    yield _fail(
        "schema",
        f"{len(late)} of {len(status)} copies are not at version {first.newest}"
        f"{f'; the first says: {first.error}' if first.error else ''}",
        "mend the data, then run `tenancy schema apply DIR` again",
    )


async def _roles(engine: Engine) -> AsyncIterator[Check]:
    key = await master_key(engine.settings)
    bootstrap = Bootstrap(settings=engine.settings, master_key=key, servers=engine.servers)
    findings = await bootstrap.audit(every_database=True)
    for finding in findings[:_LISTED]:
        yield _fail("roles", f"{finding.subject} {finding.problem}", finding.mend)
    if len(findings) > _LISTED:
        yield _fail("roles", f"and {len(findings) - _LISTED} more findings", "mend these first")
    if not findings:
        yield _ok("roles", "no role has a right that would let a tenant cross its boundary")
