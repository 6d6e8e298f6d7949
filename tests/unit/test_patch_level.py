"""Which releases of PostgreSQL are started on, and what is said of the others."""

from __future__ import annotations

from datetime import date

import pytest

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.engine.findings import Finding, Severity
from tenancy.data_isolation.engine.patch_level import (
    FaultKind,
    known_releases,
    patch_findings,
    patch_level_told,
)

_TODAY = date(2026, 11, 26)


def found(version_num: int, today: date = _TODAY, allowed: str | None = None) -> list[Finding]:
    settings = Settings(vulnerable_postgres_allowed=allowed)
    return list(
        patch_findings(server="main", version_num=version_num, today=today, settings=settings)
    )


@pytest.mark.parametrize("version_num", [150_018, 150_019, 160_014, 170_010, 180_004, 180_006])
def test_releases_without_a_known_fault_have_no_finding(version_num: int):
    assert found(version_num) == []


@pytest.mark.parametrize(
    ("version_num", "cve"),
    [
        (150_003, "CVE-2023-39418"),
        (150_008, "CVE-2024-10976"),
        (150_013, "CVE-2025-8713"),
        (150_015, "CVE-2026-2006"),
        (160_011, "CVE-2026-2006"),
        (170_007, "CVE-2026-2006"),
        (180_001, "CVE-2026-2006"),
    ],
)
def test_releases_on_which_a_tenant_can_cross_are_unsafe(version_num: int, cve: str):
    unsafe, *others = found(version_num)

    assert unsafe.severity is Severity.UNSAFE
    assert cve in unsafe.problem
    assert "upgrade the server to PostgreSQL" in unsafe.advice
    assert all(finding.severity is Severity.WARNING for finding in others)


@pytest.mark.parametrize("version_num", [150_016, 160_012, 170_008, 180_002])
def test_the_first_release_above_the_floor_warns_of_the_rest(version_num: int):
    (finding,) = found(version_num)

    assert finding.severity is Severity.WARNING
    assert "CVE-2026-6473" in finding.problem


def test_a_release_that_is_allowed_by_name_warns_and_no_other_one_is():
    assert {finding.severity for finding in found(150_013, allowed="16.3, 15.13")} == {
        Severity.WARNING
    }
    assert found(150_012, allowed="15.13")[0].severity is Severity.UNSAFE
    assert found(150_013)[0].advice.endswith("TENANCY_VULNERABLE_POSTGRES_ALLOWED=15.13")


@pytest.mark.parametrize("text", ["yes", "15", "15.13,all", "15.13;16.3"])
def test_only_releases_can_be_allowed(text: str):
    with pytest.raises(SettingError, match="TENANCY_VULNERABLE_POSTGRES_ALLOWED"):
        Settings(vulnerable_postgres_allowed=text)


def test_the_end_of_a_major_version_is_told():
    assert found(150_018, today=date(2027, 11, 11)) == []
    (finding,) = found(150_018, today=date(2027, 11, 12))
    assert "gets no fixes any more since 2027-11-11" in finding.problem


def test_what_the_list_cannot_know_is_said():
    (finding,) = found(190_000)
    assert "newer than what this release was tested with" in finding.problem
    assert patch_level_told(180_004).endswith("no fault known on 2026-05-14")
    assert "the release is newer than that list" in patch_level_told(180_005)


def test_the_list_is_sound():
    releases = known_releases()

    assert set(releases.newest) == set(releases.end_of_life) == {15, 16, 17, 18}
    assert len({fault.cve for fault in releases.faults}) == len(releases.faults) > 30
    for fault in releases.faults:
        assert set(fault.fixed) <= set(releases.newest)
        for major, minor in fault.fixed.items():
            assert 0 < minor <= releases.newest[major], fault.cve
        assert fault.tenants
    assert {fault.kind for fault in releases.faults} == set(FaultKind)
    assert {major: releases.floor(major) for major in releases.newest} == {
        15: 16,
        16: 12,
        17: 8,
        18: 2,
    }
