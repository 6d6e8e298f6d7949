"""`tenancy demo`: the demonstration."""

from __future__ import annotations

import typer
from rich.console import Console

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.demo import run_demonstration

_WIDTH_MIN = 100


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(demo)


def demo() -> None:
    """Load a year of flights for 16 airlines, ask, compare, trespass, and stop again.

    Works in a directory of its own under TENANCY_HOME, on a free port, next to whatever else runs.
    """
    # The tables are wider than the 80 columns that a pipe is taken for.
    console = Console(width=max(_WIDTH_MIN, Console().width))
    status = run_demonstration(Settings.from_env().home, console=console)
    raise typer.Exit(status)
