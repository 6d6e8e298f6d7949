"""Tenant actors and the mover on Ray: the only place that says how they run there.

Rules this module keeps:

* Names are opaque: `tenancy-shared-<region>-<n>`, `tenancy-dedicated-<region>-<tenant number>` and
  `tenancy-mover`, in the namespace `tenancy`. Ray writes names into logs and metrics.
* Actors are detached and restart for ever, and Ray repeats none of their calls: whether a call may
  be repeated is for the caller to know (Ray guide, "Actor fault tolerance": calls are at most once
  with `max_task_retries=0`).
* A region is a node label, `ray.io/availability-region`. Ray leaves an actor whose selector no node
  meets pending for ever, so that is checked first.
* Nothing here blocks an event loop: what waits for Ray is either awaited or run in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from tenancy.data_isolation.actors.channel import ActorLostError, Send
from tenancy.data_isolation.actors.collector import relax_collector
from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
    write_configuration,
)
from tenancy.data_isolation.actors.directory import (
    DEFAULT_REGION,
    MOVER_NAME,
    ActorName,
    Directory,
    is_dedicated,
    is_shared,
)
from tenancy.data_isolation.actors.local_link import LinkAddress, LocalLink
from tenancy.data_isolation.actors.move_actor import MoveActor
from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.core.errors import (
    OverloadedError,
    SetupError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import Region, TenantId
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import TenantSize
from tenancy.data_isolation.engine import level_review
from tenancy.data_isolation.engine.level_review import MeasureSize

NAMESPACE = "tenancy"
REGION_LABEL = "ray.io/availability-region"

#: A Ray actor handle or object reference; Ray's own types say no more than this.
Handle = Any

_OPTIONS = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    # How many calls may overlap on its event loop. Operations are bounded inside, one by one.
    "max_concurrency": 20_000,
    # Of one handle; the next call is refused (`PendingCallsLimitExceeded`).
    "max_pending_calls": 10_000,
    # Scheduling only. Explicit, since the default asks for a whole processor to start on.
    "num_cpus": 0.01,
    "enable_task_events": False,
}
_STOP_TIMEOUT_S = 30.0
#: How long all goes by way of Ray before a connection is looked for again.
_LOOK_AGAIN_S = 30.0
_ACTS = logging.getLogger(level_review.__name__)


def start_shared_actors(configuration: ActorConfiguration, path: Path) -> dict[ActorName, Handle]:
    """Write the configuration, start the actors of its directory, and wait until they can work.

    Actors that run already read the configuration again. Blocks. Raises `SetupError`, and what
    opening an engine raises.
    """
    directory = configuration.directory
    for region in directory.shared:
        _check_region(region)
    write_configuration(configuration, path)
    handles = {name: _create(name, directory, path) for name in directory.shared_names()}
    timeout_s = configuration.settings.actor_restart_timeout_s
    _wait([handle.reload.remote() for handle in handles.values()], "the tenant actors", timeout_s)
    return handles


def start_mover(path: Path) -> Handle:
    """Start the actor that carries moves out, with the configuration in a file that is there.

    Does not wait: `wait_for_mover` does.
    """
    options: dict[str, Any] = dict(_OPTIONS, name=MOVER_NAME)
    return ray.remote(**options)(MoveActorProcess).remote(MOVER_NAME, str(path))


def wait_for_mover(mover: Handle, timeout_s: float) -> None:
    """Wait until moves are carried out. Blocks. Raises as `start_shared_actors` does."""
    _wait([mover.health.remote()], "the mover", timeout_s)


def _wait(answers: list[Any], what: str, timeout_s: float) -> None:
    try:
        ray.get(answers, timeout=timeout_s)
    except GetTimeoutError:
        raise SetupError(
            f"{what} did not start within {timeout_s:g} s; see `ray status` for what the cluster "
            "waits for"
        ) from None
    except RayTaskError as error:
        raise own_error(error) from None
    except RayActorError as error:
        raise SetupError(f"{what} did not start: {_reason(error)}") from None


def stop_actors(timeout_s: float = _STOP_TIMEOUT_S) -> None:
    """End the mover and all tenant actors of the namespace: in peace, and by force those that do
    not. Blocks.

    An actor that ends in peace closes its connections a moment after this returns.
    """
    handles = {name: _found(name) for name in _all_names()}
    ended: list[Any] = [handle.__ray_terminate__.remote() for handle in handles.values() if handle]
    if ended:
        ray.wait(ended, num_returns=len(ended), timeout=timeout_s)
    for name in _all_names():
        left: Any = handles.get(name)
        if left is not None:
            ray.kill(left)


def actor_names() -> list[ActorName]:
    """The tenant actors there are in the namespace. Asks Ray's control store; blocks."""
    return [name for name in _all_names() if name != MOVER_NAME]


