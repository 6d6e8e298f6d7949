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

#: Attacks of the catalogue that are no SQL of a tenant's: what they are, and who tries them.
ELSEWHERE: Final[dict[str, tuple[str, str]]] = {}

#: Attacks of the catalogue that there is nothing to try for, with the reason.
NOT_APPLICABLE: Final[dict[str, str]] = {
    "P08": (
        "A pooler in transaction mode, in front of PostgreSQL, gives a session to many. The runtime "
        "has pools of its own and needs none; behind such a pooler it does not work, and does "
        "not leak either: a binding is signed for one server process."
    ),
    "B05": (
        "Dumps that are restored by a superuser run what tenants put into them. The runtime dumps "
        "and restores nothing: an export is rows as JSON, a hybrid tenant's tables are copied by "
        "INSERT."
    ),
}
