"""`tenancy tenant`: tenants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tenancy.data_isolation.core import IsolationLevel, Settings, TenantType
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve import cli_export, cli_move, cli_proposal
from tenancy.data_isolation.serve.json_documents import parse_json
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import (
    STATUS_USAGE,
    AsJson,
    CommandError,
    confirmed,
    note,
    print_fields,
    print_json,
    print_table,
    say,
)

_DEPTH_MAX = 64
_PAGE = 500
_PATH = "/v1/tenants"
#: Erasing a database with much in it takes its time.
_ERASE_TIMEOUT_S = 600.0

app = typer.Typer(no_args_is_help=True)
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")]


@app.command()
def create(
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="The tenant's id.")
    ] = None,
    kind: Annotated[
        TenantType, typer.Option("--type", help="What the customer pays for.")
    ] = TenantType.STANDARD,
    level: Annotated[
        IsolationLevel | None,
        typer.Option("--level", help="How the data is kept apart; chosen by rules when left out."),
    ] = None,
    region: Annotated[
        str | None, typer.Option("--region", help="Where the data has to be.")
    ] = None,
    compliance: Annotated[
        list[str] | None,
        typer.Option("--compliance", help="A regime such as hipaa; can be repeated."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", help="Facts for the choice, as a JSON object.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Make the tenants of a CSV file; `-` is standard input."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a tenant, or the many of a file.

    The first line of a file names its columns: tenant_id, and where they are wanted tenant_type,
    isolation_level, region, compliance (with ; between regimes) and metadata (JSON). Where a line
    says nothing, the options hold. A file can be given again: tenants that are there with the same
    properties are left as they are. Exit status 1 when a line came to nothing.
    """
    body: dict[str, Any] = {"tenant_type": kind.value}
    if level is not None:
        body["isolation_level"] = level.value
    if region is not None:
        body["region"] = region
    if compliance:
        body["compliance"] = compliance
    if metadata is not None:
        body["metadata"] = _object(metadata)
    if (tenant is None) == (file is None):
        raise CommandError("name one tenant, or give a file with --from", status=STATUS_USAGE)
    if file is not None:
        # Imported late: no other command needs it.
        from tenancy.data_isolation.serve.cli_tenant_file import create_from_file

        create_from_file(file, body, as_json=as_json)
        return
    body["tenant_id"] = tenant
    with RuntimeClient.connect(Settings.from_env()) as client:
        made = client.post(_PATH, body)
    if as_json:
        print_json(made)
        return
    _print(made)
    for reason in made["reasons"]:
        say(f"- {reason}")


@app.command("list")
def list_tenants(
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many; all when left out.")
    ] = None,
    after: Annotated[str | None, typer.Option("--after", help="Begin after this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tenants in the order of their ids."""
    found: list[dict[str, Any]] = []
    following = after
    with RuntimeClient.connect(Settings.from_env()) as client:
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page = client.get(_PATH, after=following, limit=wanted)
            found += page["tenants"]
            following = page["next"]
            if following is None:
                break
    if as_json:
        print_json({"tenants": found, "next": following})
        return
    columns = (
        "tenant_id",
        "tenant_type",
        "status",
        "isolation_level",
        "strategy",
        "region",
        "compliance",
    )
    print_table(columns, [[item[name] for name in columns] for item in found])
    note(f"({len(found)} tenant{'' if len(found) == 1 else 's'})")


@app.command()
def show(tenant: TenantName, as_json: AsJson = False) -> None:
    """Show a tenant."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.get(f"{_PATH}/{segment(tenant)}"), as_json)


@app.command()
def suspend(tenant: TenantName, as_json: AsJson = False) -> None:
    """Refuse a tenant's operations from now on."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.post(f"{_PATH}/{segment(tenant)}/suspend"), as_json)


@app.command()
def resume(tenant: TenantName, as_json: AsJson = False) -> None:
    """Take a suspended tenant's operations again."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.post(f"{_PATH}/{segment(tenant)}/resume"), as_json)


@app.command("delete", hidden=True)
@app.command()
def erase(
    tenant: TenantName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a tenant and all its data."""
    confirmed(f"Erase tenant {tenant} and all its data?", yes=yes)
    with RuntimeClient.connect(Settings.from_env()) as client:
        client.delete(f"{_PATH}/{segment(tenant)}", timeout_s=_ERASE_TIMEOUT_S)
    if as_json:
        print_json({"tenant_id": tenant, "erased": True, "deleted": True})
    else:
        say(f"tenant {tenant} is erased")


cli_export.add_commands(app)
cli_move.add_commands(app)
cli_proposal.add_commands(app)


def _tell(tenant: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(tenant)
    else:
        _print(tenant)


def _print(tenant: dict[str, Any]) -> None:
    placement = tenant["placement"] or {}
    fields = [
        (name, tenant[name])
        for name in (
            "tenant_id",
            "tenant_type",
            "status",
            "isolation_level",
            "strategy",
            "region",
            "compliance",
        )
    ]
    fields += [(name, placement.get(name)) for name in ("server", "epoch")]
    # A runtime of an earlier release does not tell of them.
    fields += [(name, tenant[name]) for name in ("results_kept", "pinned") if name in tenant]
    print_fields(fields)


def _object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text.encode("utf-8", "surrogateescape"), depth_max=_DEPTH_MAX)
    except InvalidInputError as error:
        raise CommandError(
            f"--metadata: {error.detail.replace('the body', 'it')}", status=STATUS_USAGE
        ) from None
    if not isinstance(value, dict):
        raise CommandError("--metadata must be a JSON object", status=STATUS_USAGE)
    return value
