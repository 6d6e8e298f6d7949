"""What a look at one server has seen."""

from __future__ import annotations

from dataclasses import dataclass

from tenancy.data_isolation.core.errors import ServerUnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.engine.drift import Fingerprint
from tenancy.data_isolation.engine.findings import Finding, Severity


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLook:
    """What was seen on one server."""

    server: ServerName
    findings: tuple[Finding, ...]
    #: None when tables of the runtime's own could not be read: then there is nothing to compare.
    fingerprint: Fingerprint | None
    #: Databases whose tables were not held against the server's reference, because it is behind.
    not_compared: int
    #: Whether it was looked at: it did not answer otherwise.
    reached: bool = True


def not_reached(server: ServerName, error: ServerUnavailableError) -> ServerLook:
    """A server that does not answer."""
    finding = Finding(
        check="reachable",
        severity=Severity.BROKEN,
        server=server,
        database="",
        subject=f"server {server}",
        problem=f"was not looked at: {error.detail}",
        advice="start it again, then look again; where it is lost for good, see docs/moves.md on "
        "moves that wait for it",
        by_hand=True,
    )
    return ServerLook(
        server=server, findings=(finding,), fingerprint=None, not_compared=0, reached=False
    )
