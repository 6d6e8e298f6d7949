"""What statements take and give, remembered for all sessions of a kind."""

from __future__ import annotations

from collections import OrderedDict

from tenancy.data_isolation.engine.connection import Description
from tenancy.data_isolation.engine.session_key import SessionKey


class Descriptions:
    """Descriptions by kind of session and text; those used longest ago are forgotten.

    One that is out of date does no harm: each session that prepares a text hears what the server
    says of it then, and compares.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._known: OrderedDict[tuple[SessionKey, str], Description] = OrderedDict()

    def get(self, key: SessionKey, text: str) -> Description | None:
        """The description, if there is one."""
        found = self._known.get((key, text))
        if found is not None:
            self._known.move_to_end((key, text))
        return found

    def put(self, key: SessionKey, text: str, description: Description) -> None:
        """Remember a description."""
        self._known[key, text] = description
        self._known.move_to_end((key, text))
        while len(self._known) > self._entries_max:
            self._known.popitem(last=False)

    def drop(self, key: SessionKey, text: str) -> None:
        """Forget one that turned out to be wrong."""
        self._known.pop((key, text), None)
