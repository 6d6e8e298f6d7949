"""Every attack of the catalogue is tried somewhere, or there is a reason why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from attacks.catalogue import ATTACKS, ELSEWHERE, NOT_APPLICABLE
from attacks.channels import CHANNELS

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "attacks.md"
#: How many attacks of each kind the catalogue has.
_KINDS = {"C": 14, "I": 2, "R": 20, "V": 11, "X": 16, "P": 11, "S": 5, "B": 7, "D": 8, "A": 14}
_IDS = {f"{kind}{number:02}" for kind, count in _KINDS.items() for number in range(1, count + 1)}


def test_every_attack_of_the_catalogue_has_a_case_or_a_reason():
    tried = {attack.id for attack in ATTACKS}

    assert len(_IDS) == 108
    assert tried | set(ELSEWHERE) | set(NOT_APPLICABLE) == _IDS
    assert not tried & set(NOT_APPLICABLE)
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_what_is_tried_elsewhere_is_there(key: str):
    file, _, function = ELSEWHERE[key][1].partition("::")
    tree = ast.parse((_ROOT / file).read_text())

    assert function in {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_accepted_channel_is_used_and_told():
    used = {channel for attack in ATTACKS for channel in attack.accepted.values()}
    page = _PAGE.read_text()

    assert used == set(CHANNELS)
    for name, text in CHANNELS.items():
        assert f"- **{name}**: {text}" in page


def test_the_page_has_every_attack():
    page = _PAGE.read_text()

    for attack in ATTACKS:
        assert f"| {attack.name} | {attack.title} |" in page
    for key, reason in NOT_APPLICABLE.items():
        assert f"- **{key}** {reason}" in page
