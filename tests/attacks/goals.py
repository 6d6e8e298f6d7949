"""Carries an attack out in a scene, and says whether the attacker got what it wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import assert_never

from attacks.answer import Answer, Blocker
from attacks.attack import Attack, Goal
from attacks.scene import ABSENT_CODE, ABSENT_ORDER, CANARY, VICTIM_CODE, VICTIM_ORDER, Scene

#: What the victim does next, where an attack does not say.
_USUAL = (
    "select count(*) from orders",
    "update tickets set note = note",
    "insert into tickets (id, note) values (900099, '{canary} new ticket')",
    "delete from tickets where id = 900099",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether the goal was reached, and at what the attack stopped otherwise."""

    reached: bool
    blocker: Blocker
    answers: tuple[Answer, ...]


async def carry_out(attack: Attack, scene: Scene) -> Outcome:
    """Try the attack, whatever prepares it included."""
    scene.names["canary"] = CANARY
    for text in attack.weakness if scene.is_weak else attack.setting_up:
        await scene.administrate(text)
    try:
        reached = await _try(attack, scene)
    finally:
        for text in () if scene.is_weak else attack.clearing_up:
            await scene.administrate(text)
    # Whatever an attack is about: rows of the victim in an answer are a leak.
    leaked = any(CANARY in text for answer in scene.answers for text in answer.cells())
    return Outcome(
        reached=reached or leaked,
        blocker=_blocker(scene.answers),
        answers=tuple(scene.answers),
    )


async def _try(attack: Attack, scene: Scene) -> bool:
    for text in attack.before:
        await scene.ask_victim(text)
    before = await (scene.victims_state() if attack.before else scene.untouched_state())
    if attack.play is not None:
        reached = await attack.play(scene)
    elif attack.goal is Goal.TELL_APART:
        reached = await _told_apart(attack, scene)
    else:
        await scene.attack_in_turn(list(attack.steps))
        reached = await _reached(attack, scene, before)
    if attack.goal is not Goal.CHANGE and await scene.victims_state() != before:
        return True
    return reached


async def _reached(attack: Attack, scene: Scene, before: list[str]) -> bool:
    answers = scene.answers
    match attack.goal:
        case Goal.READ:
            return any(CANARY in text for answer in answers for text in answer.cells())
        case Goal.LEARN:
            seen = "\n".join(text for answer in answers for text in answer.cells())
            return any(re.search(rf"\b{re.escape(word)}\b", seen) for word in scene.secrets)
        case Goal.RUN:
            return not any(answer.failed for answer in answers)
        case Goal.CHANGE:
            for text in attack.after:
                await scene.ask_victim(text)
            return await scene.victims_state() != before
        case Goal.HINDER:
            found = [await scene.ask_victim(text) for text in attack.after or _USUAL]
            return any(answer.failed for answer in found)
        case Goal.TELL_APART:
            raise AssertionError("told apart elsewhere")
        case _:
            assert_never(attack.goal)


async def _told_apart(attack: Attack, scene: Scene) -> bool:
    """Whether the steps end otherwise for what the victim has than for what nobody has."""
    ends = []
    for order, code in ((VICTIM_ORDER, VICTIM_CODE), (ABSENT_ORDER, ABSENT_CODE)):
        given = {"guessed_order": str(order), "guessed_code": code}
        answers = await scene.attack_in_turn(list(attack.steps), **given)
        # Its own guess is nothing that the attacker learns from.
        ends.append(
            [
                re.sub(rf"\b({order}|{code})\b", "?", f"{answer.rows} {answer.error}")
                for answer in answers
            ]
        )
    return ends[0] != ends[1]


def _blocker(answers: list[Answer]) -> Blocker:
    """What stopped the attack: the first thing that refused a step."""
    for answer in answers:
        if answer.blocker is not None:
            return answer.blocker
    return Blocker.NOTHING
