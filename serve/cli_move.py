"""`tenancy tenant move` and `tenancy move`: moves of tenants.

A move is carried out by the runtime. These commands start it, watch it and decide about it; when
one of them ends, for whatever reason, the move goes on.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Annotated, Any, Final

import typer

from tenancy.data_isolation.core import IsolationLevel, Settings
from tenancy.data_isolation.core.move import PRIORITY_RANGE
from tenancy.data_isolation.serve.move_follower import (
    MOVES_PATH,
    OPEN,
    RATE_ROWS_MIN,
    SETTLED,
    MoveFollower,
    TimeOverError,
    asking,
)
from tenancy.data_isolation.serve.move_words import (
    at_words,
    backlog_words,
    bytes_words,
    next_step,
    place_words,
    rate_words,
    seconds_words,
    time_left,
    words,
)
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    STATUS_USAGE,
    AsJson,
    CommandError,
    Timeout,
    confirmed,
    note,
    print_fields,
    print_json,
    print_table,
    say,
    visible,
)

_PAGE: Final = 500
#: Planning counts the tenant's rows.
_START_TIMEOUT_S: Final = 600.0
_PRIORITY_MIN, _PRIORITY_MAX = PRIORITY_RANGE

MoveId = Annotated[str, typer.Argument(metavar="MOVE", help="The move's id, m_...")]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until it is done, and show how far it is.")
]

app = typer.Typer(no_args_is_help=True)


def add_commands(tenants: typer.Typer) -> None:
    """Add `move` to the commands of tenants."""
    tenants.command("move")(move)


def move(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")],
    level: Annotated[
        IsolationLevel | None, typer.Option("--to", help="How the data shall be kept apart.")
    ] = None,
    server: Annotated[str | None, typer.Option("--server", help="The server to go to.")] = None,
    region: Annotated[
        str | None, typer.Option("--region", help="The region of the server to go to.")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority",
            min=_PRIORITY_MIN,
            max=_PRIORITY_MAX,
            help="Of the moves that wait, the highest goes first; 0 when left out.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would do, and start nothing.")
    ] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Confirm it as soon as it is open.")
    ] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Move a tenant to another isolation level, server or region while it is in use.

    Waits until the move is open: the tenant works at the new place then, and the move can be
    confirmed or rolled back. With --dry-run the exit status is 1 when the move is not possible.
    Exit status 4 when the time of --timeout, which counts from the start of the move, is over; the
    move goes on.
    """
    if level is None and server is None and region is None:
        raise CommandError("say where to: --to, --server or --region", status=STATUS_USAGE)
    _check_together(dry_run=dry_run, confirm=confirm, wait=wait, timeout=timeout, priority=priority)
    given = {
        "isolation_level": level and level.value,
        "server": server,
        "region": region,
        "priority": priority,
    }
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    path = f"/v1/tenants/{segment(tenant)}/moves"
    with RuntimeClient.connect(Settings.from_env()) as client:
        if dry_run:
            plan = client.post(path, body | {"dry_run": True}, timeout_s=_START_TIMEOUT_S)
            _tell_plan(plan, as_json)
            return
        with _starting(tenant, confirm=confirm):
            found = client.post(path, body, timeout_s=_START_TIMEOUT_S)
        if wait:
            follower = MoveFollower(client, timeout_s=timeout, confirm=confirm)
            found = _followed(follower, found, OPEN, as_json=as_json)
    _tell(found, as_json)
    _check_end(found, {"confirmed"})


def _check_together(
    *, dry_run: bool, confirm: bool, wait: bool, timeout: float | None, priority: int | None
) -> None:
    """Refuse options that mean nothing beside each other."""
    given = {
        "--confirm": confirm,
        "--no-wait": not wait,
        "--timeout": timeout is not None,
        "--priority": priority is not None,
    }
    if dry_run:
        for name, is_given in given.items():
            if is_given:
                raise CommandError(f"{name} does not go with --dry-run", status=STATUS_USAGE)
    if confirm and not wait:
        raise CommandError("--confirm does not go with --no-wait", status=STATUS_USAGE)
    _check_wait(wait, timeout)


def _check_wait(wait: bool, timeout: float | None) -> None:
    """Refuse a limit of a wait that there is not."""
    if timeout is not None and not wait:
        raise CommandError("--timeout does not go with --no-wait", status=STATUS_USAGE)


def _starting(tenant: str, *, confirm: bool) -> AbstractContextManager[None]:
    """Say what becomes of the move when Ctrl-C comes before it has an id."""
    look, then = f"tenancy move list --tenant {visible(tenant)} --unsettled", ""
    if confirm:
        look += "; once it is open: tenancy move confirm MOVE"
        then = ", and it is NOT confirmed"
    return asking(f"a move of tenant {visible(tenant)} was started", look, then)


