"""What statements take and give, remembered for all sessions of a kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping

from tenancy.data_isolation.engine.connection import Description
from tenancy.data_isolation.engine.session_key import SessionKey


class Descriptions:
    """Descriptions by kind of session and text. Bounded: the kind used longest ago is forgotten.

    One that is out of date does no harm: each session that prepares a text hears what the server
    says of it then, and compares.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._known: OrderedDict[SessionKey, dict[str, Description]] = OrderedDict()

    def of(self, key: SessionKey) -> MutableMapping[str, Description]:
        """The descriptions for a kind of session, by text. Put one in with `put`."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = {}
        self._known.move_to_end(key)
        return found

    def put(self, key: SessionKey, text: str, description: Description) -> None:
        """Remember a description."""
        own = self.of(key)
        own[text] = description
        while sum(map(len, self._known.values())) > self._entries_max and len(self._known) > 1:
            self._known.popitem(last=False)
        if len(own) > self._entries_max:
            own.clear()

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def drop(self, key: SessionKey, text: str) -> None:
        """Forget one that turned out to be wrong."""
        self.of(key).pop(text, None)
