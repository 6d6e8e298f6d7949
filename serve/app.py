"""The HTTP interface as a deployment of Ray Serve, and the tenant actors next to it.

The composition root: what the routes work with is opened here, once per replica, from the file that
the daemon wrote. Ray keeps the arguments of a deployment where everyone in the cluster can read
them, so a replica gets the path of that file and no secret.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from tenancy.data_isolation.actors import remote
from tenancy.data_isolation.actors.configuration import ActorConfiguration
from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.serve.api import create_api
from tenancy.data_isolation.serve.composition import Composition
from tenancy.data_isolation.serve.edge import Edge
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.ray_runtime import LOOPBACK
from tenancy.data_isolation.serve.replica_server import keep_on_loopback
from tenancy.data_isolation.serve.replicas_file import Replicas

_APPLICATION = "tenancy"
_POLL_INTERVAL_S = 0.1
_ANSWER_TIMEOUT_S = 10.0
_SHOWN_BYTES = 2_000
_HEALTH_PERIOD_S = 5.0
_HEALTH_TIMEOUT_S = 15.0
#: The client of a Serve replica is cancelled when it leaves; the rest of the limits are our own,
#: and Serve's must not get into their way.
_ONGOING_BEYOND_LIMIT = 100


class HttpReplica:
    """One process that answers HTTP."""

    # Serve awaits it, and has nothing else that runs before a replica takes requests.
    async def __init__(self, configuration_path: str) -> None:  # type: ignore[misc]
        keep_on_loopback()
        self._composition = await Composition.open(Path(configuration_path))

    def __serve_build_asgi_app__(self) -> Edge:
        """The application, made once the rest is open."""
        return create_api(self._composition.services, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._composition.close()


def start_actors(configuration: ActorConfiguration, path: Path) -> remote.Handle:
    """Start the shared tenant actors, and let the mover begin to start. Blocks.

    Returns the mover, for `wait_for_mover`. Raises `SetupError`.
    """
    remote.start_shared_actors(configuration, path)
    return remote.start_mover(path)


def wait_for_mover(mover: remote.Handle, settings: Settings) -> None:
    """Wait until moves are carried out. Blocks. Raises `SetupError`s."""
    remote.wait_for_mover(mover, settings.actor_restart_timeout_s)


def stop_actors() -> None:
    """End the mover and all tenant actors, in peace where they answer. Blocks."""
    if ray.is_initialized():
        remote.stop_actors()


def start_endpoint(settings: Settings, configuration_path: Path, replicas: Replicas) -> None:
    """Start the HTTP endpoint and wait until it answers. Blocks. Raises `SetupError`."""
    ongoing = settings.requests_in_flight_max + _ONGOING_BEYOND_LIMIT
    deployment = serve.deployment(
        name="http",
        **replicas.options(),
        max_ongoing_requests=ongoing,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": 0.01},
        # Paths hold customers' names, and a line per request costs more than the request.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(serve.ingress()(HttpReplica))
    deadline = time.monotonic() + settings.ray_start_timeout_s
    try:
        serve.start(
            http_options={
                # Of HAProxy and of the replicas behind it; `ingress` moves HAProxy to where it is
                # wanted.
                "host": LOOPBACK,
                "port": settings.http_port,
                "keep_alive_timeout_s": 90,
            },
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        serve.run_many(
            [serve.RunTarget(target=deployment.bind(str(configuration_path)), name=_APPLICATION)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_running(deadline)
    except (RayError, RuntimeError, TimeoutError) as error:
        raise SetupError(f"the HTTP endpoint does not start: {_last_line(str(error))}") from None
    _wait_until_answering(settings, deadline)


def stop_endpoint() -> None:
    """End the HTTP endpoint: requests in work may end first. Blocks."""
    if ray.is_initialized():
        # Shutting Serve down ends HAProxy at once, and with it the connections of requests that
        # are in work. So the replicas end first, and each of them when its requests have.
        serve.delete(_APPLICATION)
        serve.shutdown()  # type: ignore[no-untyped-call]


def _wait_until_running(deadline: float) -> None:
    while True:
        found = serve.status().applications.get(_APPLICATION)
        if found is not None and found.status is ApplicationStatus.RUNNING:
            return
        if found is not None and found.status is ApplicationStatus.DEPLOY_FAILED:
            texts = [item.message for item in found.deployments.values() if item.message]
            raise SetupError(
                f"the HTTP endpoint does not start: {_last_line(' '.join(texts) or found.message)}"
            )
        if time.monotonic() > deadline:
            raise SetupError(
                "the HTTP endpoint does not start in time (TENANCY_RAY_START_TIMEOUT_S)"
            )
        time.sleep(_POLL_INTERVAL_S)


def _wait_until_answering(settings: Settings, deadline: float) -> None:
    """Wait for the first answer that says that everything is ready."""
    endpoint = Endpoint.of(settings)
    said = "no answer"
    while time.monotonic() < deadline:
        try:
            status, body = endpoint.ask("/readyz", _ANSWER_TIMEOUT_S)
            if status == HTTPStatus.OK:
                return
            said = body[:_SHOWN_BYTES].decode(errors="replace")
        except OSError as error:
            said = str(error)
        time.sleep(_POLL_INTERVAL_S)
    raise SetupError(f"the HTTP endpoint does not become ready: {said}")


def _last_line(text: str) -> str:
    """What a traceback that came as text ends with, without the name of the error's class."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"^(\w+\.)*\w+: ", "", lines[-1]) if lines else "no reason was given"
