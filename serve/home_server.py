"""Which PostgreSQL server a `TENANCY_HOME` belongs to, so that it is not used with another one.

A home holds the master key and the administrator's key of one installation. With a forgotten
`TENANCY_POSTGRES_DSN` it would start an empty embedded server, as if all tenants were gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SetupError
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file

_EMBEDDED: Final = "the embedded server"
_DEFAULT_PORT: Final = 5432


class HomeServer:
    """The note in a home that says which server it belongs to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.home / "server"

    def check(self) -> None:
        """Raise `SetupError` when the home was set up with another server. Blocks."""
        known, wanted = self._known(), self._wanted()
        if known is not None and known != wanted:
            raise SetupError(
                f"{self._settings.home} was set up with {known}, and now {wanted} is to be used: "
                "set TENANCY_POSTGRES_DSN as it was, or TENANCY_HOME to another directory; if it "
                f"is the same server at another address, remove {self._path} first"
            )

    def note(self) -> None:
        """Remember the server, once it has been set up. Blocks."""
        with file_errors(self._path):
            replace_file(self._path, self._wanted().encode() + b"\n")

    def _known(self) -> str | None:
        with file_errors(self._path):
            if self._path.exists():
                return self._path.read_text().strip()
        # A home of an earlier release has no note.
        data: Path = self._settings.home / "postgres" / "data"
        return _EMBEDDED if data.is_dir() else None

    def _wanted(self) -> str:
        dsn = self._settings.postgres_dsn
        if dsn is None:
            return _EMBEDDED
        # Without user and password, which may change; a DSN that cannot be read is told later.
        place = urlsplit(dsn).netloc.rpartition("@")[2] or "localhost"
        if ":" not in place.rpartition("]")[2]:
            place = f"{place}:{_DEFAULT_PORT}"
        return f"the server at {place}, database {self._settings.database}"
