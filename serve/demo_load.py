"""How the data of the demonstration gets into a runtime: over HTTP, as anybody's would.

`load_airline` brings one airline into a runtime that is up, for trying things by hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tenancy.data_isolation.core import IsolationLevel, Settings
from tenancy.data_isolation.serve.demo_data import TABLES, Airline, Row, read_airlines, tenant_ids
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import STATUS_USAGE, CommandError

#: Rows per insert statement.
CHUNK_ROWS: Final = 2_000
_TYPES: Final = {
    "airports": "faa text, name text, lat numeric, lon numeric, alt integer, tz numeric, "
    "dst text, tzone text",
    "planes": "tailnum text, year integer, type text, manufacturer text, model text, "
    "engines integer, seats integer, speed integer, engine text",
    "weather": "origin text, time_hour timestamptz, temp numeric, dewp numeric, "
    "humid numeric, wind_dir integer, wind_speed numeric, wind_gust numeric, "
    "precip numeric, pressure numeric, visib numeric",
    "flights": "id integer, month integer, day integer, dep_time integer, "
    "sched_dep_time integer, dep_delay integer, arr_time integer, "
    "sched_arr_time integer, arr_delay integer, flight integer, tailnum text, "
    "origin text, dest text, air_time integer, distance integer, time_hour timestamptz",
}


def migrations() -> list[dict[str, str]]:
    """The tables, once, without a tenant column: bodies for `POST /v1/schema/migrations`."""
    folder = files("tenancy.data_isolation.serve") / "data" / "demo"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [
        {"name": name.removesuffix(".sql"), "sql": (folder / name).read_text()} for name in names
    ]


def inserts(airline: Airline) -> Iterator[tuple[str, str, Sequence[Row]]]:
    """Table, statement and its one parameter, in the order that foreign keys ask for."""
    for table in TABLES:
        rows = airline.rows[table]
        for start in range(0, len(rows), CHUNK_ROWS):
            yield table, _insert(table), rows[start : start + CHUNK_ROWS]


def load_airline(
    carrier: str, level: IsolationLevel, *, settings: Settings, console: Console
) -> dict[str, Any]:
    """Make an airline a tenant of the runtime that is up, with all its rows; what was done.

    Raises `CommandError` for what is no airline, and what the runtime refuses.
    """
    airline = _airline(carrier)
    rows = flights = 0
    started = time.perf_counter()
    with RuntimeClient.connect(settings) as client:
        for body in migrations():
            client.post("/v1/schema/migrations", body)
        client.post("/v1/tenants", {"tenant_id": airline.tenant_id, "isolation_level": level.value})
        path = f"/v1/tenants/{segment(airline.tenant_id)}/query"
        with progress_bar(console) as progress:
            task = progress.add_task("flights", total=len(airline.rows["flights"]))
            for table, statement, chunk in inserts(airline):
                rows += client.post(path, {"query": statement, "params": [chunk]})["row_count"]
                if table == "flights":
                    flights += len(chunk)
                    progress.advance(task, len(chunk))
    return {
        "tenant_id": airline.tenant_id,
        "name": airline.name,
        "isolation_level": level.value,
        "flights": flights,
        "rows": rows,
        "seconds": round(time.perf_counter() - started, 1),
    }


def progress_bar(console: Console, *, transient: bool = False) -> Progress:
    """Rows of so many, and for how long.

    One that is `transient` leaves nothing on a terminal, and elsewhere it prints nothing.
    """
    return Progress(
        TextColumn("{task.description:11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=transient,
        disable=transient and not console.is_terminal,
    )


def _airline(carrier: str) -> Airline:
    known = tenant_ids()
    if carrier.lower() not in known:
        raise CommandError(
            f"there is no airline {carrier!r}; there are {', '.join(known)}", status=STATUS_USAGE
        )
    (found,) = [item for item in read_airlines() if item.tenant_id == carrier.lower()]
    return found


def _insert(table: str) -> str:
    """An insert of many rows in one statement, from one JSON parameter."""
    types = _TYPES[table]
    columns = ", ".join(item.split()[0] for item in types.split(", "))
    return (
        f"insert into {table} ({columns}) "  # noqa: S608 - words of this module only
        f"select {columns} from jsonb_to_recordset($1) as source ({types})"
    )
