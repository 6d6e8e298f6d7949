"""The commands of a page of the documentation, and what it says that they print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide-moving-a-big-tenant.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MOVE = re.compile(r"\bm_[0-9a-f]{20}\b")
#: A page need not repeat everything.
_LEFT_OUT = "..."
#: Only there while it is so: how far a move has come is a matter of time.
_SOMETIMES = {"behind", "left", "took", "attempts", "failures"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line that a reader types, and what the page prints below it."""

    text: str
    printed: str


def commands(page: Path = GUIDE) -> list[Command]:
    """The commands of a page, in their order."""
    found = []
    for block in _BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            text, _, printed = part.partition("\n")
            found.append(Command(text=text, printed=printed))
    return found


def program(page: Path = GUIDE) -> tuple[str, str]:
    """The program of a page, and what it prints."""
    ((code, printed),) = re.findall(
        r"^```python\n(.*?)^```\n+```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return code, printed


class MoveIds:
    """Which moves the ids of a page stand for: those that were seen, in the same order."""

    def __init__(self, page: Path = GUIDE) -> None:
        self._of_page = list(dict.fromkeys(_MOVE.findall(page.read_text())))
        self._seen: list[str] = []

    def note(self, printed: str) -> None:
        """Remember moves that are seen for the first time."""
        self._seen = list(dict.fromkeys([*self._seen, *_MOVE.findall(printed)]))

    def in_command(self, text: str) -> str:
        """A command of the page, about the move that was made here."""
        return _MOVE.sub(lambda found: self._seen[self._of_page.index(found[0])], text)


def labels(printed: str) -> set[str]:
    """What lines begin with: names of fields, of columns, and words; ids and numbers left out."""
    found = set()
    for line in printed.splitlines():
        first = re.split(r"\s{2,}|:", line.strip())[0]
        if first and first != _LEFT_OUT and not re.search(r"\d", first):
            found.add(first)
    return found - _SOMETIMES


def prints(printed: str, command: Command) -> bool:
    """Whether everything is there that the page has below a command."""
    return labels(command.printed) <= labels(printed)
