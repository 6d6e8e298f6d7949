"""The report of the benchmarks."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from report import Figure, Goal, figure, machine, percentile, print_report, table


@pytest.mark.parametrize(
    ("bounds", "value", "met"),
    [
        ({"at_most": 20}, 20, True),
        ({"at_most": 20}, 20.0001, False),
        ({"at_least": 5}, 5, True),
        ({"at_least": 5}, 4.9999, False),
        ({"at_least": -1, "at_most": 1}, -1, True),
        ({"at_least": -1, "at_most": 1}, 1.01, False),
        ({"at_most": 0}, math.nan, False),
        ({"at_least": 0}, math.nan, False),
        ({}, 7, None),
    ],
)
def test_a_goal_is_met_within_its_bounds(bounds, value, met):
    assert figure("it", value, "ms", **bounds).met is met


def test_a_goal_says_which_way_it_goes():
    assert str(Goal(at_most=20)) == "at most 20"
    assert str(Goal(at_least=1.5)) == "at least 1.5"
    assert str(Goal(at_least=0.48, at_most=0.52)) == "0.48 to 0.52"


FIGURES = [
    figure("without a goal", 12_345.6, "op/s"),
    figure("met", 0.123456, "ms", at_most=0.2),
    figure("missed", 3, "times", at_least=4),
    figure("a range", 0.5, "", at_least=0.48, at_most=0.52),
]


def test_the_last_line_is_one_object_with_the_same_keys_for_every_figure(capsys, tmp_path):
    print_report(FIGURES, last=tmp_path / "none.json")

    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = [
        ("without a goal", 12346, "op/s", None, None),
        ("met", 0.1235, "ms", 0.2, True),
        ("missed", 3, "times", 4, False),
        ("a range", 0.5, "", [0.48, 0.52], True),
    ]
    keys = ("name", "value", "unit", "goal", "met")
    figures = [dict(zip(keys, row, strict=True)) | {"last": None} for row in rows]
    assert report == {"machine": machine(), "figures": figures}
    assert set(report["machine"]) == {"cores", "memory_gb", "load_1m", "python", "system"}
    assert [line.split() for line in lines] == [
        ["without", "a", "goal", "12346", "op/s"],
        ["met", "0.1235", "ms", "at", "most", "0.2", "met"],
        ["missed", "3", "times", "at", "least", "4", "MISSED"],
        ["a", "range", "0.5", "0.48", "to", "0.52", "met"],
    ]


def test_a_goal_is_held_against_what_was_measured_and_not_what_is_shown():
    barely = figure("barely", 1_000.4, "ms", at_most=1_000)

    assert barely.json() == {
        "name": "barely", "value": 1000, "unit": "ms", "goal": 1_000, "met": False, "last": None,
    }  # fmt: skip


def test_figures_are_held_against_the_last_ones(capsys, tmp_path, monkeypatch):
    last = tmp_path / "last.json"
    last.write_text('{"missed": 2, "of another benchmark": 7}')
    print_report(FIGURES, last=last)
    out = capsys.readouterr().out
    assert " 3 times at least 4 MISSED 1.50 x the last one, 2\n" in out
    assert [item["last"] for item in json.loads(out.splitlines()[-1])["figures"]] == [
        None, None, 2, None,
    ]  # fmt: skip
    assert json.loads(last.read_text()) == {"missed": 2, "of another benchmark": 7}

    monkeypatch.setenv("BENCH_COMMIT", "1")
    print_report(FIGURES, last=last)
    assert json.loads(last.read_text()) == {
        "without a goal": 12346, "met": 0.1235, "missed": 3, "a range": 0.5,
        "of another benchmark": 7,
    }  # fmt: skip


def test_what_is_no_number_is_no_report(capsys):
    with pytest.raises(ValueError, match="JSON"):
        print_report([Figure(name="odd", value=math.nan, unit="ms")])

    assert capsys.readouterr().out == ""


def test_columns_stand_below_each_other_whatever_is_in_them():
    lines = table([figure("a", 1, "ms", at_most=2), figure("a longer name", 12, "op/s", at_most=2)])

    assert len({line.index("at most") for line in lines}) == 1
    assert table([]) == []


def test_a_percentile_lies_among_what_was_measured():
    rng = random.Random(1)
    for count in (1, 2, 3, 10, 1_000):
        values = [rng.random() for _ in range(count)]
        assert percentile(values, 50) == pytest.approx(statistics.median(values))
        assert min(values) <= percentile(values, 1) <= percentile(values, 99) <= max(values)
    assert percentile(list(range(101)), 99) == 99
    with pytest.raises(statistics.StatisticsError):
        percentile([], 50)
