"""The file of further PostgreSQL servers, beside the first one, which has the catalog.

TOML: `region` is that of the first server, and each `[[server]]` has `name` and `dsn`, and may have
`region` and libpq's TLS parameters, as `ServerConfig` has them. Paths in it are relative to the
file. It has passwords in it, so nobody but its owner may read it.

Reading is strict: an unknown key or a value of another kind is a `SettingError` that names it.
"""

from __future__ import annotations

import dataclasses
import json
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tenancy.data_isolation.core.errors import InvalidInputError, SettingError
from tenancy.data_isolation.core.identifiers import parse_word
from tenancy.data_isolation.core.settings import ServerConfig, Settings

SERVERS_VARIABLE: Final = "TENANCY_POSTGRES_SERVERS_FILE"
_KEYS: Final = frozenset(item.name for item in dataclasses.fields(ServerConfig))
_PATHS: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def all_servers(settings: Settings, first: ServerConfig) -> tuple[ServerConfig, ...]:
    """`first`, in its region, and the servers of the settings' file. Reads the file.

    Raises `SettingError` for a file that cannot be used.
    """
    path = settings.postgres_servers_file
    if path is None:
        return (first,)
    document = _document(path)
    _check_keys(path, "it", document, frozenset({"region", "server"}))
    region = document.get("region", first.region)
    if region is not None:
        try:
            parse_word(region, "region")
        except InvalidInputError as error:
            raise _wrong(path, error.detail) from None
    listed = document.get("server", [])
    if not isinstance(listed, list):
        raise _wrong(path, "server is not a list of tables; begin each server with [[server]]")
    servers = [dataclasses.replace(first, region=region)]
    for number, item in enumerate(listed, start=1):
        server = _server(path, f"server {number}", item)
        if server.name in {known.name for known in servers}:
            raise _wrong(path, f"there are two servers that are called {server.name!r}")
        servers.append(server)
    return tuple(servers)


def said(settings: Settings) -> str | None:
    """What the settings' file says, to compare with what it says later; None without a file.

    It has secrets in it. Reads the file; `SettingError`.
    """
    path = settings.postgres_servers_file
    if path is None:
        return None
    # Comments and the order of keys mean nothing; TOML has dates, which JSON has not.
    return json.dumps(_document(path), sort_keys=True, default=str)


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _wrong(path, f"others may read it, and it has passwords; chmod 600 {path}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, f"it cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise _wrong(path, f"it is not valid TOML: {error}") from None


def _server(path: Path, what: str, item: Any) -> ServerConfig:
    if not isinstance(item, dict):
        raise _wrong(path, f"{what} is not a table; begin it with [[server]]")
    _check_keys(path, what, item, _KEYS)
    for key in ("name", "dsn"):
        if not item.get(key):
            raise _wrong(path, f"{what} has no {key}")
    for key, value in item.items():
        if not isinstance(value, str):
            # The value could be a part of a secret.
            raise _wrong(path, f"{key} of {what} is not a text")
    try:
        parse_word(item["name"], "server")
        if "region" in item:
            parse_word(item["region"], "region")
    except InvalidInputError as error:
        raise _wrong(path, error.detail) from None
    # A path that is absolute stays so; `system` is a word of libpq's.
    places = {
        key: path.parent / item[key] for key in _PATHS if item.get(key) not in (None, "system")
    }
    return ServerConfig(**(item | places))


def _check_keys(path: Path, what: str, item: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(item.keys() - known)
    if unknown:
        raise _wrong(path, f"{what} has {unknown[0]!r}; there are {', '.join(sorted(known))}")


def _wrong(path: Path, problem: str) -> SettingError:
    return SettingError(f"{SERVERS_VARIABLE} ({path}): {problem}")
