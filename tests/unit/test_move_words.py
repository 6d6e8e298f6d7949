"""Words of moves on a terminal."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.serve.move_words import bytes_words, seconds_words


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (12_300, "12.3 kB"), (4.5e12, "4.5 TB")]
)
def test_sizes_are_short(value: float, text: str):
    assert bytes_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25 s"), (119, "119 s"), (600, "10 min"), (9_000, "2.5 h")]
)
def test_durations_are_short(value: float, text: str):
    assert seconds_words(value) == text
