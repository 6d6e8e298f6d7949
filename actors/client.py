"""The Python client: connect to a running installation and reach its tenants.

With Ray object references, from anywhere, one call for each operation::

    client = connect()
    tenant = client.tenant("acme")
    result = ray.get(tenant.query.remote("select * from orders where id = $1", [7]))

From asyncio, where concurrent operations travel together, tens of times as many per second::

    async with connect() as client:
        result = await client.execute("acme", "select * from orders where id = $1", [7])
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray._private import ray_constants
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import GetTimeoutError, PendingCallsLimitExceeded, RayError, RayTaskError

from tenancy.data_isolation.actors.directory import Directory
from tenancy.data_isolation.actors.gateway import ActorGateway
from tenancy.data_isolation.actors.move_gateway import ActorMoves
from tenancy.data_isolation.actors.proposal_gateway import ActorProposals
from tenancy.data_isolation.actors.remote import NAMESPACE, Handle, own_error, read_directory
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    OverloadedError,
    SetupError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.core.settings import EngineConfig, Settings
from tenancy.data_isolation.core.types import Operation, QueryResult

_RETRY_AFTER_S = 1.0
_LISTENS_TIMEOUT_S = 5.0
_PORT_MAX = 65_535


def connect(address: str | None = None, *, home: Path | str | None = None) -> TenancyClient:
    """Connect to a running installation. Blocks for some seconds; raises `SetupError`.

    Uses the Ray of this process when it is initialised; else joins the cluster at `address`, or the
    one that `tenancy up` started under `home` (`TENANCY_HOME`, `.tenancy`). With an address the
    token of the cluster is where Ray looks for it (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`).
    """
    joined = not ray.is_initialized()
    if joined:
        _join(address, home)
    try:
        directory, settings = read_directory()
    except (TenancyError, RayError) as error:
        if joined:
            ray.shutdown()
        if isinstance(error, TenancyError):
            raise
        raise SetupError(f"the Ray cluster does not answer: {type(error).__name__}") from None
    return TenancyClient(directory, settings, owns_ray=joined)


class TenancyClient:
    """A connection to an installation. `connect` makes one.

    The async methods belong to one event loop; `tenant` works from any thread.
    """

    def __init__(self, directory: Directory, settings: Settings, *, owns_ray: bool) -> None:
        self.directory = directory
        self.settings = settings
        self._owns_ray = owns_ray

    @cached_property
    def gateway(self) -> ActorGateway:
        """The way to all tenants, for one event loop."""
        return ActorGateway(self.directory, self.settings)

    @cached_property
    def engine_config(self) -> EngineConfig:
        """For strategies and the orchestrator: work on tenants through their actors."""
        return EngineConfig(settings=self.settings, gateway=self.gateway)

    @property
    def moves(self) -> ActorMoves:
        """Moves of tenants to other isolation levels, servers and regions. Asynchronous."""
        return self.gateway.moves

    @property
    def proposals(self) -> ActorProposals:
        """Proposals to move tenants: listing, accepting and dismissing them. Asynchronous."""
        return self.gateway.proposals

    def tenant(self, tenant_id: str) -> TenantHandle:
        """A handle whose methods give Ray object references.

        Blocks for one call to an actor, which tells where the tenant is. Raises
        `InvalidInputError` and `TenantNotFoundError`.
        """
        checked = parse_tenant_id(tenant_id)
        timeout_s = self.settings.actor_restart_timeout_s
        name = self.directory.shared_actor(checked)
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
            asked: Any = actor.route.remote(checked)
            right: Any = ray.get(asked, timeout=timeout_s)
            if right != name:
                actor = _existing(right, actor)
        except RayTaskError as error:
            raise own_error(error) from None
        except (ValueError, RayError, GetTimeoutError) as error:
            raise UnavailableError(
                f"the tenant's actor {name} does not answer ({type(error).__name__}); "
                "`tenancy doctor` says more"
            ) from None
        return TenantHandle(checked, actor)

    async def execute(
        self,
        tenant_id: str,
        operation: Operation | str,
        params: Sequence[Any] | Mapping[str, Any] = (),
    ) -> QueryResult:
        """Run one operation, given whole or as SQL with parameters."""
        if isinstance(operation, str):
            operation = Operation(query=operation, params=params)
        elif params:
            raise InvalidInputError("an Operation has its own params; give them there")
        return await self.gateway.execute(parse_tenant_id(tenant_id), operation)

    async def execute_batch(
        self, tenant_id: str, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        """Run several; each has its result or its error, or, when `atomic`, all or none."""
        return await self.gateway.execute_batch(
            parse_tenant_id(tenant_id), operations, atomic=atomic
        )

    async def aclose(self) -> None:
        """Let go of everything. The installation lives on."""
        if "gateway" in self.__dict__:
            await self.gateway.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Leave the cluster, if `connect` joined it. After async work use `aclose`."""
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class RemoteMethod:
    """A method of a tenant, called as methods of Ray actors are."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> Handle:
        """Start the call; the object reference of its result.

        `ray.get` gives the result or raises the error, which is a `TenancyError`. Raises
        `OverloadedError` when too many calls of this handle are under way.
        """
        try:
            return self._method(*args, **kwargs)
        except PendingCallsLimitExceeded:
            raise OverloadedError(
                "too many calls of this handle are under way; nothing was done; wait for some",
                retry_after_s=_RETRY_AFTER_S,
            ) from None


class TenantHandle:
    """One tenant. Can be passed to Ray tasks and actors."""

    def __init__(self, tenant_id: TenantId, actor: Handle) -> None:
        self.tenant_id = tenant_id
        self._actor = actor

    def __repr__(self) -> str:
        return f"TenantHandle({self.tenant_id!r})"

    @property
    def query(self) -> RemoteMethod:
        """`query.remote(sql, params=(), *, deadline_s=None, idempotency_key=None)`."""
        return RemoteMethod(partial(self._actor.query.remote, self.tenant_id))

    @property
    def execute(self) -> RemoteMethod:
        """`execute.remote(operation)`."""
        return RemoteMethod(partial(self._actor.execute.remote, self.tenant_id))

    @property
    def batch(self) -> RemoteMethod:
        """`batch.remote(operations, *, atomic=False)`: a list of results and errors."""
        return RemoteMethod(partial(self._actor.batch.remote, self.tenant_id))

    @property
    def move(self) -> RemoteMethod:
        """`move.remote(target, *, priority=0)`: starts a move to a `MoveTarget`; the `Move`."""
        return RemoteMethod(partial(self._actor.moves.remote, "start", self.tenant_id))


def _existing(name: str, otherwise: Handle) -> Handle:
    """The tenant's own actor if it runs; the shared one serves the tenant just as well."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return otherwise


def _join(address: str | None, home: Path | str | None) -> None:
    if address is None:
        address = _running(Path(home or os.environ.get("TENANCY_HOME", ".tenancy")))
    _check_listens(address)
    if address.startswith("127.0.0.1:"):
        # Ray would look for the cluster at the machine's outward address. This is its own switch
        # (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), which it reads when it is imported.
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise SetupError(
            f"the Ray cluster at {address} cannot be joined ({type(error).__name__}); "
            "`tenancy status` says whether it runs"
        ) from None


def _check_listens(address: str) -> None:
    """Raise `SetupError` when nobody listens at `host:port`: Ray would try for ever."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # `auto` and its like are for Ray to find out.
    if int(port) > _PORT_MAX:
        # The system would take it for another one, at which somebody may listen.
        raise SetupError(f"no Ray cluster listens at {address}: there is no port {port[:20]}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENS_TIMEOUT_S).close()
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SetupError(
            f"no Ray cluster listens at {address} ({reason}); `tenancy status` says where it is"
        ) from None


def _running(home: Path) -> str:
    """The address of the cluster that runs under `home`; makes its token known to Ray."""
    file = home.expanduser().absolute() / "run" / "state.json"
    try:
        state = json.loads(file.read_text())
        address, token = state["ray_address"], state["ray_auth_token_file"]
    except (OSError, ValueError, KeyError, TypeError):
        address = None
    if address is None:
        raise SetupError(
            f"nothing runs under {home}; start it with `tenancy up`, or set TENANCY_HOME"
        ) from None
    _use_token(str(token))
    return str(address)


def _use_token(path: str) -> None:
    """Have Ray authenticate with the token in a file, although Ray was imported before."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = path
    os.environ.pop("RAY_AUTH_TOKEN", None)
    # Ray reads its environment when it is imported; this is how it reads it anew itself
    # (`_enable_token_auth` in ray/_private/authentication/authentication_token_setup.py, 2.60).
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
