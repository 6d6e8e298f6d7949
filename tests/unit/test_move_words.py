"""Words of moves on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from tenancy.data_isolation.core.move import MoveState
from tenancy.data_isolation.serve.cli_move import _print
from tenancy.data_isolation.serve.move_follower import _more
from tenancy.data_isolation.serve.move_models import _PHASES, MovePhase
from tenancy.data_isolation.serve.move_words import at_words, bytes_words, seconds_words

_NOTHING = dict.fromkeys(
    ("rows_copied", "rows_total", "bytes_copied", "tables_copied", "tables_total"), 0
)
_PROGRESS = _NOTHING | dict.fromkeys(
    ("remaining_s", "backlog_rows", "cutover_attempts", "failures", "prepare_s", "copy_s"), 0
)


def _move(state: str, *, phase: str | None = None, backlog_rows: int = 0) -> dict[str, Any]:
    return {
        "move_id": "m_0",
        "tenant_id": "acme",
        "state": state,
        "phase": phase or state,
        "source": {"isolation_level": "row", "server": "main"},
        "target": {"isolation_level": "schema", "server": "far"},
        "priority": 0,
        "progress": _PROGRESS | {"prove_s": 0, "backlog_rows": backlog_rows},
        "settled": phase == "settled",
        "error": None,
        "created_at": "2026-01-01T00:00:00Z",
        "opened_at": "2026-01-01T00:00:01Z" if state in ("open", "confirmed") else None,
        "confirms_at": None,
    }


@pytest.mark.parametrize(
    ("state", "at"),
    [
        ("catching_up", "row on main"),
        ("verified", "row on main"),
        ("cutting_over", "held for a moment"),
        ("open", "schema on far"),
        ("confirmed", "schema on far"),
        ("rolled_back", "row on main"),
    ],
)
def test_it_is_told_where_the_tenant_works(state: str, at: str):
    assert at_words(_move(state)) == at


def test_a_tenant_at_the_source_is_not_said_to_be_cutting_over():
    assert _PHASES[MoveState.VERIFIED] is MovePhase.VERIFIED


def test_what_is_behind_is_told_in_rows(capsys: pytest.CaptureFixture[str]):
    _print(_move("catching_up", backlog_rows=1_200))

    assert "behind     1,200 changed rows" in capsys.readouterr().out
    assert _more(_PROGRESS | {"backlog_rows": 1}) == "1 changed row behind"


@pytest.mark.parametrize(
    ("state", "phase", "told"),
    [("open", "open", "open since"), ("confirmed", "settled", "was opened")],
)
def test_only_what_is_open_is_open_since(state, phase, told, capsys: pytest.CaptureFixture[str]):
    _print(_move(state, phase=phase))

    names = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in names if "open" in name] == [told]


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
