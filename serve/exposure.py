"""What of a runtime can be reached or read from outside: sockets, files, the address of Redis."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tenancy.data_isolation.core.server_tls import is_local
from tenancy.data_isolation.engine.process_identity import ProcessIdentity, processes_inside
from tenancy.data_isolation.serve.check import Check, failed, fine, warned
from tenancy.data_isolation.serve.runtime_state import RuntimeDirectory, RuntimeState

#: Directories under the home in which everything is for the owner alone.
_PRIVATE = ("secrets", "run", "doctor", "log")
_KEYS = ("admin.key", "master.key")


def check_home(home: Path) -> Iterator[Check]:
    """Whether others can write to the home."""
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        yield failed("home", f"{place} is not writable", "set TENANCY_HOME to another directory")
    elif home.exists() and stat.S_IMODE(home.stat().st_mode) & 0o022:
        yield failed("home", f"others can write to {home}", f"chmod go-w {home}")
    elif home.exists() and home.stat().st_uid not in (os.getuid(), 0):
        yield failed("home", f"{home} belongs to another user", f"chown {os.getuid()} {home}")
    else:
        yield fine("home", str(home))


def check_secrets(home: Path) -> Iterator[Check]:
    """Whether others can read keys, passwords, logs and records, or write to them."""
    files = [home / name for name in _KEYS if (home / name).is_file()]
    directories = [home / name for name in _PRIVATE if (home / name).is_dir()]
    for directory in directories:
        files += [path for path in directory.iterdir() if path.is_file()]
    others = [path for path in files if _mode(path) & 0o077]
    # A file in a directory that is closed cannot be reached, whatever its own mode is.
    shown = [path for path in others if path.parent == home or not _is_closed(path.parent)]
    shown += [path for path in others if path.parent.name in ("secrets", "run", "doctor")]
    shown += [path for path in directories if _mode(path) & 0o022]
    links = [path for path in files if path.is_symlink()]
    if shown:
        listed = " ".join(sorted({str(path) for path in shown}))
        yield failed("secrets", f"others can get at {listed}", f"chmod go-rwx {listed}")
    if links:
        listed = ", ".join(map(str, links))
        yield warned("secrets", f"{listed} leads elsewhere", "put the file itself in its place")
    if not shown and not links:
        yield fine("secrets", f"{len(files)} files that only their owner can read")


def check_sockets(directory: RuntimeDirectory, state: RuntimeState) -> Iterator[Check]:
    """Whether processes of the runtime listen where other machines can reach them."""
    yield from listening_checks(_listening(directory), state.url)


def listening_checks(
    listening: Iterable[tuple[str, str, int]], endpoint: str | None
) -> Iterator[Check]:
    """What to say of sockets: (process, address, port). `endpoint` is the URL of HTTP.

    An endpoint that speaks HTTPS is meant to be reached, so of that one nothing is to be mended.
    """
    sockets = sorted(set(listening))
    url = urlsplit(endpoint or "")
    # Without a port in the URL it is the scheme's.
    http_port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    beyond: dict[tuple[str, int], set[str]] = {}
    encrypted = []
    for name, address, port in sockets:
        if is_local(address):
            continue
        if port == http_port and url.scheme == "https":
            encrypted.append(f"{address} port {port}")
        else:
            beyond.setdefault((address, port), set()).add(name)
    for (address, port), names in sorted(beyond.items()):
        told = f"{', '.join(sorted(names))} listens on {address} port {port}, beyond this machine"
        advice = "close the port with a firewall"
        if port == http_port:
            advice = (
                "set TENANCY_HTTP_TLS_CERTIFICATE and TENANCY_HTTP_TLS_KEY; or set "
                "TENANCY_HTTP_HOST=127.0.0.1, and let a proxy with TLS stand in front"
            )
        yield warned("sockets", told, advice)
    if beyond:
        return
    if encrypted:
        listed = ", ".join(dict.fromkeys(encrypted))
        told = f"{len(sockets)} of the runtime; beyond this machine only HTTPS, on {listed}"
        yield fine("sockets", told)
    else:
        yield fine("sockets", f"{len(sockets)} of the runtime, all on this machine's own address")


def check_redis(url: str | None) -> Iterator[Check]:
    """Whether the way to Redis can be overheard."""
    if url is None:
        return
    parts = urlsplit(url)
    plain = parts.scheme not in ("rediss", "unix")
    if plain and parts.hostname is not None and not is_local(parts.hostname):
        told = f"{parts.hostname} is reached over the network without TLS"
        yield warned("redis", told, "give TENANCY_REDIS_URL as rediss://...")
    else:
        yield fine("redis", "reached with TLS" if not plain else "on this machine")


def _listening(directory: RuntimeDirectory) -> Iterator[tuple[str, str, int]]:
    for process in _processes(directory):
        with contextlib.suppress(psutil.Error):
            for item in process.net_connections("inet"):
                if item.status == psutil.CONN_LISTEN:
                    yield process.name(), item.laddr.ip, item.laddr.port


def _processes(directory: RuntimeDirectory) -> list[psutil.Process]:
    """The daemon, what descends from it, and what works where it does."""
    found: dict[int, psutil.Process] = {}
    daemon = directory.daemon()
    with contextlib.suppress(psutil.Error):
        if daemon is not None:
            process = psutil.Process(daemon.pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
    inside: list[ProcessIdentity] = processes_inside(directory.work)
    for item in inside:
        with contextlib.suppress(psutil.Error):
            found.setdefault(item.pid, psutil.Process(item.pid))
    return list(found.values())


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _is_closed(directory: Path) -> bool:
    return not _mode(directory) & 0o077
