"""All attacks, and where those are tried that are no SQL."""

from __future__ import annotations

from typing import Final

from attacks import (
    context_forgery,
    covert_channels,
    definer_rights,
    denial,
    other_places,
    residue,
    row_security,
)
from attacks.attack import Attack

ATTACKS: Final[tuple[Attack, ...]] = (
    *context_forgery.ATTACKS,
    *row_security.ATTACKS,
    *definer_rights.ATTACKS,
    *covert_channels.ATTACKS,
    *residue.ATTACKS,
    *other_places.ATTACKS,
    *denial.ATTACKS,
)
