"""Ray and Ray Serve as this machine runs them: small, on the loopback address, with a token.

Ray reads its settings from the environment when it is imported, and its processes inherit them, so
`environment` has to be that of the process that starts Ray.

Measured with Ray 2.60: with `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`, what Ray calls its settings for
machines whose firewall asks about every port, the node's address is 127.0.0.1 and then its parts
listen there alone. The gRPC server of each Serve replica, which has no such setting, is moved there
by `replica_server`; HAProxy's statistics and figures are closed by `ingress`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.serve.ingress import (
    CERTIFICATE_VARIABLE,
    HOST_VARIABLE,
    HSTS_VARIABLE,
)

LOOPBACK = "127.0.0.1"
NAMESPACE = "tenancy"

#: Ports that Serve's parts listen on, on the loopback address, one for each process and protocol.
_REPLICA_PORTS = 200
_PORT_ATTEMPTS = 20
_LOG_BYTES = 8 * 1024 * 1024
_LOG_FILES = 2
#: Files that HAProxy has open besides two for each connection.
_HAPROXY_FILES = 200
_CONNECTIONS_BEYOND_REQUESTS = 256
_CLIENT_MARGIN_S = 5
_TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class RayPaths:
    """Where Ray keeps its things: a short directory for sockets and logs, and the token's file."""

    directory: Path
    token: Path

    @property
    def ray(self) -> Path:
        """Ray's own directory. One letter: the paths of its sockets are long."""
        return self.directory / "r"

    @property
    def haproxy(self) -> Path:
        """HAProxy's directory."""
        return self.directory / "h"

    @property
    def certificate(self) -> Path:
        """Where HAProxy finds the endpoint's certificate, if there is one."""
        return self.haproxy / "endpoint.pem"

    @property
    def launcher(self) -> Path:
        """The program that Serve takes for HAProxy."""
        return self.directory / "haproxy"


def prepare(settings: Settings, paths: RayPaths) -> None:
    """Make directories, token, launcher, and the names of the endpoint's certificate and key."""
    for path in (paths.ray, paths.haproxy):
        path.mkdir(mode=0o700, exist_ok=True)
    if not paths.token.exists():
        descriptor = os.open(paths.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_TOKEN_BYTES))
    # A file of ours and not one of the package, since a wheel keeps no executable bit.
    paths.launcher.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -P -m tenancy.data_isolation.serve.ingress "$@"\n'
    )
    paths.launcher.chmod(0o700)
    # HAProxy looks for the key next to the certificate. Links and no copies: a key is nowhere but
    # in its file, and what was renewed is there when HAProxy reads it again.
    for link, target in (
        (paths.certificate, settings.http_tls_certificate),
        (paths.certificate.with_name(f"{paths.certificate.name}.key"), settings.http_tls_key),
    ):
        link.unlink(missing_ok=True)
        if target is not None:
            link.symlink_to(target)


def environment(settings: Settings, paths: RayPaths) -> dict[str, str]:
    """The environment that Ray needs. Ports are free ones at this moment."""
    replica_port = _free_range(_REPLICA_PORTS)
    haproxy = paths.haproxy
    return {
        # Exposure.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A small machine: no processes on stock, no collectors, few threads; and our processes are
        # as important as PostgreSQL (Ray's are "nicer" than all others by default).
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_event_stats": "0",
        "RAY_worker_num_grpc_internal_threads": "1",
        "RAY_memory_monitor_refresh_ms": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": str(_LOG_FILES),
        # Serve: HAProxy in front, user code on the main loop.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(paths.launcher),
        HOST_VARIABLE: settings.http_host,
        **_ingress_tls(settings, paths),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_connections_max(settings)),
        # A datagram per request, parsed in Python; the application counts its requests itself.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "s"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m"),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_client_timeout_s(settings)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(1, round(settings.drain_timeout_s))),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_port + _REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }


def start(settings: Settings, paths: RayPaths) -> str:
    """Start a local cluster and join it; its address. Blocks for seconds. Raises `SetupError`.

    The cluster ends with this process. To be called from the main thread: the kernel ends Ray's
    processes when the thread that started them ends.
    """
    import ray

    try:
        context: Any = ray.init(
            num_cpus=os.cpu_count() or 1,
            include_dashboard=False,
            object_store_memory=max(settings.ray_object_store_bytes, _OBJECT_STORE_BYTES_MIN),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(paths.ray),
            _node_ip_address=LOOPBACK,
        )
    except (RuntimeError, ValueError, ConnectionError, OSError, TimeoutError) as error:
        raise SetupError(f"Ray does not start: {_first_line(error)}") from None
    address: str = context.address_info["address"]
    if not address.startswith(f"{LOOPBACK}:"):
        ray.shutdown()
        raise SetupError(f"Ray listens on {address} and not on the loopback address; it was ended")
    return address


#: Ray refuses less.
_OBJECT_STORE_BYTES_MIN = 80 * 1024 * 1024


def address() -> str:
    """The address of the cluster that this process is connected to."""
    import ray

    found: str = ray.get_runtime_context().gcs_address
    return found


def stop() -> None:
    """End the cluster that this process started. Blocks. Does nothing when there is none."""
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        with contextlib.suppress(RuntimeError, ConnectionError, OSError):
            ray.shutdown()


def _ingress_tls(settings: Settings, paths: RayPaths) -> dict[str, str]:
    if settings.http_tls_certificate is None:
        return {}
    return {
        CERTIFICATE_VARIABLE: str(paths.certificate),
        HSTS_VARIABLE: str(round(settings.http_tls_hsts_s)),
    }


def _connections_max(settings: Settings) -> int:
    """Connections that HAProxy may take: as many as requests, as far as open files allow."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.requests_in_flight_max + _CONNECTIONS_BEYOND_REQUESTS
    if files == resource.RLIM_INFINITY:
        return wanted
    # Two for each connection, and a pipe, which is two more, for every fourth one (HAProxy
    # manual, "maxpipes").
    return max(_CONNECTIONS_BEYOND_REQUESTS, min(wanted, (files - _HAPROXY_FILES) * 2 // 5))


def _client_timeout_s(settings: Settings) -> int:
    """How long a client may neither send nor take anything: the application gives up first.

    It does not run while a client waits for its answer. When it is over, HAProxy lets go of one
    that was answered before it had sent its whole body.
    """
    longest_s = max(settings.request_read_timeout_s, settings.stream_write_timeout_s)
    return math.ceil(longest_s) + _CLIENT_MARGIN_S


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _free_range(count: int) -> int:
    """The first of so many ports of which at least the first is free now."""
    for _ in range(_PORT_ATTEMPTS):
        port = 30_000 + secrets.randbelow(2_000 // count) * count
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    return 30_000


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
