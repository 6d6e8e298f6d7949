"""A random secret that is kept in a file of its own."""

from __future__ import annotations

import secrets
from pathlib import Path

from tenancy.data_isolation.engine.state_directory import file_errors, replace_file

_SECRET_BYTES = 24


def kept_secret(path: Path) -> str:
    """The secret in the file `path`; a fresh one of 192 random bits when there is no such file.

    The file has mode 0600 and its directory 0700. A secret has only letters, digits, `-` and `_`,
    so that it needs no quoting in a URL or a configuration file. Blocks. Not safe for two who make
    the same secret at once: they hold a lock meanwhile.
    """
    with file_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and (text := path.read_text().strip()):
            path.chmod(0o600)
            return text
        text = secrets.token_urlsafe(_SECRET_BYTES)
        replace_file(path, text.encode() + b"\n")
        return text
