"""What the cells come to: medians with the least and the most, ratios, and figures with goals.

A ratio is taken within one run, between the medians of cells with the same tenants and the same
number in flight; twenty schemas are held against a hundred tenants at level row.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from report import Figure, figure

from peers.variants import BY_HAND, BY_KEY, HTTP_BY_HAND, IN_FLIGHT, VARIANTS, Kind, Variant, Way
from peers.work import BATCH

ROW_PER_S, ROW_P50_MS = 10_000, 10
SCHEMA_PER_S, SCHEMA_P50_MS = 5_000, 25
BY_HAND_TIMES = {64: 4, 512: 10}
PEER_TIMES = 10
TAIL_TIMES = 4
BEST_SHARE = 0.5
HTTP_TIMES, HTTP_BATCH_TIMES = 1, 15

_VERDICT = {True: "met", False: "**missed**", None: ""}
_SETTINGS = ("one", "mixed")
_HEAD = (
    "variant", "tenants", "in flight", "operations/s", "/ by hand", "p50 ms", "p99 ms",
    "errors", "busy", "steal",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One cell over all repeats; each median is taken for itself."""

    variant: Variant
    tenants: int
    in_flight: int
    ops_per_s: float
    least: float
    most: float
    p50_ms: float
    p99_ms: float
    errors: int
    busy: float
    steal: float


