"""Figures of tenant actors that only grow, whatever becomes of the actors.

Prometheus takes a counter that falls for one that began anew, and counts all of it once more. But
an actor that is restarted begins anew, one that does not answer in time tells of nothing, and one
that has ended never does again; those of single tenants, which are one series, do so all the time.
So what is told grows by what was added to each since it was last heard of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tenancy.data_isolation.actors.directory import ActorName, is_dedicated
from tenancy.data_isolation.engine.operation_figures import Figures, LevelFigures

#: Actors of single tenants are one: their names have the tenants' numbers.
DEDICATED: Final = "dedicated"
#: Actors of which it is remembered what they told last; who is beyond that counts anew.
_ACTORS_MAX: Final = 1_000


@dataclass(kw_only=True, slots=True)
class LastingFigures:
    """What the actors of one label came to since this process first heard of them."""

    levels: dict[str, LevelFigures] = field(default_factory=dict)
    windows_written: int = 0
    windows_lost: int = 0

    def add(self, figures: Figures, last: Figures | None) -> None:
        """Count in what an actor tells; `last` is what it told before."""
        if last is not None and not _goes_on(figures, last):
            last = None
        self.windows_written += figures.windows_written - (last.windows_written if last else 0)
        self.windows_lost += figures.windows_lost - (last.windows_lost if last else 0)
        for level, found in figures.levels.items():
            before = last.levels.get(level) if last else None
            known = self.levels.setdefault(level, LevelFigures())
            known.include(found if before is None else found.since(before))


class ActorFigures:
    """Follows the figures of all actors. Belongs to one event loop."""

    def __init__(self) -> None:
        self._last: OrderedDict[ActorName, Figures] = OrderedDict()
        #: By label, in the order in which they were first heard of.
        self.found: dict[str, LastingFigures] = {}

    def take(self, told: Mapping[ActorName, Figures | None]) -> None:
        """Take what each actor tells now; None = it does not answer."""
        for name, figures in sorted(told.items()):
            if figures is None:
                continue
            label = label_of(name)
            known = self.found.setdefault(label, LastingFigures())
            known.add(figures, self._last.get(name))
            self._last[name] = figures
            self._last.move_to_end(name)
        while len(self._last) > max(_ACTORS_MAX, len(told)):
            self._last.popitem(last=False)


def label_of(name: ActorName) -> str:
    """The actor's label."""
    return DEDICATED if is_dedicated(name) else name


def _goes_on(figures: Figures, last: Figures) -> bool:
    """Whether it is the same process that tells: its figures only grow."""
    return (
        figures.windows_written >= last.windows_written
        and figures.windows_lost >= last.windows_lost
        and all(
            level in figures.levels and figures.levels[level].covers(before)
            for level, before in last.levels.items()
        )
    )
