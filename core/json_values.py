"""What JSON values can be that not everything can carry. Loops: depth has no limit here.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def is_deeper(value: Any, depth_max: int) -> bool:
    """Whether containers are nested deeper than `depth_max`."""
    level = [value]
    for _ in range(depth_max):
        level = [part for parent in level for part in _containers_in(parent)]
        if not level:
            return False
    return any(isinstance(item, list | dict) for item in level)


def holds_surrogate(value: Any) -> bool:
    """Whether a text in `value` holds half of a surrogate pair (RFC 8259, 8.2): not Unicode."""
    return any(_has_surrogate(text) for text in _texts(value))


def _containers_in(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, list | dict))


def _texts(value: Any) -> Iterator[str]:
    """Every text in `value`, names included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            yield from item
            waiting.extend(item.values())


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
