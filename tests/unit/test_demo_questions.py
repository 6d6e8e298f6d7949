"""The demonstration's own arithmetic, on rows small enough to check by hand."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.serve.demo_data import Airline
from tenancy.data_isolation.serve.demo_questions import QUESTIONS, _average


def _flight(**changes):
    row = {
        "id": 1, "month": 1, "day": 1, "dep_time": 517, "dep_delay": 2, "arr_delay": 11,
        "tailnum": "N1", "origin": "EWR", "dest": "IAH", "distance": 1400, "time_hour": "h1",
    }  # fmt: skip
    return row | changes


@pytest.fixture
def airline():
    airline = Airline("UA", "United")
    airline.rows["airports"] = [{"faa": "IAH", "name": "Houston"}]
    airline.rows["planes"] = [{"tailnum": "N1", "manufacturer": "BOEING"}]
    airline.rows["weather"] = [{"origin": "EWR", "time_hour": "h1", "visib": "2.5"}]
    airline.rows["flights"] = [
        _flight(),
        _flight(id=2, dep_time=None, dep_delay=None, arr_delay=None, tailnum="N9", time_hour="h2"),
        _flight(id=3, month=2, dest="SJU", dep_delay=5, arr_delay=-1),
    ]
    return airline


def test_the_answers_are_those_that_one_finds_by_hand(airline):
    answers = [question.compute(airline) for question in QUESTIONS]

    assert answers == [
        [[3, 1, "3.5000"]],
        [[1, 2, "11.0000"], [2, 1, "-1.0000"]],
        [["IAH", "Houston", 2, 2800], ["SJU", None, 1, 1400]],
        [["BOEING", 1, 2]],
        [[2, "3.5000"]],
        [[2, 1, 5], [1, 1, 2]],
    ]


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([], None),
        ([None], None),
        ([1, 2, None], "1.5000"),
        ([1, 0, 0], "0.3333"),
        ([-1, 0, 0], "-0.3333"),
        ([1] + [0] * 19_999, "0.0001"),
        ([-1] + [0] * 19_999, "-0.0001"),
    ],
)
def test_averages_round_half_away_from_zero(values, mean):
    assert _average(values) == mean
