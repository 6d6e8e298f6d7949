"""The settings that a runtime was started with, for whoever starts it once more with others.

They are in `TENANCY_HOME/run/settings.json` (0600), as the variables had them: what a secret is can
be compared by its salted hash, and is neither written there nor told.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.servers_file import SERVERS_VARIABLE, said
from tenancy.data_isolation.core.settings import variables
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file
from tenancy.data_isolation.serve import replicas_file

_SALT: Final = "salt"
_VALUES: Final = "settings"
_SERVERS: Final = "servers"
_REPLICAS: Final = "replicas"
_PORT: Final = "TENANCY_HTTP_PORT"
_HOME: Final = "TENANCY_HOME"
_NOT_SET: Final = "not set"
#: What is not shown in a representation is a secret; the address of a key set can hold one.
_SECRETS: Final = frozenset(
    f"TENANCY_{item.name.upper()}" for item in dataclasses.fields(Settings) if not item.repr
) | {"TENANCY_JWT_JWKS"}


def settings_path(home: Path) -> Path:
    """Where the file is, under `TENANCY_HOME`."""
    return home / "run" / "settings.json"


def write_started(settings: Settings, path: Path) -> None:
    """Note the settings of the runtime that starts, and what the file of servers says.

    Raises `SettingError` for a file that cannot be read.
    """
    salt = secrets.token_hex(16)
    document = {
        _SALT: salt,
        _VALUES: _plain(settings, salt),
        _SERVERS: _servers(settings, salt),
        _REPLICAS: replicas_file.said(settings),
    }
    with file_errors(path):
        replace_file(path, json.dumps(document, indent=1).encode() + b"\n")


def differences(settings: Settings, path: Path, url: str | None) -> list[str]:
    """In what `settings` differ from those that the runtime at `url` was started with.

    One text for each variable, without secrets; none when it is not known what those were. Raises
    `SettingError` for a file of servers that cannot be read.
    """
    try:
        document = json.loads(path.read_text())
        there = dict(document[_VALUES].items())
        salt = str(document[_SALT])
        here = _plain(settings, salt)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if here[_PORT] == str(urlsplit(url or "").port):
        # Whoever asks for the port that it found has what he asks for.
        here[_PORT] = there.get(_PORT, here[_PORT])
    found = [
        _told(variable, there[variable], here[variable])
        # What only one of two releases knows cannot be compared.
        for variable in sorted(there.keys() & here.keys())
        if not _is_same(there[variable], here[variable])
    ]
    for variable, key, said_here in (
        (SERVERS_VARIABLE, _SERVERS, partial(_servers, settings, salt)),
        (replicas_file.REPLICAS_VARIABLE, _REPLICAS, partial(replicas_file.said, settings)),
    ):
        file = here[variable]
        # Of another file it is told already that it is another one.
        is_same_file = there.get(variable) == file and key in document
        if is_same_file and not _is_same(document[key], said_here()):
            found.append(f"{variable} ({file}) has been changed since it was read there")
    return found


def _told(variable: str, there: Any, here: Any) -> str:
    if variable in _SECRETS:
        match there, here:
            case None, _:
                return f"{variable} is {_NOT_SET} there, and is here"
            case _, None:
                return f"{variable} is set there, and not here"
            case _:
                return f"{variable} is another one there"
    return f"{variable} is {there or _NOT_SET} there, and {here or _NOT_SET} here"


def _is_same(there: Any, here: Any) -> bool:
    if there is None or here is None:
        return there is here
    return hmac.compare_digest(str(there).encode(), str(here).encode())


def _plain(settings: Settings, salt: str) -> dict[str, str | None]:
    """Every variable and its text; None when it has no value, and a hash for a secret."""
    values = variables(settings)
    del values[_HOME]
    return {
        variable: None if value is None else _text(variable, value, salt)
        for variable, value in values.items()
    }


def _text(variable: str, value: Any, salt: str) -> str:
    if variable in _SECRETS:
        return _digest(str(value), salt)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _servers(settings: Settings, salt: str) -> str | None:
    """A hash of what the file of servers says; None without a file."""
    text = said(settings)
    return None if text is None else _digest(text, salt)


def _digest(text: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}{text}".encode()).hexdigest()