class Summary:
    """The results of one run."""

    def __init__(self, cells: Iterable[dict[str, Any]]) -> None:
        grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
        for cell in cells:
            setting = "one" if cell["tenants"] == 1 else "mixed"
            grouped[cell["variant"], setting, cell["in_flight"]].append(cell)
        self._rows = {key: _row(items) for key, items in grouped.items()}
        self._steals = [cell["steal"] for items in grouped.values() for cell in items]

    def text(self) -> list[str]:
        """The tables in columns."""
        lines = []
        for title, rows in self._tables():
            table = [_HEAD, *rows]
            widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
            lines += ["", title]
            for row in table:
                words = [row[0].ljust(widths[0])]
                words += [
                    word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)
                ]
                lines.append("  ".join(words))
        return [*lines, ""]

    def markdown(self) -> list[str]:
        """The same tables as Markdown."""
        lines = []
        for title, rows in self._tables():
            lines += [f"### {title}", "", _piped(_HEAD), _piped(["---"] * len(_HEAD))]
            lines += [*(_piped(row) for row in rows), ""]
        lines += ["### Figures", "", _piped(("figure", "value", "goal", "")), _piped(["---"] * 4)]
        for item in self.figures():
            told = item.json()
            goal, met = ("", "") if item.goal is None else (str(item.goal), _VERDICT[item.met])
            lines.append(_piped((item.name, f"{told['value']:,} {item.unit}", goal, met)))
        return [*lines, ""]

    def bars(self) -> list[dict[str, Any]]:
        """Bar charts: for library and HTTP, one tenant and many mixed."""
        charts = []
        for way in Way:
            for setting in _SETTINGS:
                shown = [item for item in VARIANTS if item.way is way and self._has(item, setting)]
                if not shown:
                    continue
                many = "1 tenant" if setting == "one" else "100 tenants mixed (20 schemas)"
                series = {
                    str(count): [self._rate(item, setting, count) for item in shown]
                    for count in IN_FLIGHT
                }
                charts.append(
                    {
                        "file": f"{way}_{setting}.svg",
                        "title": f"{'Library' if way is Way.LIBRARY else 'HTTP'}, {many}",
                        "labels": [item.title for item in shown],
                        "ours": [item.kind is Kind.OURS for item in shown],
                        "series": series,
                    }
                )
        return charts

    def figures(self) -> list[Figure]:
        """Everything that somebody promised, and the ratios beside it."""
        found: list[Figure] = []
        for setting in _SETTINGS:
            found += self._speeds(setting)
            found += self._against_hand(setting)
            found += self._against_peers(setting)
            found += self._over_http(setting)
        errors = sum(row.errors for row in self._rows.values())
        found.append(figure("operations that failed", errors, "errors", at_most=0))
        if self._steals:
            found.append(figure("steal, median of cells", statistics.median(self._steals), "share"))
            found.append(figure("steal, most of a cell", max(self._steals), "share"))
        return found

    def _speeds(self, setting: str) -> Iterator[Figure]:
        goals = {"row": (ROW_PER_S, ROW_P50_MS), "schema": (SCHEMA_PER_S, SCHEMA_P50_MS)}
        for level, (per_s, p50_ms) in goals.items():
            row = self._rows.get((f"actor-{level}", setting, 64))
            if row is None:
                continue
            name = f"{level} through the actor, 64 in flight, {_many(row)}"
            yield figure(name, row.ops_per_s, "operations/s", at_least=per_s)
            yield figure(f"{name}: p50", row.p50_ms, "ms", at_most=p50_ms)
            tail = row.p99_ms / row.p50_ms
            yield figure(f"{name}: p99 / p50", tail, "times", at_most=TAIL_TIMES)

    def _against_hand(self, setting: str) -> Iterator[Figure]:
        for in_flight, times in BY_HAND_TIMES.items():
            yield from self._ratio("actor-row", BY_HAND.key, setting, in_flight, at_least=times)
            yield from self._ratio("actor-row", "function", setting, in_flight)
            yield from self._ratio("actor-row", "fetchmany", setting, in_flight)
            share = {"at_least": BEST_SHARE} if in_flight == 64 else {}
            yield from self._ratio("actor-row", "bare", setting, in_flight, **share)
            yield from self._ratio("actor-row", "pgbench-rls", setting, in_flight)
            yield from self._ratio("engine-row", BY_HAND.key, setting, in_flight)
        yield from self._ratio("actor-row", BY_HAND.key, setting, 1)
        yield from self._ratio("engine-row", BY_HAND.key, setting, 1)

    def _against_peers(self, setting: str) -> Iterator[Figure]:
        for peer in VARIANTS:
            if peer.kind is Kind.PEER and peer.way is Way.LIBRARY:
                ours = f"actor-{peer.level}"
                yield from self._ratio(ours, peer.key, setting, 64, at_least=PEER_TIMES)

    def _over_http(self, setting: str) -> Iterator[Figure]:
        by_hand = HTTP_BY_HAND.key
        for in_flight in (1, 64):
            goal = {"at_least": HTTP_TIMES} if in_flight == 64 else {}
            many = {"at_least": HTTP_BATCH_TIMES} if in_flight == 64 else {}
            yield from self._ratio("http-ours-row", by_hand, setting, in_flight, **goal)
            yield from self._ratio("http-ours-row-batch", by_hand, setting, in_flight, **many)
            yield from self._ratio("http-ours-row-batch", f"{by_hand}-batch", setting, in_flight)
            yield from self._ratio("http-ours-schema", by_hand, setting, in_flight)
            yield from self._ratio("http-ours-schema-batch", by_hand, setting, in_flight)
        yield from self._ratio("http-ours-row", "http-fastapi-tenancy-rls", setting, 64)
        yield from self._ratio("http-ours-schema", "http-fastapi-tenancy-schema", setting, 64)

    def _ratio(
        self, ours: str, other: str, setting: str, in_flight: int, **goal: float
    ) -> Iterator[Figure]:
        mine = self._rows.get((ours, setting, in_flight))
        theirs = self._rows.get((other, setting, in_flight))
        if mine is not None and theirs is not None:
            titles = f"{BY_KEY[ours].title} / {BY_KEY[other].title}"
            if mine.variant.way is Way.HTTP:
                titles = f"HTTP: {titles}"
            name = f"{titles}, {in_flight} in flight, {_many(mine)}"
            yield figure(name, mine.ops_per_s / theirs.ops_per_s, "times", **goal)

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        for way, title in (
            (Way.LIBRARY, "Library level"),
            (Way.HTTP, f"Over HTTP (a batch has {BATCH} operations, its p50 is the request's)"),
        ):
            rows = [
                self._words(variant, setting, in_flight)
                for variant in VARIANTS
                if variant.way is way
                for setting in _SETTINGS
                for in_flight in IN_FLIGHT
                if (variant.key, setting, in_flight) in self._rows
            ]
            if rows:
                yield title, rows

    def _words(self, variant: Variant, setting: str, in_flight: int) -> list[str]:
        row = self._rows[variant.key, setting, in_flight]
        reference = HTTP_BY_HAND if variant.way is Way.HTTP else BY_HAND
        theirs = self._rows.get((reference.key, setting, in_flight))
        ratio = "-" if theirs is None else f"{row.ops_per_s / theirs.ops_per_s:.2f}"
        return [
            variant.title, str(row.tenants), str(in_flight),
            f"{row.ops_per_s:,.0f} [{row.least:,.0f}-{row.most:,.0f}]", ratio,
            f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", str(row.errors),
            f"{row.busy:.0%}", f"{row.steal:.0%}",
        ]  # fmt: skip

    def _has(self, variant: Variant, setting: str) -> bool:
        return any((variant.key, setting, count) in self._rows for count in IN_FLIGHT)

    def _rate(self, variant: Variant, setting: str, in_flight: int) -> float | None:
        row = self._rows.get((variant.key, setting, in_flight))
        return None if row is None else row.ops_per_s


def _row(cells: list[dict[str, Any]]) -> Row:
    def median(name: str) -> float:
        return statistics.median(cell[name] for cell in cells)

    rates = [cell["ops_per_s"] for cell in cells]
    return Row(
        variant=BY_KEY[cells[0]["variant"]],
        tenants=cells[0]["tenants"],
        in_flight=cells[0]["in_flight"],
        ops_per_s=statistics.median(rates),
        least=min(rates),
        most=max(rates),
        p50_ms=median("p50_ms"),
        p99_ms=median("p99_ms"),
        errors=sum(cell["errors"] for cell in cells),
        busy=median("busy"),
        steal=median("steal"),
    )


def _many(row: Row) -> str:
    return "1 tenant" if row.tenants == 1 else f"{row.tenants} tenants"


def _piped(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"
