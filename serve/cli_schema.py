"""`tenancy schema`: the tenant-neutral schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.serve.runtime_client import RuntimeClient
from tenancy.data_isolation.serve.terminal import (
    AsJson,
    CommandError,
    note,
    print_fields,
    print_json,
    print_table,
    say,
)

_PATH = "/v1/schema"
#: A migration of a large fleet takes as long as it takes; each step of it has limits of its own.
_APPLY_TIMEOUT_S = 24 * 3600.0

app = typer.Typer(no_args_is_help=True)


@app.command()
def apply(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The directory with 0001_name.sql, ...")
    ],
    as_json: AsJson = False,
) -> None:
    """Bring the migrations of a directory to every tenant, in their order."""
    # Imported late: it loads PostgreSQL's grammar, which no other command needs.
    from tenancy.data_isolation.engine.migration import read_migrations

    migrations = read_migrations(directory)
    if not migrations:
        raise CommandError(f"there is no migration in {directory}", "name them like 0001_users.sql")
    wanted = [{"name": f"{one.number:04d}_{one.name}", "sql": one.sql} for one in migrations]
    with RuntimeClient.connect(Settings.from_env()) as client:
        done = _applied(client, wanted)
    last = done[-1]
    if as_json:
        print_json(
            {"version": last["version"], "migrations": done, "namespaces": last["namespaces"]}
        )
    else:
        say(f"the schema is at version {last['version']}")


@app.command()
def advice(
    make: Annotated[
        bool, typer.Option("--apply", help="Make these indexes, each by a migration for all.")
    ] = False,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Bring the statistics of these tables up to date.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which indexes and plans would help tenants' statements, from what servers count."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        found = client.get(f"{_PATH}/advice", timeout_s=_APPLY_TIMEOUT_S)
        wanted = [item["migration"] for item in found["indexes"]] if make else []
        done = _applied(client, wanted)
        places = [item["analyze"] for item in found["plans"] if item["analyze"] and analyze]
        looked, failed = _analyzed(client, places)
    if as_json:
        print_json({**found, "applied": done, "analyzed": looked})
    else:
        _tell(found, make=make)
        _tell_plans(found["plans"], analyze=analyze)
        for one in looked:
            say(f"done: {one['sql']} ({one['rows']:,.0f} rows, {one['took_s']:.1f} s)")
    if failed:
        raise CommandError("; ".join(failed))
    if (make or analyze) and not any(server["state"] == "read" for server in found["servers"]):
        raise CommandError("no server counts statements, so nothing was done")


def _analyzed(
    client: RuntimeClient, places: Sequence[Mapping[str, str]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What came of each table, and what kept others from it: one says nothing of the next."""
    looked: list[dict[str, Any]] = []
    failed: list[str] = []
    for place in places:
        try:
            looked.append(client.post(f"{_PATH}/statistics", place, timeout_s=_APPLY_TIMEOUT_S))
        except CommandError as error:
            failed.append(f"{place['schema']}.{place['table']}: {error}")
    return looked, failed


def _tell(found: Mapping[str, Any], *, make: bool) -> None:
    for server in found["servers"]:
        if server["hint"]:
            say(f"server {server['server']} ({server['state']}): {server['hint']}")
    if found["indexes"]:
        print_table(
            ("calls", "seconds", "blocks/call", "migration"),
            [
                [
                    f"{item['calls']:,}",
                    f"{item['total_s']:,.1f}",
                    f"{item['blocks_per_call']:,.0f}",
                    item["migration"]["sql"],
                ]
                for item in found["indexes"]
            ],
        )
        if make:
            names = ", ".join(item["migration"]["name"] for item in found["indexes"])
            say(f"made as {names}; keep them among your migrations, with the texts above")
        else:
            say("not made; `tenancy schema advice --apply` makes them")
    elif any(server["state"] == "read" for server in found["servers"]):
        say("no index would help the statements that were counted")


def _tell_plans(plans: Sequence[Mapping[str, Any]], *, analyze: bool) -> None:
    for item in plans:
        statements = ", ".join(
            f"{one['fingerprint']} ({', '.join(one['tables']) or 'no table'})"
            for one in item["shown"]
        )
        place, variable = item["analyze"], item["variable"]
        seen = [f"{name} {value:,.10g}" for name, value in item["figures"].items()]
        say("")
        print_fields(
            [
                ("kind", item["kind"]),
                ("statements", f"{item['statements']}: {statements}"),
                ("calls", f"{item['calls']:,} in {item['total_s']:,.1f} s"),
                ("seen", ", ".join(seen)),
                ("remedy", item["remedy"]),
                ("sql", item["sql"]),
                ("where", place and f"database {place['database']} of server {place['server']}"),
                ("variable", variable and f"{variable['name']}={variable['value']}"),
                ("cost", item["cost"]),
                ("undo", item["undo"]),
            ]
        )
    stale = any(item["analyze"] for item in plans)
    if analyze and not stale:
        say("no table's statistics are out of date, so nothing was analyzed")
    elif stale and not analyze:
        say("`tenancy schema advice --analyze` runs the `analyze` statements, and nothing else")


def _applied(
    client: RuntimeClient, migrations: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    """The answers to migrations that are sent one after the other."""
    done: list[dict[str, Any]] = []
    for position, migration in enumerate(migrations, start=1):
        note(f"[{position}/{len(migrations)}] {migration['name']} ...")
        answer = client.post(f"{_PATH}/migrations", dict(migration), timeout_s=_APPLY_TIMEOUT_S)
        done.append(answer)
        namespaces = answer["namespaces"]
        note(f"    {namespaces['current']} of {namespaces['total']} copies of the schema have it")
    return done


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the migrations and where every copy of the schema stands."""
    with RuntimeClient.connect(Settings.from_env()) as client:
        found = client.get(_PATH)
    if as_json:
        print_json(found)
        return
    namespaces = found["namespaces"]
    print_fields(
        [
            ("version", found["version"]),
            ("tables", found["tables"]),
            ("sensitive", [item["name"] for item in found["relations"] if item["sensitive"]]),
            ("copies", namespaces["total"]),
            ("current", namespaces["current"]),
            ("behind", namespaces["behind"]),
            ("failed", namespaces["failed"]),
        ]
    )
    if found["migrations"]:
        say("")
        print_table(
            ("number", "name", "checksum"),
            [[item["number"], item["name"], item["checksum"][:12]] for item in found["migrations"]],
        )
    for failure in found["failures"]:
        whose = f"tenant {failure['tenant_id']}" if failure["tenant_id"] else failure["kind"]
        say(f"failed on {failure['server']} ({whose}): {failure['error']}")
