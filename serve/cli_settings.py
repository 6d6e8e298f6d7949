"""`tenancy settings`: what can be set.

It reads no setting of the environment, so that it also helps whoever has misspelt one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.settings import secret_variables, variables
from tenancy.data_isolation.serve.terminal import AsJson, note, print_json, print_table


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("settings")(settings)


def settings(as_json: AsJson = False) -> None:
    """List the variables that can be set, what they are when they are not, and what is set here.

    A type of tenant has limits of its own: TENANCY_<TYPE>_<LIMIT>. A runtime that is up
    keeps what was set when it was started.
    """
    found = [
        {"variable": name, "default": _plain(value), "set": _told(name)}
        for name, value in variables(Settings()).items()
    ]
    if as_json:
        print_json({"settings": found})
        return
    print_table(("variable", "default", "set here"), [tuple(item.values()) for item in found])
    changed = sum(item["set"] is not None for item in found)
    note(f"({len(found)} settings, {changed} set here)")


def _told(name: str) -> str | None:
    """What a variable is set to, unless that is a secret or may hold one."""
    value = os.environ.get(name)
    return value if value is None or name not in secret_variables() else "(not shown)"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
