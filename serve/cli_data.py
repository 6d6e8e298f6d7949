"""`tenancy sql`: a statement of a tenant."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.json_documents import parse_json
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import (
    STATUS_USAGE,
    AsJson,
    CommandError,
    note,
    print_json,
    print_table,
)

_DEPTH_MAX = 64


def add_commands(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("sql")(sql)


def sql(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")],
    query: Annotated[
        str, typer.Argument(metavar="SQL", help="One statement; `-` reads it from standard input.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="The text of $1, then of $2, ...; can be repeated."),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            "--params", help="All as JSON: a list for $1, ... or an object for :name placeholders."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Do a write once under this key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one statement as a tenant."""
    text = sys.stdin.read() if query == "-" else query
    values = _values(param, params)
    with RuntimeClient.connect(Settings.from_env()) as client:
        result = client.post(
            f"/v1/tenants/{segment(tenant)}/query",
            {"query": text, "params": values},
            idempotency_key=idempotency_key,
        )
    if as_json:
        print_json(result)
        return
    if result["columns"]:
        print_table([column["name"] for column in result["columns"]], result["rows"])
    count = result["row_count"]
    note(f"({count} row{'' if count == 1 else 's'})")


def _values(param: list[str] | None, params: str | None) -> Any:
    if params is None:
        return param or []
    if param:
        raise CommandError("--param and --params exclude each other", status=STATUS_USAGE)
    try:
        values = parse_json(params.encode("utf-8", "surrogateescape"), depth_max=_DEPTH_MAX)
    except InvalidInputError as error:
        raise CommandError(
            f"--params: {error.detail.replace('the body', 'it')}", status=STATUS_USAGE
        ) from None
    if not isinstance(values, list | dict):
        raise CommandError("--params must be a JSON list or object", status=STATUS_USAGE)
    return values
