"""`tenancy demo`: the demonstration."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tenancy.data_isolation.core import IsolationLevel, Settings
from tenancy.data_isolation.serve.demo import run_demonstration
from tenancy.data_isolation.serve.demo_load import load_airline
from tenancy.data_isolation.serve.terminal import (
    STATUS_USAGE,
    AsJson,
    CommandError,
    print_fields,
    print_json,
)

_WIDTH_MIN = 100


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(demo)


def demo(
    load: Annotated[
        str | None,
        typer.Option(
            "--load",
            metavar="AIRLINE",
            help="Only load this airline (its two-letter code) into the runtime that is up.",
        ),
    ] = None,
    level: Annotated[
        IsolationLevel | None,
        typer.Option("--level", help="With --load: where its rows go; row when left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a year of flights for 16 airlines, ask, compare, move, trespass, and stop again.

    Works in a directory of its own under TENANCY_HOME, on a free port, next to whatever else runs.
    """
    if load is not None:
        _load(load, level or IsolationLevel.ROW, as_json)
        return
    if level is not None or as_json:
        raise CommandError("--level and --json go with --load", status=STATUS_USAGE)
    # The tables are wider than the 80 columns that a pipe is taken for.
    console = Console(width=max(_WIDTH_MIN, Console().width))
    status = run_demonstration(Settings.from_env().home, console=console)
    raise typer.Exit(status)


def _load(airline: str, level: IsolationLevel, as_json: bool) -> None:
    console = Console(stderr=True)
    done = load_airline(airline, level, settings=Settings.from_env(), console=console)
    if as_json:
        print_json(done)
        return
    print_fields(
        [
            ("tenant", done["tenant_id"]),
            ("airline", done["name"]),
            ("level", done["isolation_level"]),
            ("flights", f"{done['flights']:,}"),
            ("rows", f"{done['rows']:,}"),
            ("took", f"{done['seconds']} s"),
        ]
    )