@app.command("list")
def list_moves(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant alone.")] = None,
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Only those of which something is left to do.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many; all when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List moves, the newest first."""
    found: list[dict[str, Any]] = []
    following: str | None = None
    with RuntimeClient.connect(Settings.from_env()) as client:
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page = client.get(
                MOVES_PATH,
                tenant_id=tenant,
                after=following,
                limit=wanted,
                unsettled="true" if unsettled else None,
            )
            found += page["moves"]
            following = page["next"]
            if following is None:
                break
    if as_json:
        print_json({"moves": found, "next": following})
        return
    columns = (
        *("move_id", "tenant_id", "state", "phase", "from", "to", "tenant at", "rows"),
        "created_at",
    )
    print_table(columns, [_row(item) for item in found])
    note(f"({len(found)} move{'' if len(found) == 1 else 's'})")


@app.command()
def show(move_id: MoveId, as_json: AsJson = False) -> None:
    """Show a move: how far it has come, and the proof of it."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        found = client.get(f"{MOVES_PATH}/{segment(move_id)}")
    if as_json:
        print_json(found)
        return
    _print(found)
    _print_report(found["report"])


@app.command()
def watch(move_id: MoveId, timeout: Timeout = None, as_json: AsJson = False) -> None:
    """Follow a move until it is open, or has come to an end."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        found = client.get(f"{MOVES_PATH}/{segment(move_id)}")
        follower = MoveFollower(client, timeout_s=timeout)
        found = _followed(follower, found, OPEN, as_json=as_json)
    _tell(found, as_json)
    _check_end(found, {"confirmed"})


@app.command("confirm")
def confirm_move(
    move_id: MoveId, wait: Wait = True, timeout: Timeout = None, as_json: AsJson = False
) -> None:
    """Let the tenant stay where it is now, and take away what is at its old place."""
    _ask(move_id, "confirm", {"confirmed"}, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def rollback(
    move_id: MoveId, wait: Wait = True, timeout: Timeout = None, as_json: AsJson = False
) -> None:
    """Bring the tenant back to its old place, with all that it has written since."""
    _ask(move_id, "rollback", {"rolled_back"}, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def cancel(
    move_id: MoveId, wait: Wait = True, timeout: Timeout = None, as_json: AsJson = False
) -> None:
    """Give a move up that is not open yet; the tenant stays where it is."""
    # When it was too late the move is open, and stays so until somebody decides.
    found = _ask(
        move_id,
        "cancel",
        {"cancelled"},
        wait=wait,
        timeout=timeout,
        as_json=as_json,
        until=OPEN,
    )
    if found["phase"] == "open":
        raise CommandError(
            f"too late to cancel: move {found['move_id']} is open, and the tenant works at its new "
            "place; roll it back instead",
            f"tenancy move rollback {found['move_id']}",
        )


@app.command()
def abandon(
    move_id: MoveId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Settle a move of which a server is lost for good: the one that the tenant is not at.

    Nothing is taken away there, and an open move cannot be rolled back any more.
    """
    _check_wait(wait, timeout)
    confirmed(f"Is the server that move {move_id} waits for lost for good?", yes=yes)
    _ask(move_id, "abandon", None, wait=wait, timeout=timeout, as_json=as_json)


@app.command()
def pause(move_id: MoveId, as_json: AsJson = False) -> None:
    """Let a move stand still; the tenant goes on working."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.post(f"{MOVES_PATH}/{segment(move_id)}/pause"), as_json)


@app.command()
def resume(move_id: MoveId, as_json: AsJson = False) -> None:
    """Let a move that was paused go on."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        _tell(client.post(f"{MOVES_PATH}/{segment(move_id)}/resume"), as_json)


def _ask(
    move_id: str,
    what: str,
    ends: Collection[str] | None,
    *,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    until: Collection[str] = SETTLED,
) -> dict[str, Any]:
    """Ask something of a move, wait until it is in a phase of `until`, and tell how it is then.

    `ends` are the states that are no error; None = all.
    """
    _check_wait(wait, timeout)
    with RuntimeClient.connect(Settings.from_env()) as client:
        named = visible(move_id)
        with asking(f"`{what}` was asked of move {named}", f"tenancy move show {named}"):
            found: dict[str, Any] = client.post(f"{MOVES_PATH}/{segment(move_id)}/{what}")
        if wait:
            follower = MoveFollower(client, timeout_s=timeout)
            found = _followed(follower, found, until, as_json=as_json)
    _tell(found, as_json)
    if ends is not None:
        _check_end(found, ends)
    return found


def _followed(
    follower: MoveFollower, found: dict[str, Any], phases: Collection[str], *, as_json: bool
) -> dict[str, Any]:
    """The move once it is in one of `phases`. A program gets its document also when it is not."""
    try:
        return follower.until(found, phases)
    except TimeOverError as error:
        if as_json:
            _tell(error.found, as_json)
        raise


def _check_end(found: dict[str, Any], wanted: Collection[str]) -> None:
    """Exit with an error when the move has come to another end than the one that was wanted."""
    if found["settled"] and found["state"] not in wanted:
        raise typer.Exit(STATUS_ERROR)


# Printing


def _tell_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(plan)
    else:
        _print_plan(plan)
    if not plan["possible"]:
        raise typer.Exit(STATUS_ERROR)


def _print_plan(plan: dict[str, Any]) -> None:
    print_fields(
        [
            ("tenant", plan["tenant_id"]),
            ("from", place_words(plan["source"])),
            ("to", place_words(plan["target"])),
            ("rows", _rows(plan)),
            (
                "to build",
                f"{plan['indexes']} indexes, {plan['constraints']} constraints, "
                f"{plan['sequences']} sequences",
            ),
            ("takes", _takes(plan["duration_s"])),
            ("pause", f"about {plan['pause_ms']:g} ms"),
            ("estimate", plan["estimate"]["basis"]),
            ("possible", "yes" if plan["possible"] else "no"),
        ]
    )
    for refusal in plan["refused"]:
        say(f"- {visible(refusal['detail'])}")


def _rows(plan: dict[str, Any]) -> str:
    tables = f"in {plan['tables']} tables"
    if plan["rows"] is None:
        return f"not counted, {tables}"
    return f"{plan['rows']:,} {tables}, {bytes_words(plan['bytes'])}"


def _takes(duration_s: float | None) -> str:
    if duration_s is None:
        return "not known, since the rows were not counted"
    return f"about {seconds_words(duration_s)}"


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({name: value for name, value in found.items() if name != "report"})
        return
    _print(found)
    step = next_step(found)
    if step is not None:
        say(f"next: {step}")


def _print(found: dict[str, Any]) -> None:
    how = found["progress"]
    state = found["state"]
    if found["phase"] not in (state, "settled"):
        state = f"{state} ({words(found['phase'])})"
    # What changed meanwhile was copied again, and is no row more.
    copied = f"{min(how['rows_copied'], how['rows_total']):,} of {how['rows_total']:,} rows"
    if how["bytes_copied"]:
        copied += f" ({bytes_words(how['bytes_copied'])})"
    fields = [
        ("move", found["move_id"]),
        ("tenant", found["tenant_id"]),
        ("state", state),
        ("from", place_words(found["source"])),
        ("to", place_words(found["target"])),
        ("tenant at", at_words(found)),
        ("priority", found["priority"] or None),
        ("copied", f"{copied}, {how['tables_copied']} of {how['tables_total']} tables"),
        ("took", _took(how)),
        ("left", time_left(how)),
        ("behind", None if found["settled"] else backlog_words(how)),
        ("attempts", how["cutover_attempts"] or None),
        ("failures", how["failures"] or None),
        ("error", found["error"]),
        ("begun", found["created_at"]),
        # Of one that is over: it is not open any more.
        ("open since" if found["state"] == "open" else "was opened", found["opened_at"]),
        ("confirms", found["confirms_at"]),
    ]
    print_fields([(name, value) for name, value in fields if value is not None])


def _took(how: dict[str, Any]) -> str | None:
    """What the parts of a move have taken so far."""
    # Of a few rows it says nothing.
    rate = f" ({rate_words(how)})" if how["rows_copied"] >= RATE_ROWS_MIN else ""
    parts = [
        ("prepare_s", "to prepare"),
        ("copy_s", f"to copy{rate}"),
        ("prove_s", "to prove"),
    ]
    told = [f"{seconds_words(how[name])} {what}" for name, what in parts if how[name]]
    return ", ".join(told) or None


def _print_report(report: dict[str, Any]) -> None:
    why = report.get("why")
    if why is not None:
        say(f"why: {visible('; '.join(why['reasons']))} ({why['proposal_id']}, by {why['by']})")
        for item in why["acts"]:
            say(f"- {visible(item['act'])} at {item['at']}: {visible(item['reason'])}")
    planned = report.get("plan")
    if planned is not None:
        say(f"planned: {_takes(planned['duration_s'])}, held for about {planned['pause_ms']:g} ms")
    for name, title in (("cutover", "cutover"), ("rollback", "rollback")):
        took = report.get(name)
        if took is not None:
            say(
                f"{title}: held for {took['held_ms']:g} ms after {took['drain_ms']:g} ms of waiting"
            )
    for name, title in (("before", "before the cutover"), ("after", "after the cutover")):
        tables = report.get(name)
        if tables:
            say("")
            say(f"compared {title}:")
            columns = ("table", "rows", "source", "target", "left_out", "equal")
            print_table(columns, [[item[column] for column in columns] for item in tables])


def _row(found: dict[str, Any]) -> list[Any]:
    how = found["progress"]
    return [
        *(found[name] for name in ("move_id", "tenant_id", "state", "phase")),
        place_words(found["source"]),
        place_words(found["target"]),
        at_words(found),
        how["rows_total"],
        found["created_at"],
    ]
