"""Private keys and certificates in files, looked at before they are used."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from tenancy.data_isolation.core.errors import SettingError


def check_key_file(path: Path, option: str) -> None:
    """Refuse a private key that others than its owner can use, as libpq does (manual, 32.19.1).

    A key of root's may be readable by a group, for services that run as other users. Blocks.
    Raises `SettingError`, naming `option`.
    """
    found = _looked_at(path, option)
    allowed = 0o640 if found.st_uid == 0 else 0o600
    if found.st_uid not in (0, os.geteuid()):
        raise SettingError(
            f"{option}: the key {path} belongs to another user; make a copy that is yours"
        )
    if stat.S_IMODE(found.st_mode) & ~allowed & 0o777:
        raise SettingError(f"{option}: others can read the key {path}; run chmod 600 on it")


def check_certificate_file(path: Path, option: str) -> None:
    """Raise `SettingError`, naming `option`, when there is no such file. Blocks."""
    _looked_at(path, option)


def load_pair(
    context: ssl.SSLContext,
    certificate: Path,
    key: Path,
    *,
    options: tuple[str, str],
    password: str | None = None,
) -> None:
    """Give `context` a certificate and its key. Blocks.

    `options` are what they are called by. Raises `SettingError`.
    """
    check_certificate_file(certificate, options[0])
    check_key_file(key, options[1])
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: password or "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"{key} is not the key of the certificate {certificate}"
        else:
            why = f"{certificate} is no certificate, or {key} no key, in PEM; or it is encrypted"
        raise SettingError(f"{options[0]}, {options[1]}: {why}") from None
    except OSError as error:
        raise SettingError(
            f"{options[0]}, {options[1]}: cannot be read: {error.strerror}"
        ) from None


def load_authorities(context: ssl.SSLContext, path: Path, option: str) -> None:
    """Have `context` trust the certificates, or look at the revocations, of a file. Blocks.

    Raises `SettingError`, naming `option`.
    """
    check_certificate_file(path, option)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise SettingError(f"{option}: {path} holds no certificate in PEM") from None
    except OSError as error:
        raise SettingError(f"{option}: {path} cannot be read: {error.strerror}") from None


def _looked_at(path: Path, option: str) -> os.stat_result:
    try:
        found = path.stat()
    except OSError as error:
        raise SettingError(f"{option}: {path}: {(error.strerror or str(error)).lower()}") from None
    if not stat.S_ISREG(found.st_mode):
        raise SettingError(f"{option}: {path} is not a file")
    return found
