"""Every attack, at every level and by every way in, and on the setup where it has to succeed."""

from __future__ import annotations

import pytest

from attacks.attack import Attack
from attacks.catalogue import ATTACKS
from attacks.channels import CHANNELS
from attacks.goals import carry_out
from attacks.product_stage import Level, ProductStage, Way
from attacks.report import Finding, Report
from attacks.weak_stage import WeakStage

pytestmark = pytest.mark.asyncio(loop_scope="session")

_EACH = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.mark.parametrize(
    ("level", "way", "attack"),
    [
        pytest.param(level, way, attack, id=f"{attack.name}-{level}-{way}")
        for attack in ATTACKS
        for level in Level
        for way in Way
        if way is Way.DIRECT or not attack.one_way
    ],
)
async def test_attack(
    product: ProductStage, report: Report, attack: Attack, level: Level, way: Way
):
    """The victim keeps what it has, unless the channel is one of those that are accepted."""
    async with product.scene(level, way) as scene:
        outcome = await carry_out(attack, scene)
    assert outcome.answers, "the attack was not tried"
    channel = attack.accepted.get(f"{level}/{way}", attack.accepted.get(level))
    report.findings.append(
        Finding(
            attack=attack,
            level=level,
            way=way,
            reached=outcome.reached,
            blocker=outcome.blocker,
            channel=channel,
        )
    )
    if channel is None:
        assert not outcome.reached, outcome.answers
    else:
        assert channel in CHANNELS
        assert outcome.reached, f"no longer open: {channel}; {outcome.answers}"


@_EACH
async def test_control(weak: WeakStage, report: Report, attack: Attack):
    """The attack works where nothing keeps it from working."""
    async with weak.scene(attack.weak_as, attack.weak_pool) as scene:
        outcome = await carry_out(attack, scene)
    assert outcome.reached, outcome.answers
    report.controls.add(attack.name)
