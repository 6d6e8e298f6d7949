"""`tenancy doctor`: is everything as it must be?"""

from __future__ import annotations

import asyncio
import dataclasses

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    AsJson,
    print_json,
    say,
)


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check the machine, the servers and the runtime. Exit status 1 when a check fails."""
    settings = Settings.from_env()
    # Imported late: it loads the drivers of the servers.
    from tenancy.data_isolation.serve.doctor import Check, Result, check_machine, check_servers

    def tell(check: Check) -> None:
        found.append(check)
        if not as_json:
            say(f"{check.result:<4}  {check.name}: {check.detail}")
            if check.remedy is not None:
                say(f"      -> {check.remedy}")

    async def ask_servers() -> None:
        async for check in check_servers(settings):
            tell(check)

    found: list[Check] = []
    for check in check_machine(settings):
        tell(check)
    asyncio.run(ask_servers())
    failed = any(check.result is Result.FAIL for check in found)
    if as_json:
        print_json({"ok": not failed, "checks": [dataclasses.asdict(item) for item in found]})
    if failed:
        raise typer.Exit(STATUS_ERROR)
