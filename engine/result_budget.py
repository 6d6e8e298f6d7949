"""What the results of one batch may have together."""

from __future__ import annotations


class ResultBudget:
    """Bytes that are left for results which somebody holds all at the same time.

    Shared by the operations of a batch, one or several of which run at a time. Bytes are those of
    rows on their way from the server.
    """

    __slots__ = ("bytes_max", "left")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = self.left = bytes_max

    def take(self, size: int) -> bool:
        """Take so many bytes, if they are there; whether they were."""
        if size > self.left:
            return False
        self.left -= size
        return True
