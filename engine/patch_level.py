"""Which faults of PostgreSQL are known in a release, and on which ones nothing is started.

The list is data (`data/postgresql_releases.toml`). A release with a fault by which a tenant's SQL
alone crosses its boundary stops the start, unless `Settings.vulnerable_postgres_allowed` names that
very release. What the list cannot know is said: releases newer than it, and other major versions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import cache
from importlib import resources

from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.findings import Finding, Severity

CHECK = "patch_level"
_SECURITY_PAGE = "https://www.postgresql.org/support/security/"


class FaultKind(StrEnum):
    """What a fault lets somebody do; the words of the list."""

    BOUNDARY = "boundary"
    EXTENSION = "extension"
    DENIAL = "denial"
    TOOLS = "tools"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One CVE."""

    cve: str
    kind: FaultKind
    #: Major version → the first minor one without the fault.
    fixed: Mapping[int, int]
    #: What it means for tenants.
    tenants: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseList:
    """What is known of PostgreSQL's releases, and until when."""

    known_until: date
    #: Major version → newest minor one that the list knows.
    newest: Mapping[int, int]
    end_of_life: Mapping[int, date]
    faults: tuple[Fault, ...]

    def faults_of(self, version_num: int) -> tuple[Fault, ...]:
        """The known faults of a release; `version_num` is 180004 for 18.4."""
        major, minor = divmod(version_num, 10_000)
        return tuple(fault for fault in self.faults if minor < fault.fixed.get(major, 0))

    def floor(self, major: int) -> int:
        """The first minor version of `major` without a fault that crosses the boundary."""
        return max(
            (fault.fixed.get(major, 0) for fault in self.faults if _crosses(fault)), default=0
        )


@cache
def known_releases() -> ReleaseList:
    """The list that comes with this release."""
    path = resources.files("tenancy.data_isolation.engine") / "data" / "postgresql_releases.toml"
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    majors = {int(major): entry for major, entry in document["majors"].items()}
    return ReleaseList(
        known_until=document["known_until"],
        newest={major: entry["newest"] for major, entry in majors.items()},
        end_of_life={major: entry["end_of_life"] for major, entry in majors.items()},
        faults=tuple(
            Fault(
                cve=item["id"],
                kind=FaultKind(item["kind"]),
                fixed={int(major): minor for major, minor in item["fixed"].items()},
                tenants=item["tenants"],
            )
            for item in document["cves"]
        ),
    )


def patch_findings(
    *, server: str, version_num: int, today: date, settings: Settings
) -> Iterator[Finding]:
    """What is wrong with the release that a server runs; nothing when no fault is known."""
    releases = known_releases()
    major, minor = divmod(version_num, 10_000)
    faults = releases.faults_of(version_num)
    upgrade = f"upgrade the server to PostgreSQL {major}.{releases.newest.get(major, minor)}"
    crossing = tuple(fault for fault in faults if _crosses(fault))
    if crossing:
        allowed = f"{major}.{minor}" in settings.allowed_vulnerable_releases()
        yield Finding(
            check=CHECK,
            severity=Severity.WARNING if allowed else Severity.UNSAFE,
            server=server,
            database="",
            subject=f"PostgreSQL {major}.{minor}",
            problem=f"lets tenants cross their boundary: {_told(crossing)}",
            advice=upgrade
            if allowed
            else f"{upgrade} or later; to start all the same, knowing that tenants are not kept "
            f"apart from each other, set TENANCY_VULNERABLE_POSTGRES_ALLOWED={major}.{minor}",
        )
    others = tuple(fault for fault in faults if not _crosses(fault))
    if others:
        yield Finding(
            check=CHECK,
            severity=Severity.WARNING,
            server=server,
            database="",
            subject=f"PostgreSQL {major}.{minor}",
            problem=f"has known faults: {_told(others)}",
            advice=upgrade,
        )
    end = releases.end_of_life.get(major)
    if end is not None and today > end:
        yield Finding(
            check=CHECK,
            severity=Severity.WARNING,
            server=server,
            database="",
            subject=f"PostgreSQL {major}",
            problem=f"gets no fixes any more since {end}",
            advice=f"upgrade to PostgreSQL {max(releases.newest)}",
        )
    if major > max(releases.newest):
        yield Finding(
            check=CHECK,
            severity=Severity.WARNING,
            server=server,
            database="",
            subject=f"PostgreSQL {major}",
            problem="is newer than what this release was tested with",
            advice=f"use PostgreSQL {max(releases.newest)}, or a later release of the runtime",
        )


def patch_level_told(version_num: int) -> str:
    """What can be said of a release without a finding, and what cannot."""
    releases = known_releases()
    major, minor = divmod(version_num, 10_000)
    told = f"PostgreSQL {major}.{minor}, no fault known on {releases.known_until}"
    if minor > releases.newest.get(major, minor):
        return f"{told}; the release is newer than that list, see {_SECURITY_PAGE} for later ones"
    return told


def _crosses(fault: Fault) -> bool:
    return fault.kind is FaultKind.BOUNDARY


def _told(faults: tuple[Fault, ...]) -> str:
    return "; ".join(f"{fault.cve} ({fault.tenants})" for fault in faults)
