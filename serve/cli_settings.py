"""`tenancy settings`: what can be set.

It reads no setting of the environment, so that it also helps whoever has misspelt one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.settings import variables
from tenancy.data_isolation.serve.terminal import AsJson, note, print_json, print_table


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("settings")(settings)


def settings(as_json: AsJson = False) -> None:
    """List the variables that can be set, and what they are when they are not.

    A type of tenant has limits of its own: TENANCY_<TYPE>_<LIMIT>.
    """
    found = {name: _plain(value) for name, value in variables(Settings()).items()}
    if as_json:
        print_json({"settings": [{"variable": name, "default": found[name]} for name in found]})
        return
    print_table(("variable", "default"), list(found.items()))
    note(f"({len(found)} settings)")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
