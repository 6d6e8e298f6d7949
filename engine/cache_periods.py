"""How long the periods of result caches need to be heard of (`cache_switch`)."""

from __future__ import annotations

from tenancy.data_isolation.core.settings import Settings


def heard_s(settings: Settings) -> float:
    """How long it takes until every process has heard of a change of the catalog, or knows nothing.

    As long as moves wait (`mover.announced_s`): twice as long as what is known is believed.
    """
    return 2 * settings.placement_refresh_ms / 1_000
