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


def test_the_last_line_is_one_object_with_the_same_keys_for_every_figure(capsys):
    print_report(
        [
            figure("without a goal", 12_345.6, "op/s"),
            figure("met", 0.123456, "ms", at_most=0.2),
            figure("missed", 3, "times", at_least=4),
            figure("a range", 0.5, "", at_least=0.48, at_most=0.52),
        ]
    )

    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report == {
        "machine": machine(),
        "figures": [
            {"name": "without a goal", "value": 12346, "unit": "op/s", "goal": None, "met": None},
            {"name": "met", "value": 0.1235, "unit": "ms", "goal": 0.2, "met": True},
            {"name": "missed", "value": 3, "unit": "times", "goal": 4, "met": False},
            {"name": "a range", "value": 0.5, "unit": "", "goal": [0.48, 0.52], "met": True},
        ],
    }
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
        "name": "barely", "value": 1000, "unit": "ms", "goal": 1_000, "met": False,
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
