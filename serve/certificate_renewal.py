"""A renewed certificate of the endpoint, handed to the HAProxy that runs.

HAProxy reads certificates when it starts, and takes others over its administration socket, without
an interruption (management guide, 9.3, "set ssl cert" and "commit ssl cert").
"""

from __future__ import annotations

import dataclasses
import logging
import socket
from pathlib import Path
from typing import Final

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.serve.endpoint_certificate import endpoint_certificate
from tenancy.data_isolation.serve.ray_runtime import RayPaths

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
_ANSWER_BYTES_MAX: Final = 4_096
_DONE: Final = "Success!"

Stamp = tuple[tuple[int, int, int], ...]


class CertificateRenewal:
    """Watches the files of one endpoint's certificate, for one start of HAProxy."""

    def __init__(self, settings: Settings, name: str, paths: RayPaths) -> None:
        """`name` is the one by which clients know the endpoint; it has to stay."""
        self._settings = dataclasses.replace(settings, http_tls_name=name)
        self._paths = paths
        self._files = [
            path for path in (settings.http_tls_certificate, settings.http_tls_key) if path
        ]
        self._used = self._stamp()

    def look(self) -> str | None:
        """Have HAProxy use files that were replaced; what is in the way, if anything is. Blocks.

        Nothing is done before the new certificate is a good one, so that one of the two files that
        is replaced before the other does no harm.
        """
        stamp = self._stamp()
        if stamp == self._used:
            return None
        try:
            found = endpoint_certificate(self._settings)
            if found is None:
                return None
            self._hand_over()
        except SettingError as error:
            return f"the renewed certificate is not used: {error.detail}"
        except OSError as error:
            return f"HAProxy does not take the renewed certificate: {error}"
        self._used = stamp
        _log.info("the endpoint has a certificate that is good until %s", found.expires_at)
        return None

    def _hand_over(self) -> None:
        text = "\n".join(path.read_text() for path in dict.fromkeys(self._files))
        # An empty line ends what is handed over.
        lines = "\n".join(line for line in text.splitlines() if line.strip())
        name = self._paths.certificate
        # HAProxy that runs; Ray Serve gives each node's a directory of its own.
        for place in self._paths.haproxy.rglob("s"):
            if not place.is_socket():
                continue
            _told(place, f"set ssl cert {name} <<\n{lines}\n\n")
            answer = _told(place, f"commit ssl cert {name}\n")
            if _DONE not in answer:
                raise OSError(answer.strip().splitlines()[-1] if answer.strip() else "no answer")

    def _stamp(self) -> Stamp:
        found = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(found)


def _told(place: Path, command: str) -> str:
    """What HAProxy answers to one command; it then closes the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(str(place))
        connection.sendall(command.encode())
        answer = b""
        while len(answer) < _ANSWER_BYTES_MAX and (piece := connection.recv(_ANSWER_BYTES_MAX)):
            answer += piece
    return answer.decode(errors="replace")
