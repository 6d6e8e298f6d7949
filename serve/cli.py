"""The commands of `tenancy`; `command` is what starts them.

Exit statuses: 0 done, 1 an error, 2 wrong usage, 130 interrupted; a command about moves has 4 when
its `--timeout` is over while the move goes on, and `tenancy status` 3 for stopped and 4 for
starting, stopping or degraded.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tenancy.data_isolation.core import TenancyError
from tenancy.data_isolation.serve import (
    cli_data,
    cli_demo,
    cli_doctor,
    cli_key,
    cli_metrics,
    cli_move,
    cli_operation,
    cli_proposal,
    cli_runtime,
    cli_schema,
    cli_settings,
    cli_tenant,
)
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    STATUS_INTERRUPTED,
    STATUS_USAGE,
    CommandError,
    note,
    print_error,
    say,
)

app = typer.Typer(
    name="tenancy",
    help="Keeps the data of many tenants apart on PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cli_runtime.add_commands(app)
cli_doctor.add_commands(app)
cli_settings.add_commands(app)
cli_data.add_commands(app)
cli_demo.add_commands(app)
app.add_typer(cli_tenant.app, name="tenant", help="Make, list and change tenants.")
app.add_typer(cli_move.app, name="move", help="Moves of tenants that were started.")
app.add_typer(cli_proposal.app, name="proposal", help="Moves that the orchestrator proposes.")
app.add_typer(cli_schema.app, name="schema", help="The schema that all tenants have.")
app.add_typer(cli_key.app, name="key", help="API keys.")
app.add_typer(cli_metrics.app, name="metrics", help="What tenants' operations take.")
app.add_typer(cli_operation.app, name="operation", help="Named operations.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"tenancy {version('tenancy-data-isolation')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keeps the data of many tenants apart on PostgreSQL.

    State lives under TENANCY_HOME (default .tenancy); settings are TENANCY_* variables.
    """


def run(arguments: list[str]) -> int:
    """Run the command with these arguments; the exit status. Never a traceback."""
    try:
        status = app(args=arguments, prog_name="tenancy", standalone_mode=False)
    except CommandError as error:
        print_error(str(error), error.hint)
        return error.status
    except TenancyError as error:
        print_error(error.detail)
        return STATUS_ERROR
    except typer.Abort:
        # At a question: nothing was asked of the runtime yet.
        print_error("interrupted")
        return STATUS_INTERRUPTED
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing may be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _told(error)
    # Typer ends Ctrl-C with this status and without a word; no command of ours gives it otherwise.
    if status == STATUS_INTERRUPTED:
        return _interrupted()
    return status if isinstance(status, int) else 0


def _interrupted() -> int:
    """Tell of Ctrl-C; the exit status."""
    print_error(
        "interrupted",
        "what was asked of the runtime may go on there; look with `tenancy status` and "
        "`tenancy schema status`",
    )
    return STATUS_INTERRUPTED


def _told(error: Exception) -> int:
    """Tell of an error that is not one of ours; the exit status.

    Wrong usage is known by what its class can do: the class has another home in each version.
    """
    text = getattr(error, "format_message", None)
    if not callable(text):
        print_error(
            f"something that was not foreseen: {type(error).__name__}: {error}",
            "`tenancy doctor` checks the set-up",
        )
        return STATUS_ERROR
    if type(error).__name__ == "NoArgsIsHelpError":
        note(text())
        return STATUS_USAGE
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "tenancy"
    print_error(text(), f"`{command} --help` lists what there is")
    return int(getattr(error, "exit_code", STATUS_USAGE))


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