def _all_names() -> list[ActorName]:
    """The actors of ours that there are in the namespace."""
    return [
        ActorName(found["name"])
        for found in ray.util.list_named_actors(all_namespaces=True)
        if found["namespace"] == NAMESPACE
        and (found["name"] == MOVER_NAME or is_shared(found["name"]) or is_dedicated(found["name"]))
    ]


def read_directory() -> tuple[Directory, Settings]:
    """The directory and the settings, as a running tenant actor tells them. Blocks."""
    for name in sorted(filter(is_shared, actor_names())):
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
            asked: Any = handle.describe.remote()
            described: Any = ray.get(asked, timeout=_STOP_TIMEOUT_S)
        except (ValueError, GetTimeoutError, RayActorError):
            continue
        return described[0], described[1]
    raise SetupError("no tenant actor answers in this Ray cluster; start them with `tenancy up`")


class TenantActorProcess(TenantActor):
    """A tenant actor that has its process to itself."""

    def __init__(self, name: str, configuration_path: str) -> None:
        super().__init__(name, configuration_path)
        relax_collector()


class MoveActorProcess(MoveActor):
    """The mover in a process of its own, beside tenant actors."""

    def __init__(self, name: str, configuration_path: str) -> None:
        super().__init__(name, configuration_path)
        # Ray's workers tell of nothing below a warning, and what is done to tenants is to be found.
        _ACTS.setLevel(logging.INFO)
        _ACTS.addHandler(logging.StreamHandler())

    def measure(self, configuration: ActorConfiguration) -> MeasureSize:
        """The tenant's own actor counts, whose sessions take up most of what its login may have."""
        # Imported late: it imports this module.
        from tenancy.data_isolation.actors.gateway import ActorGateway

        gateway = ActorGateway(configuration.directory, configuration.public_settings())

        async def measured(tenant_id: TenantId, rows_max: int) -> TenantSize:
            return await gateway.tenant_size(tenant_id, rows_max=rows_max)

        return measured


