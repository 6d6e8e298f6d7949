"""`tenancy tenant export`: a tenant's rows as files."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import progress as bars
from rich.console import Console

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.export import Export, Progress
from tenancy.data_isolation.serve.fresh_directory import check_fresh
from tenancy.data_isolation.serve.row_file import file_name
from tenancy.data_isolation.serve.runtime_client import RuntimeClient
from tenancy.data_isolation.serve.terminal import (
    STATUS_INTERRUPTED,
    AsJson,
    CommandError,
    print_json,
    print_table,
    say,
)


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export")(export)


def export(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The directory to make; it may exist empty."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Write all rows of a tenant's tables to a new directory.

    It gets <table>.ndjson for each table, one JSON object per row in the order of the primary key,
    and manifest.json with columns, numbers of rows and SHA-256. It appears complete or not at all.

    The tenant stays in use meanwhile: a row that is there throughout and does not change is in the
    export exactly once; rows that are written meanwhile may be in it or not.
    """
    target = check_fresh(output)
    try:
        with (
            _interruptible(),
            RuntimeClient.connect(Settings.from_env()) as client,
            _bar() as report,
        ):
            manifest = Export(client, tenant, report=report).write(target)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted; nothing was left at {target}", status=STATUS_INTERRUPTED
        ) from None
    if as_json:
        print_json({**manifest, "directory": str(target)})
        return
    columns = ("name", "rows", "bytes")
    print_table(
        ("table", *columns[1:]),
        [[table[column] for column in columns] for table in manifest["tables"]],
    )
    say(f"exported to {target}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the signals that would end this process end the block like Ctrl-C does.

    Otherwise a part of the tenant's rows would stay behind on the disk.
    """
    taken = []
    # Python takes signals in its main thread alone. One that is ignored stays so (nohup).
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, signal.SIGHUP)
        taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error that shows what it is told, where someone can see it."""
    with bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rows]:,} rows"),
        bars.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=None, rows=0)

        def report(found: Progress) -> None:
            progress.update(
                task,
                # A name of a file has no control characters.
                description=file_name(found.table),
                completed=found.position,
                total=found.tables,
                rows=found.rows,
            )

        yield report
