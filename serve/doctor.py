"""Checks of the machine that a runtime is on: each with what was found and what to do about it.

Nothing is changed. What has to be asked of servers is in `server_checks`.
"""

from __future__ import annotations

import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tenancy.data_isolation.core import Settings, TenancyError
from tenancy.data_isolation.serve.check import Check, failed, fine, warned
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.exposure import (
    check_home,
    check_redis,
    check_secrets,
    check_sockets,
)
from tenancy.data_isolation.serve.runtime_state import Phase, RuntimeDirectory, RuntimeState
from tenancy.data_isolation.serve.watchdog_report import report_path, watch_states

_PYTHON = (3, 11)
_RAY = "2.60.0"
_DISK_COMFORTABLE_BYTES = 1 << 30
_MEMORY_COMFORTABLE_BYTES = 1536 << 20
_FILES_COMFORTABLE = 4_096
_ANSWER_TIMEOUT_S = 10.0
_SHOWN_BYTES = 2_000
_LOOPBACK = "127.0.0.1"


def check_machine(settings: Settings) -> Iterator[Check]:
    """What can be looked at without a server."""
    directory = RuntimeDirectory(settings.home)
    state = directory.present()
    yield _python()
    yield _ray_package()
    yield from check_home(settings.home)
    yield from check_secrets(settings.home)
    yield _disk(settings)
    yield _memory()
    yield _open_files()
    yield _runtime(state)
    if state.state is Phase.STOPPED:
        yield _port(settings)
    if state.state in (Phase.RUNNING, Phase.DEGRADED):
        yield from check_watchdogs(report_path(settings.home))
    if state.url is not None:
        yield _endpoint(state.endpoint())
    if state.ray_address is not None:
        yield _ray(state)
        yield from check_sockets(directory, state)
    yield from check_redis(state.redis_url or settings.redis_url)


# The machine


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < _PYTHON:
        return failed("python", f"this is Python {found}", "use Python 3.11 or later")
    return fine("python", found)


def _ray_package() -> Check:
    try:
        found = version("ray")
    except PackageNotFoundError:
        return failed(
            "ray package", "Ray is not installed", "pip install 'tenancy-data-isolation[serve]'"
        )
    if found != _RAY:
        return warned("ray package", f"Ray {found} was not tested", f"install ray[serve]=={_RAY}")
    return fine("ray package", found)


def _disk(settings: Settings) -> Check:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    told = f"{free >> 20} MiB free at {place}"
    remedy = "free some space, or set TENANCY_HOME to a directory elsewhere"
    if free < settings.server_free_disk_min_bytes:
        return failed("disk", told, remedy)
    if free < _DISK_COMFORTABLE_BYTES:
        return warned("disk", told, remedy)
    return fine("disk", told)


def _memory() -> Check:
    available = psutil.virtual_memory().available
    told = f"{available >> 20} MiB available"
    if available < _MEMORY_COMFORTABLE_BYTES:
        return warned("memory", told, "end other programs; the runtime takes about 1.5 GiB")
    return fine("memory", told)


def _open_files() -> Check:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = "unlimited" if most == resource.RLIM_INFINITY else str(most)
    if most != resource.RLIM_INFINITY and most < _FILES_COMFORTABLE:
        return warned("open files", told, f"raise the limit (ulimit -Hn) to {_FILES_COMFORTABLE}")
    return fine("open files", told)


def _runtime(state: RuntimeState) -> Check:
    match state.state:
        case Phase.RUNNING:
            return fine("runtime", f"running since {state.started_at}")
        case Phase.STOPPED if state.error:
            return warned("runtime", f"the last start failed: {state.error}", "`tenancy up`")
        case Phase.STOPPED:
            return fine("runtime", "stopped")
        case Phase.DEGRADED:
            return failed("runtime", state.detail, f"the logs are in {state.log_directory}")
        case Phase.STARTING | Phase.STOPPING:
            return warned("runtime", f"{state.state}: {state.detail}", "look again in a minute")


def check_watchdogs(path: Path) -> Iterator[Check]:
    """Whether somebody holds tenants' sessions to their limits from outside. A runtime runs."""
    for item in watch_states(path):
        if item.problem is None or item.remedy is None:
            yield fine("watchdog", f"server {item.server}: {item.state}")
            continue
        told = warned if item.may_pass else failed
        of_server = f"server {item.server}: " if item.server else ""
        yield told("watchdog", f"{of_server}{item.problem}", item.remedy)


def _port(settings: Settings) -> Check:
    host, port = settings.http_host, settings.http_port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return failed(
                "port",
                f"{host}, port {port}: {(error.strerror or str(error)).lower()}",
                "set TENANCY_HTTP_PORT to another one (0 = a free one)",
            )
    return fine("port", f"{port} is free")


def _endpoint(endpoint: Endpoint) -> Check:
    try:
        status, body = endpoint.ask("/readyz", _ANSWER_TIMEOUT_S)
        if status == HTTPStatus.OK:
            return fine("endpoint", f"{endpoint.url} is ready")
        detail = body[:_SHOWN_BYTES].decode(errors="replace")
    except (OSError, TenancyError) as error:
        detail = str(error)
    return failed(
        "endpoint", f"{endpoint.url}: {detail}", "wait a little, else `tenancy down; tenancy up`"
    )


def _ray(state: RuntimeState) -> Check:
    parts = urlsplit(f"//{state.ray_address}")
    try:
        with socket.create_connection((parts.hostname, parts.port), _ANSWER_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        return failed("ray", f"{state.ray_address}: {error}", "`tenancy down`, then `tenancy up`")
    if parts.hostname != _LOOPBACK:
        return warned(
            "ray", f"it listens on {state.ray_address}", "close its ports with a firewall"
        )
    return fine("ray", f"{state.ray_address} answers")
