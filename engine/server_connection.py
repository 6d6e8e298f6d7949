"""The only way in which the runtime opens a connection to a server that was given by DSN.

Every session goes through here, and with it its TLS: the admin role's, the catalog's, tenants', and
those that look after the server. A cancellation (CancelRequest) goes the way of its session. The
driver never chooses: it gets a finished context, or is told to use none, so that neither its own
default (TLS if the server likes) nor a variable of the environment decides.

The driver asks the catalogs what types are, in whatever schemas the session works at the moment.
That query is pinned like those of our own (`pinning`).
"""

from __future__ import annotations

import logging
import os
import ssl
from functools import lru_cache
from typing import Any, Final, Literal

import asyncpg

from tenancy.data_isolation.core.errors import SettingError, TransportError
from tenancy.data_isolation.core.server_tls import ServerPlaces, ServerTls, SslMode, plain_dsn
from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.engine.pinning import pinned
from tenancy.data_isolation.engine.polling import in_thread
from tenancy.data_isolation.engine.tls_context import LIBPQ_NAMES, tls_context, transport_problem

_log = logging.getLogger(__name__)

#: Functions of the server that give the SQLSTATE 28000 for what `pg_hba.conf` says; the others
#: give it for a role that is not there.
_ACCESS_ROUTINES: Final = ("ClientAuthentication", "auth_failed")
#: What names a server outside of the DSN (libpq manual, 32.15).
_ELSEWHERE: Final = ("PGHOST", "PGSERVICE")
_SERVERS_MAX: Final = 256
_EXPOSED: Final = {
    SslMode.DISABLE: "its data crosses the network in plain text (sslmode=disable)",
    SslMode.REQUIRE: "nobody looks whether it is the right one (sslmode=require); use verify-full",
}


async def check_transport(server: ServerConfig) -> None:
    """Raise `SettingError` when the way to `server` cannot be taken as its configuration says."""
    await _context(_tls(server))


@lru_cache(maxsize=_SERVERS_MAX)
def _tls(server: ServerConfig) -> ServerTls:
    """What `server` asks for. Raises `SettingError`."""
    tls, places = ServerTls.of(server), ServerPlaces.of(server)
    if not places.named and ("service" in places.parameters or any(map(os.getenv, _ELSEWHERE))):
        raise SettingError(
            f"server {server.name!r}: its DSN names no host, and a service or a variable of the "
            f"environment ({', '.join(_ELSEWHERE)}) would; name the host in the DSN"
        )
    # Once for each process, since the answer is remembered.
    if places.outside is not None and tls.root_cert is None:
        _log.warning("server %s at %s: %s", server.name, places.outside, _EXPOSED[tls.mode])
    return tls


async def _context(tls: ServerTls) -> ssl.SSLContext | Literal[False]:
    """What the driver is given: a context, or the word not to use TLS at all."""
    # In a thread, because it looks at files, each time: a renewed certificate is used at once.
    return await in_thread(tls_context, tls) if tls.mode.encrypts else False


async def open_connection(server: ServerConfig, **arguments: Any) -> asyncpg.Connection:
    """A connection of the driver's to `server`; `arguments` are those of `asyncpg.connect`.

    Raises `TransportError` for all that has to do with TLS, and the driver's errors for the rest.
    """
    tls = _tls(server)
    try:
        context = await _context(tls)
    except SettingError as error:
        # At the start all was well. A tenant may read what is said, and paths are not for tenants.
        _log.error("server %s: %s", server.name, error)
        raise _error(server, "a file of its TLS is no good any more; see the log") from None
    given = arguments | {"dsn": plain_dsn(server), "ssl": context, "direct_tls": tls.direct}
    try:
        connection: Any = await asyncpg.connect(**given)
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        problem = _access_problem(error, tls)
        if problem is None:
            raise
        raise _error(server, problem) from None
    except (OSError, asyncpg.PostgresConnectionError) as error:
        problem = _transport_problem(error, tls) if tls.mode.encrypts else None
        if problem is None:
            raise
        raise _error(server, problem) from None
    # The driver has no public way to it; test_shadowing.py fails when a release calls it otherwise.
    connection._intro_query = _pinned_query(connection._intro_query)
    opened: asyncpg.Connection = connection
    return opened


@lru_cache
def _pinned_query(text: str) -> str:
    return pinned(text)


def _error(server: ServerConfig, problem: str) -> TransportError:
    return TransportError(f"server {server.name!r} cannot be used: {problem}")


def _transport_problem(error: BaseException, tls: ServerTls) -> str | None:
    """What TLS has to do with an error; None = nothing."""
    problem = transport_problem(error, LIBPQ_NAMES)
    if problem is not None:
        return problem
    # The driver's own words for a server that answers the question for TLS with no.
    if type(error) is ConnectionError:
        return (
            "it does not speak TLS, which is asked for; switch it on there (ssl = on), or write "
            "sslmode=disable when nobody can listen on the way"
        )
    if isinstance(error, asyncpg.ConnectionDoesNotExistError | ConnectionResetError):
        held = (
            "does not accept our certificate (sslcert)"
            if tls.cert
            else "asks for a client certificate (sslcert, sslkey)"
        )
        return (
            f"it ended the connection while TLS was made; perhaps it {held}, or has no TLS version "
            "that is allowed here (ssl_min_protocol_version); its log has more"
        )
    return None


def _access_problem(error: asyncpg.PostgresError, tls: ServerTls) -> str | None:
    """What a refusal by `pg_hba.conf` may be about; None when it is about the role."""
    routine = getattr(error, "server_source_function", None)
    # 28P01, a wrong password, is of the same class and comes from the same place.
    if error.sqlstate != "28000" or routine not in _ACCESS_ROUTINES:
        return None
    way = "with TLS" if tls.mode.encrypts else "without TLS (sslmode)"
    shown = "one" if tls.cert else "none (sslcert, sslkey)"
    return (
        "its pg_hba.conf does not let us in. We came "
        f"{way} and showed {shown} as client certificate; see which of its lines is meant for us"
    )
