"""How a finding reads: what a person has to run is there in full, what `--mend` runs is short."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.engine.findings import Finding, Severity, by_owner
from tenancy.data_isolation.serve.check import found
from tenancy.data_isolation.serve.cli_doctor import _Report


def _finding(lines: int, *, by_hand: bool) -> Finding:
    return Finding(
        check="unlike_reference",
        severity=Severity.BROKEN,
        server="main",
        database="tenancy",
        subject="table app.people",
        problem="is missing",
        statements=by_owner([f"select {number}" for number in range(lines)]),
        advice="first look for a backup",
        by_hand=by_hand,
    )


def _printed(capsys: pytest.CaptureFixture[str], finding: Finding) -> str:
    _Report(silent=False).add(found("tables", finding))
    return capsys.readouterr().out


def test_what_a_person_has_to_run_is_told_in_full(capsys: pytest.CaptureFixture[str]):
    text = _printed(capsys, _finding(10, by_hand=True))

    assert "-> first look for a backup; as the admin in database tenancy:\n" in text
    assert all(f"select {number}" in text for number in range(10))
    assert "--mend" not in text


def test_what_the_command_mends_is_short(capsys: pytest.CaptureFixture[str]):
    text = _printed(capsys, _finding(10, by_hand=False))

    assert "-> tenancy doctor --mend" in text
    assert "select 9" not in text


def test_what_is_too_long_to_read_is_in_the_document(capsys: pytest.CaptureFixture[str]):
    text = _printed(capsys, _finding(100, by_hand=True))

    assert "100 lines of SQL in database tenancy, which --json has" in text
    assert len(text.splitlines()) == 2
