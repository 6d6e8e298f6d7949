"""`tenancy key`: API keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, keep_own_key, segment
from tenancy.data_isolation.serve.terminal import (
    STATUS_USAGE,
    AsJson,
    CommandError,
    note,
    print_json,
    print_table,
    say,
)

_PATH = "/v1/keys"
_PAGE = 500
_COLUMNS = (
    *("key_id", "scope", "tenant_id", "label", "created_at", "expires_at", "revoked_at"),
    *("rotated_at", "previous_until", "last_used_at"),
)

app = typer.Typer(no_args_is_help=True)


@app.command()
def create(
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="The tenant that the key is for.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key for everything.")] = False,
    label: Annotated[str, typer.Option("--label", help="A word to know it by.")] = "",
    expires_at: Annotated[
        str | None,
        typer.Option("--expires-at", help="Such as 2030-01-31T00:00:00Z; never when left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, this once."""
    if admin == (tenant is not None):
        raise CommandError("give either --tenant or --admin", status=STATUS_USAGE)
    body: dict[str, Any] = {"scope": "admin" if admin else "tenant", "label": label}
    if tenant is not None:
        body["tenant_id"] = tenant
    if expires_at is not None:
        body["expires_at"] = expires_at
    with RuntimeClient.connect(Settings.from_env()) as client:
        made = client.post(_PATH, body)
    if as_json:
        print_json(made)
        return
    say(made["key"])
    note(f"key {made['key_id']}; it is not shown again")


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of this tenant alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """List API keys, without their secrets."""
    found: list[dict[str, Any]] = []
    following: str | None = None
    with RuntimeClient.connect(Settings.from_env()) as client:
        while True:
            page = client.get(_PATH, tenant_id=tenant, after=following, limit=_PAGE)
            found += page["keys"]
            following = page["next"]
            if following is None:
                break
    if as_json:
        print_json({"keys": found})
        return
    print_table(_COLUMNS, [[item[name] for name in _COLUMNS] for item in found])


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id, as `key list` has it.")],
    overlap_s: Annotated[
        float,
        typer.Option("--overlap", help="Seconds for which the old secret stays good; 0 = none."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Give an API key another secret and print it, this once."""
    settings = Settings.from_env()
    with RuntimeClient.connect(settings) as client:
        made = client.post(f"{_PATH}/{segment(key_id)}/rotate", {"overlap_s": overlap_s})
    # Shown before anything else can fail: it is nowhere else.
    if as_json:
        print_json(made)
    else:
        say(made["key"])
        note(f"key {made['key_id']}; it is not shown again")
    kept = keep_own_key(settings, made["key"])
    if kept is not None:
        note(f"it is the key of this command itself, so {kept} has the new one")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id, as `key list` has it.")],
    as_json: AsJson = False,
) -> None:
    """Let a key be good no more."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        client.delete(f"{_PATH}/{segment(key_id)}")
    if as_json:
        print_json({"key_id": key_id, "revoked": True})
    else:
        say(f"key {key_id} is revoked")
