"""`tenancy settings`: what can be set, and what is wrong with what is set here.

Nothing that is wrong keeps it from listing, so that it helps whoever has misspelt a name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.setting_names import PREFIX
from tenancy.data_isolation.core.settings import secret_variables, variables
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    AsJson,
    note,
    print_error,
    print_json,
    print_table,
)


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("settings")(settings)


def settings(as_json: AsJson = False) -> None:
    """List the variables that can be set, what they are when they are not, and what is set here.

    A type of tenant has limits of its own: TENANCY_<TYPE>_<LIMIT>. A runtime that is up
    keeps what was set when it was started. Exit status 1 when something is set that no other
    command would take: a name that there is not, or a value that cannot be.
    """
    found = [
        {"variable": name, "default": _plain(value), "set": _told(name)}
        for name, value in variables(Settings()).items()
    ]
    wrong = problems(os.environ)
    if as_json:
        print_json({"settings": found, "problems": wrong})
    else:
        print_table(("variable", "default", "set here"), [tuple(item.values()) for item in found])
        changed = sum(item["set"] is not None for item in found)
        note(f"({len(found)} settings, {changed} set here)")
    for text in wrong:
        print_error(text)
    if wrong:
        raise typer.Exit(STATUS_ERROR)


def problems(env: Mapping[str, str]) -> list[str]:
    """What is wrong with each of our variables in `env`, or else with all of them together."""
    ours = {name: text for name, text in sorted(env.items()) if name.startswith(PREFIX)}
    of_each = [_refused({name: text}) for name, text in ours.items()]
    return [text for text in of_each if text] or [text for text in [_refused(ours)] if text]


def _refused(env: Mapping[str, str]) -> str | None:
    """Why a command would not start with these variables. What needs others besides is no reason
    as long as there is only one.
    """
    try:
        settings = Settings.from_env(env)
        if len(env) != 1:
            settings.check_levels()
            settings.postgres_server()
    except SettingError as error:
        return error.detail
    return None


def _told(name: str) -> str | None:
    """What a variable is set to, unless that is a secret or may hold one."""
    value = os.environ.get(name)
    return value if value is None or name not in secret_variables() else "(not shown)"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