class Actors:
    """Handles of actors by name, got once. Safe for one event loop."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._settings = settings
        self._path = configuration_path(settings)
        self._directory = directory
        self._handles: dict[ActorName, Handle] = {}
        self._creating: dict[ActorName, asyncio.Task[Handle]] = {}
        self._ways: dict[ActorName, _Way] = {}

    async def connect(self, name: ActorName) -> Send:
        """What sends requests to the actor, which is started if it is a dedicated one.

        Asks Ray anew, since an actor that was killed for good may have a successor. Raises
        `ActorLostError`, and `OverloadedError` when there may be no more dedicated actors.
        """
        self._handles.pop(name, None)
        self._hang_up(name)
        handle = await self.handle(name)
        way = self._ways[name] = _Way(handle.execute_many, partial(self._address, name))
        await way.look()
        return way.send

    def close(self) -> None:
        """Hang up on all actors."""
        for name in list(self._ways):
            self._hang_up(name)

    async def handle(self, name: ActorName) -> Handle:
        """The actor's handle; raises as `connect` does."""
        known = self._handles.get(name)
        if known is not None:
            return known
        getting = self._creating.get(name)
        if getting is None:
            getting = asyncio.create_task(asyncio.to_thread(self._get, name))
            self._creating[name] = getting
            getting.add_done_callback(lambda _: self._creating.pop(name, None))
        found = await asyncio.shield(getting)
        self._handles[name] = found
        return found

    async def call(self, name: ActorName, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """One method of an actor. Raises its error, or `ActorLostError`."""
        handle = await self.handle(name)
        try:
            return await getattr(handle, method).remote(*args, **kwargs)
        except RayTaskError as error:
            raise own_error(error) from None
        except RayError as error:
            self._handles.pop(name, None)
            raise ActorLostError(_reason(error)) from None

    async def _address(self, name: ActorName) -> LinkAddress | None:
        """Where the actor takes connections of its machine."""
        if not self._settings.actor_local_connections_max:
            return None
        try:
            address: LinkAddress | None = await self.call(name, "listen")
        except (AttributeError, TenancyError):
            return None  # It is of an earlier release, or has no answer: it can be called, though.
        return address

    def _hang_up(self, name: ActorName) -> None:
        way = self._ways.pop(name, None)
        if way is not None:
            way.close()

    def _get(self, name: ActorName) -> Handle:
        """Find the actor, or start it if it is a dedicated one. Blocks."""
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            if not is_dedicated(name):
                raise ActorLostError("there is no such actor in the cluster") from None
        most = self._settings.dedicated_actors_max
        if sum(map(is_dedicated, actor_names())) >= most:
            raise OverloadedError(
                f"there are {most} dedicated actors already (TENANCY_DEDICATED_ACTORS_MAX)"
            )
        return _create(name, self._directory, self._path)


class _Way:
    """Sends requests to an actor: on a connection where there is one, else in calls of Ray."""

    def __init__(
        self, method: Handle, address: Callable[[], Awaitable[LinkAddress | None]]
    ) -> None:
        """`address` asks the actor where it takes connections; raises `ActorLostError`."""
        self.link: LocalLink | None = None
        self._method = method
        self._address = address
        self._closed = False
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def send(self, message: bytes) -> bytes:
        """Send a request, and wait for its reply. Raises `ActorLostError`."""
        link = self.link
        if link is not None and not link.lost:
            return await link.send(message)
        loop = asyncio.get_running_loop()
        if link is not None:
            # It was lost while nothing was under way: what was not sent is not lost with it.
            self.link, self._look_at = None, 0.0
        if self._looking is None and not self._closed and loop.time() >= self._look_at:
            self._looking = loop.create_task(self._look_again())
        return await _send(self._method, message)

    async def look(self) -> None:
        """Get a connection, if there is one to be had. Raises `ActorLostError`."""
        address = await self._address()
        if address is not None:
            self.link = await LocalLink.open(address)
        self._look_at = asyncio.get_running_loop().time() + _LOOK_AGAIN_S

    async def _look_again(self) -> None:
        try:
            await self.look()
        except ActorLostError:
            self._look_at = asyncio.get_running_loop().time() + _LOOK_AGAIN_S
        finally:
            self._looking = None
            if self._closed and self.link is not None:
                self.link.close()

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        if self.link is not None:
            self.link.close()


def _found(name: ActorName) -> Handle | None:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None  # It ended since it was listed.


async def _send(method: Handle, message: bytes) -> bytes:
    try:
        reply: bytes = await method.remote(message)
    except RayTaskError as error:
        raise own_error(error) from None
    except RayError as error:
        raise ActorLostError(_reason(error)) from None
    return reply


def own_error(error: RayTaskError) -> TenancyError:
    """The error of ours that a call raised in the actor, without Ray's class around it."""
    cause = error.cause
    return cause if isinstance(cause, TenancyError) else TenancyError()


def _reason(error: RayError) -> str:
    """The first line of what Ray says, which says what happened; the rest says where."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _create(name: ActorName, directory: Directory, path: Path) -> Handle:
    options: dict[str, Any] = dict(_OPTIONS, name=name)
    region = directory.region_of(name)
    if region is not None and region != DEFAULT_REGION:
        options["label_selector"] = {REGION_LABEL: region}
    return ray.remote(**options)(TenantActorProcess).remote(name, str(path))


def _check_region(region: Region) -> None:
    if region == DEFAULT_REGION:
        return
    found = {
        node.get("Labels", {}).get(REGION_LABEL)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node.get("Alive")
    } - {None}
    if region not in found:
        raise SetupError(
            f"no node of the Ray cluster is in region {region!r}; start one with `ray start "
            f"--labels {REGION_LABEL}={region}`, or use one of: {_listed(found)}"
        )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "(none has a region)"
