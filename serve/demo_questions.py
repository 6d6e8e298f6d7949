"""The questions of the demonstration: each as SQL, and again in plain Python over the source rows.

The two are written apart from each other, so that equal answers mean something. Averages are exact:
integers are summed and divided once, and rounded half away from zero as PostgreSQL rounds numeric.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from tenancy.data_isolation.serve.demo_data import Airline, Row

#: Rows of an answer, in wire form.
Answer = list[list[Any]]


@dataclass(slots=True)
class Findings:
    """What the run found: comparisons made, and what differed."""

    compared: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, expected: object, got: object) -> None:
        """Count a comparison, and keep it when the two differ."""
        self.compared += 1
        if expected != got:
            self.differences.append(f"{what}: expected {expected!r}, got {got!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question in words, in SQL, and as a function of an airline's rows."""

    words: str
    sql: str
    compute: Callable[[Airline], Answer]


def _totals(airline: Airline) -> Answer:
    flights = airline.rows["flights"]
    cancelled = sum(row["dep_time"] is None for row in flights)
    return [[len(flights), cancelled, _average(row["dep_delay"] for row in flights)]]


def _months(airline: Airline) -> Answer:
    months: dict[int, list[Row]] = defaultdict(list)
    for row in airline.rows["flights"]:
        months[row["month"]].append(row)
    return [
        [month, len(rows), _average(row["arr_delay"] for row in rows)]
        for month, rows in sorted(months.items())
    ]


def _destinations(airline: Airline) -> Answer:
    names = {row["faa"]: row["name"] for row in airline.rows["airports"]}
    count: Counter[str] = Counter()
    miles: Counter[str] = Counter()
    for row in airline.rows["flights"]:
        count[row["dest"]] += 1
        miles[row["dest"]] += row["distance"]
    busiest = sorted(count, key=lambda dest: (-count[dest], dest))[:5]
    return [[dest, names.get(dest), count[dest], miles[dest]] for dest in busiest]


def _makers(airline: Airline) -> Answer:
    makers = {row["tailnum"]: row["manufacturer"] for row in airline.rows["planes"]}
    planes: dict[str, set[str]] = defaultdict(set)
    flights: Counter[str] = Counter()
    for row in airline.rows["flights"]:
        if row["tailnum"] in makers:
            planes[makers[row["tailnum"]]].add(row["tailnum"])
            flights[makers[row["tailnum"]]] += 1
    first = sorted(flights, key=lambda maker: (-flights[maker], maker))[:5]
    return [[maker, len(planes[maker]), flights[maker]] for maker in first]


def _fog(airline: Airline) -> Answer:
    fog = {
        (row["origin"], row["time_hour"])
        for row in airline.rows["weather"]
        if Decimal(row["visib"]) < 3
    }
    rows = [row for row in airline.rows["flights"] if (row["origin"], row["time_hour"]) in fog]
    return [[len(rows), _average(row["dep_delay"] for row in rows)]]


def _worst_days(airline: Airline) -> Answer:
    late: Counter[tuple[int, int]] = Counter()
    for row in airline.rows["flights"]:
        if row["dep_delay"] is not None:
            late[row["month"], row["day"]] += row["dep_delay"]
    worst = sorted(late, key=lambda day: (-late[day], day))[:3]
    return [[month, day, late[month, day]] for month, day in worst]


QUESTIONS: tuple[Question, ...] = (
    Question(
        words="flights, cancelled, average departure delay",
        sql="""select count(*) as flights,
                      count(*) filter (where dep_time is null) as cancelled,
                      round(avg(dep_delay), 4) as average_delay
               from flights""",
        compute=_totals,
    ),
    Question(
        words="flights and average arrival delay by month",
        sql="""select month, count(*) as flights, round(avg(arr_delay), 4) as average_delay
               from flights group by month order by month""",
        compute=_months,
    ),
    Question(
        words="busiest destinations",
        sql="""select f.dest, a.name, count(*) as flights, sum(f.distance) as miles
               from flights f left join airports a on a.faa = f.dest
               group by f.dest, a.name
               order by count(*) desc, f.dest collate "C" limit 5""",
        compute=_destinations,
    ),
    Question(
        words="makers of the planes",
        sql="""select p.manufacturer, count(distinct p.tailnum) as planes, count(*) as flights
               from flights f join planes p on p.tailnum = f.tailnum
               group by p.manufacturer
               order by count(*) desc, p.manufacturer collate "C" limit 5""",
        compute=_makers,
    ),
    Question(
        words="departures in fog and their average delay",
        sql="""select count(*) as flights, round(avg(f.dep_delay), 4) as average_delay
               from flights f
               join weather w on w.origin = f.origin and w.time_hour = f.time_hour
               where w.visib < 3""",
        compute=_fog,
    ),
    Question(
        words="worst days by minutes lost",
        sql="""select month, day, sum(dep_delay) as minutes
               from flights where dep_delay is not null
               group by month, day order by sum(dep_delay) desc, month, day limit 3""",
        compute=_worst_days,
    ),
)


def _average(values: Iterable[int | None]) -> str | None:
    """The mean of what is there, with four decimals, as PostgreSQL writes `round(avg(x), 4)`."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    with localcontext(prec=60):
        mean = Decimal(sum(known)) / len(known)
        return str(mean.quantize(Decimal("0.0001"), rounding=ROUND_HALF_UP))
