"""`tenancy operation`: named operations."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import AsJson, print_json, print_table, say

_PATH = "/v1/operations"

app = typer.Typer(no_args_is_help=True)
OperationName = Annotated[str, typer.Argument(metavar="NAME", help="The operation's name.")]


@app.command("set")
def set_operation(
    name: OperationName,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One statement; `-` reads it from standard input.")
    ],
    as_json: AsJson = False,
) -> None:
    """Let a name stand for SQL, for all tenants."""
    text = sys.stdin.read() if sql == "-" else sql
    with RuntimeClient.connect(Settings.from_env()) as client:
        made = client.put(f"{_PATH}/{segment(name)}", {"sql": text})
    if as_json:
        print_json(made)
    else:
        say(f"operation {made['name']} is set")


@app.command("list")
def list_operations(as_json: AsJson = False) -> None:
    """List named operations."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        found = client.get(_PATH)
    if as_json:
        print_json(found)
    else:
        print_table(("name", "sql"), [[item["name"], item["sql"]] for item in found["operations"]])


@app.command()
def remove(name: OperationName, as_json: AsJson = False) -> None:
    """Remove a named operation."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        client.delete(f"{_PATH}/{segment(name)}")
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        say(f"operation {name} is removed")
