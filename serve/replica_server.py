"""The gRPC server of a Serve replica, kept on the loopback address.

Ray Serve 2.60 starts one in every replica, for calls from other deployments, and has it listen at
`[::]` on a random port, whatever `http_options` and the node's address are: the text stands in
`ray.serve._private.replica` and no setting reaches it. It asks for the cluster's token. Here no
deployment calls another, and on one machine nobody else has to reach it at all.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import ray
from ray.serve._private import replica

from tenancy.data_isolation.core.errors import SetupError

_EVERYWHERE = "[::]:"
_NAME = "add_port_to_grpc_server"


def keep_on_loopback() -> None:
    """Have this process's replica listen on the node's address, if that is a loopback one.

    To be called before Serve starts the server, which it does once the deployment's class is made.
    Nodes of a cluster of several machines have other addresses, at which replicas must be reached.
    Raises `SetupError` for a Ray that starts its server in another way.
    """
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if not ipaddress.ip_address(address).is_loopback:
        return
    listen = getattr(replica, _NAME, None)
    if listen is None:
        raise SetupError(
            "this Ray starts the replicas' server in another way than Ray 2.60, and it would "
            "listen on all interfaces; use the version that the package asks for"
        )

    def listen_here(server: Any, place: str) -> Any:
        return listen(server, place.replace(_EVERYWHERE, f"{address}:", 1))

    setattr(replica, _NAME, listen_here)
