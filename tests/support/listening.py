"""Which sockets processes listen at."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Listener:
    """A socket that takes connections or datagrams from others."""

    address: str
    port: int
    kind: str
    process: str


def listening(processes: Iterable[psutil.Process]) -> list[Listener]:
    """TCP sockets that listen, and bound UDP sockets, of the processes that still live."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            for item in process.net_connections("inet"):
                tcp = item.type is socket.SOCK_STREAM
                if item.laddr and (item.status == psutil.CONN_LISTEN or not tcp):
                    found.add(
                        Listener(
                            address=item.laddr.ip,
                            port=item.laddr.port,
                            kind="tcp" if tcp else "udp",
                            process=name,
                        )
                    )
    return sorted(found)


def beyond_loopback(listeners: Iterable[Listener]) -> list[Listener]:
    """Those that can be reached from other machines."""
    return [item for item in listeners if not _is_loopback(item.address)]


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
