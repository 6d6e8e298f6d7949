"""`tenancy proposal`: what the orchestrator proposes, and deciding about it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.move import PRIORITY_RANGE
from tenancy.data_isolation.core.proposal import ProposalState
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import (
    STATUS_USAGE,
    AsJson,
    CommandError,
    note,
    print_fields,
    print_json,
    print_table,
    say,
    visible,
)

_PATH: Final = "/v1/proposals"
_PAGE: Final = 500
#: Planning counts the tenant's rows.
_START_TIMEOUT_S: Final = 600.0
_PRIORITY_MIN, _PRIORITY_MAX = PRIORITY_RANGE

ProposalId = Annotated[str, typer.Argument(metavar="PROPOSAL", help="The proposal's id, p_...")]

app = typer.Typer(no_args_is_help=True)


def add_commands(tenants: typer.Typer) -> None:
    """Add `proposals` to the commands of tenants."""
    tenants.command("proposals")(list_proposals)


@app.command("list")
def list_proposals(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant alone.")] = None,
    state: Annotated[
        ProposalState | None, typer.Option("--state", help="In this state; proposed if left out.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
    as_json: AsJson = False,
) -> None:
    """List proposals to move tenants, the newest first."""
    if everything and state is not None:
        raise CommandError("--state does not go with --all", status=STATUS_USAGE)
    wanted = None if everything else (state or ProposalState.PROPOSED).value
    found: list[dict[str, Any]] = []
    following: str | None = None
    with RuntimeClient.connect(Settings.from_env()) as client:
        while True:
            page = client.get(_PATH, tenant_id=tenant, state=wanted, after=following, limit=_PAGE)
            found += page["proposals"]
            following = page["next"]
            if following is None:
                break
    if as_json:
        print_json({"proposals": found, "orchestration": page["orchestration"]})
        return
    columns = ("proposal_id", "tenant_id", "state", "action", "from", "to", "why")
    print_table(columns, [_row(item) for item in found])
    note(f"({len(found)} proposal{'' if len(found) == 1 else 's'}; {_mode(page['orchestration'])})")


@app.command()
def show(proposal_id: ProposalId, as_json: AsJson = False) -> None:
    """Show a proposal: why, what was measured, and what was done about it."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.get(f"{_PATH}/{segment(proposal_id)}"), as_json)


@app.command()
def accept(
    proposal_id: ProposalId,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority",
            min=_PRIORITY_MIN,
            max=_PRIORITY_MAX,
            help="Of the moves that wait, the highest goes first; 0 when left out.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start the move that is proposed, after planning it; returns when it is started."""
    body = {} if priority is None else {"priority": priority}
    with RuntimeClient.connect(Settings.from_env()) as client:
        path = f"{_PATH}/{segment(proposal_id)}/accept"
        move = client.post(path, body, timeout_s=_START_TIMEOUT_S)
    if as_json:
        print_json(move)
        return
    say(f"{move['move_id']} is started")
    say(f"next: tenancy move show {move['move_id']}")


@app.command()
def dismiss(
    proposal_id: ProposalId,
    reason: Annotated[str, typer.Option("--reason", help="Why not; it is kept.")] = "",
    as_json: AsJson = False,
) -> None:
    """Turn a proposal down; the tenant gets no other for a while."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        path = f"{_PATH}/{segment(proposal_id)}/dismiss"
        _tell(client.post(path, {"reason": reason}), as_json)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    measured = found["evidence"]
    fields = [
        ("proposal", found["proposal_id"]),
        ("tenant", found["tenant_id"]),
        ("state", found["state"]),
        ("action", found["action"]),
        ("from", found["from_level"]),
        ("to", _target(found)),
        ("why", "; ".join(found["reasons"])),
        ("load", f"{measured['operations_per_s']:,} operations/s"),
        ("latency", None if measured["latency_ms"] is None else f"{measured['latency_ms']:g} ms"),
        ("rows", _rows(measured)),
        ("move", found["move_id"]),
    ]
    print_fields([(name, value) for name, value in fields if value is not None])
    say("")
    columns = ("at", "act", "by", "reason")
    print_table(columns, [[item[name] for name in columns] for item in found["acts"]])
    if found["state"] == "proposed" and found["movable"]:
        name = visible(found["proposal_id"])
        say(f"next: tenancy proposal accept {name}, or tenancy proposal dismiss {name}")


def _rows(measured: dict[str, Any]) -> str | None:
    if measured["rows"] is None:
        return None
    more = "" if measured["counted_completely"] else " or more"
    return f"{measured['rows']:,}{more}"


def _row(found: dict[str, Any]) -> list[Any]:
    return [
        *(found[name] for name in ("proposal_id", "tenant_id", "state", "action", "from_level")),
        _target(found),
        "; ".join(found["reasons"]),
    ]


def _target(found: dict[str, Any]) -> str:
    level, region = found["isolation_level"], found["region"]
    if region is None:
        return str(level)
    return f"region {region}" if level is None else f"{level} in region {region}"


def _mode(found: dict[str, Any]) -> str:
    if found["mode"] == "off":
        return "TENANCY_ORCHESTRATION is off"
    if not found["deciding"]:
        return "nobody looks after tenants' levels now"
    moves = "moves tenants by itself" if found["mode"] == "automatic" else "proposes only"
    return f"the orchestrator {moves}"
