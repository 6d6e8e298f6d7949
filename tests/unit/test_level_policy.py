"""When a tenant is moved to another level: the rules alone, and over any course of its load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.memory_gateway import tenant as tenant_at

from tenancy.data_isolation.core import IsolationLevel, Settings, TenantId, TenantSize
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import Region, ServerName
from tenancy.data_isolation.core.level_policy import (
    Action,
    Edge,
    LatencyGuard,
    LevelBounds,
    LevelPolicy,
    Limits,
    MoveBudget,
    Streak,
    Subject,
    Verdict,
    Window,
    decide,
    level_bounds,
)
from tenancy.data_isolation.core.rules import strength
from tenancy.data_isolation.core.types import TenantContext, TenantStatus, TenantType
from tenancy.data_isolation.engine.level_review import level_policy
from tenancy.data_isolation.strategies.base import rule_book

ROW, SCHEMA, DATABASE = IsolationLevel
ACME = TenantId("acme")
WINDOW_S = 60.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVERS: dict[ServerName, Region | None] = {ServerName("main"): None}
SMALL = TenantSize(rows=10, bytes=1_000, complete=True)


def limits(load: float, share: float | None = None, rows: int | None = None) -> Limits:
    return Limits(
        operations_per_s=load,
        rows=rows or int(load * 1_000),
        bytes=int(load * 100_000),
        busy_share=share,
    )


POLICY = LevelPolicy(
    to_schema=Edge(promote=limits(100, 0.5), demote=limits(20, 0.2)),
    to_database=Edge(promote=limits(1_000), demote=limits(200)),
    promote_windows=3,
    demote_windows=6,
    cooldown_s=20 * WINDOW_S,
    failed_cooldown_s=60 * WINDOW_S,
)
BUDGET = MoveBudget(per_hour_max=2, at_once_max=1)


def load(operations_per_s: float, **more: Any) -> Window:
    return Window(operations_per_s=operations_per_s, **({"size": SMALL} | more))


def streak_of(level: IsolationLevel, *windows: Window) -> Streak:
    streak = Streak(level=level)
    for window in windows:
        streak = streak.after(POLICY, level, window)
    return streak


def verdict(
    level: IsolationLevel, *windows: Window, tenant: Any = None, now: datetime = NOW, **facts: Any
) -> Verdict:
    subject = Subject(
        tenant=tenant or tenant_at(ACME, level),
        streak=streak_of(level, *windows),
        **({"bounds": LevelBounds(), "chosen": ROW} | facts),
    )
    return decide(POLICY, subject, servers=SERVERS, now=now)


def moved_to(found: Verdict) -> tuple[Action, IsolationLevel | None]:
    return found.action, None if found.target is None else found.target.level


# What leads up


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (load(100), "100 operations/s >= 100"),
        (load(5, busy_share=0.5), "50 % of its server's time >= 50"),
        (load(5, size=TenantSize(rows=100_000, bytes=9, complete=False)), "100,000 rows"),
        (load(5, size=TenantSize(rows=9, bytes=10_000_000, complete=True)), "10,000,000 bytes"),
    ],
)
def test_a_tenant_that_reaches_a_value_in_enough_windows_is_promoted(window, reason):
    assert moved_to(verdict(ROW, window, window)) == (Action.KEEP, None)

    found = verdict(ROW, window, window, window)

    assert moved_to(found) == (Action.PROMOTE, SCHEMA)
    assert reason in found.reasons[0]
    assert "3 windows in a row" in found.reasons[0]


def test_a_window_in_between_begins_the_count_anew():
    high, between = load(100), load(99)
    assert verdict(ROW, high, high, between, high, high).action is Action.KEEP
    assert verdict(ROW, high, high, between, high, high, high).action is Action.PROMOTE


def test_a_very_high_load_leads_from_rows_to_a_database_at_once():
    assert moved_to(verdict(ROW, *[load(1_000)] * 3)) == (Action.PROMOTE, DATABASE)
    # What all of the windows ask for counts.
    mixed = [load(1_000), load(150), load(1_000)]
    assert moved_to(verdict(ROW, *mixed)) == (Action.PROMOTE, SCHEMA)
    assert moved_to(verdict(SCHEMA, *[load(1_000)] * 3)) == (Action.PROMOTE, DATABASE)
    assert verdict(SCHEMA, *[load(150)] * 3).action is Action.KEEP
    assert verdict(DATABASE, *[load(10_000)] * 30).action is Action.KEEP


def test_a_share_of_the_servers_time_says_nothing_without_neighbours_or_at_other_levels():
    assert verdict(ROW, *[load(5, busy_share=None)] * 9).action is Action.KEEP
    assert verdict(SCHEMA, *[load(50, busy_share=1.0)] * 9).action is Action.KEEP


# What leads down


def test_a_tenant_that_is_below_all_values_for_long_goes_back():
    quiet = load(19)
    assert verdict(SCHEMA, *[quiet] * 5).action is Action.KEEP
    assert moved_to(verdict(SCHEMA, *[quiet] * 6)) == (Action.DEMOTE, ROW)
    assert moved_to(verdict(DATABASE, *[quiet] * 6)) == (Action.DEMOTE, ROW)
    assert moved_to(verdict(DATABASE, *[load(100)] * 6)) == (Action.DEMOTE, SCHEMA)
    assert verdict(SCHEMA, *[load(20)] * 60).action is Action.KEEP
    assert verdict(ROW, *[quiet] * 60).action is Action.KEEP


@pytest.mark.parametrize(
    "size",
    [
        None,
        TenantSize(rows=1, bytes=1, complete=False),
        TenantSize(rows=20_000, bytes=1, complete=True),
    ],
)
def test_a_tenant_that_is_large_or_of_unknown_size_stays(size):
    assert verdict(SCHEMA, *[load(0, size=size)] * 60).action is Action.KEEP


def test_no_tenant_goes_below_what_others_have_chosen_or_rules_ask_for():
    quiet = [load(0)] * 6
    chosen = verdict(SCHEMA, *quiet, chosen=SCHEMA)
    assert chosen.action is Action.KEEP
    assert "put there by others" in chosen.reasons[0]
    assert moved_to(verdict(DATABASE, *quiet, chosen=SCHEMA)) == (Action.DEMOTE, SCHEMA)
    ruled = verdict(SCHEMA, *quiet, bounds=LevelBounds(floor=(SCHEMA, "enterprise contract")))
    assert ruled.action is Action.KEEP
    assert "enterprise contract" in ruled.reasons[0]
    demanded = LevelBounds(demanded=(DATABASE, "regulated data"))
    assert verdict(DATABASE, *quiet, bounds=demanded).action is Action.KEEP


# What goes before load


def test_compliance_and_residency_come_first():
    found = verdict(ROW, bounds=LevelBounds(demanded=(DATABASE, "regulated data")))
    assert moved_to(found) == (Action.PROMOTE, DATABASE)
    assert "regulated data" in found.reasons[0]

    subject = Subject(
        tenant=replace(tenant_at(ACME, ROW), region=Region("eu")),
        streak=Streak(level=ROW),
        bounds=LevelBounds(),
        chosen=ROW,
    )
    away = {ServerName("main"): Region("us"), ServerName("other"): Region("eu")}
    relocated = decide(POLICY, subject, servers=away, now=NOW)
    assert relocated.action is Action.RELOCATE
    assert relocated.target is not None
    assert relocated.target.region == "eu"
    assert (
        decide(POLICY, subject, servers={ServerName("main"): Region("eu")}, now=NOW).target is None
    )
    # There is nowhere to go.
    assert decide(POLICY, subject, servers=SERVERS, now=NOW).target is None


def test_levels_that_rules_avoid_are_left_out():
    avoided = LevelBounds(avoided={DATABASE: "many databases"})
    busy = [load(1_000)] * 3
    assert moved_to(verdict(ROW, *busy, bounds=avoided)) == (Action.PROMOTE, SCHEMA)
    found = verdict(SCHEMA, *busy, bounds=avoided)
    assert found.action is Action.KEEP
    assert "many databases" in found.reasons[0]


def test_a_tenant_is_left_alone_while_it_is_moved_suspended_or_was_moved_lately():
    busy = [load(100)] * 3
    suspended = replace(tenant_at(ACME, ROW), status=TenantStatus.SUSPENDED)
    assert verdict(ROW, *busy, tenant=suspended).reasons == ("it is suspended",)
    assert verdict(ROW, *busy, under_move=True).reasons == ("it is being moved",)
    for failed, pause_s in ((False, POLICY.cooldown_s), (True, POLICY.failed_cooldown_s)):
        pause = timedelta(seconds=pause_s)
        facts: dict[str, Any] = {"moved_at": NOW, "move_failed": failed}
        almost = NOW + pause - timedelta(seconds=1)
        assert verdict(ROW, *busy, now=almost, **facts).action is Action.KEEP
        assert verdict(ROW, *busy, now=NOW + pause, **facts).action is Action.PROMOTE
    answered = verdict(ROW, *busy, now=NOW + timedelta(seconds=60), answered_at=NOW)
    assert answered.action is Action.KEEP


def test_what_the_rules_say_beside_load():
    book = rule_book(None)

    def bounds(kind: TenantType = TenantType.STANDARD, *regimes: str, databases: int = 0) -> Any:
        context = TenantContext(tenant_id=ACME, tenant_type=kind, compliance=regimes)
        return level_bounds(book, tenant_at(ACME, ROW, context), databases=databases)

    assert bounds() == LevelBounds(avoided={})
    assert bounds(TenantType.STANDARD, "HIPAA").demanded == (DATABASE, "regulated data")
    assert bounds(TenantType.ENTERPRISE).floor == (SCHEMA, "enterprise contract")
    assert bounds(TenantType.ENTERPRISE).demanded is None
    assert bounds(TenantType.FREE).avoided == {DATABASE: "free tenants"}
    assert bounds(databases=200).avoided == {DATABASE: "many databases"}


# Values that contradict each other


def test_values_by_which_a_tenant_would_go_to_and_fro_are_refused():
    with pytest.raises(SettingError, match="to and fro"):
        Edge(promote=limits(100), demote=limits(100))
    with pytest.raises(SettingError, match="to and fro"):
        Edge(promote=limits(100, 0.5), demote=limits(20))
    with pytest.raises(SettingError, match="shorter"):
        replace(POLICY, failed_cooldown_s=1.0)
    with pytest.raises(SettingError, match="higher"):
        replace(POLICY, to_schema=POLICY.to_database, to_database=POLICY.to_schema)


def test_the_settings_make_a_policy_and_say_which_variables_do_not_fit():
    policy = level_policy(Settings())
    assert policy.to_schema.promote.operations_per_s == 500
    assert policy.to_schema.promote.busy_share == 0.5
    assert policy.to_database.demote.busy_share is None
    for values, named in (
        ({"schema_demote_rows": 10_000_000}, "TENANCY_SCHEMA_PROMOTE_ROWS"),
        ({"database_demote_operations_per_s": 1e6}, "TENANCY_DATABASE_PROMOTE_OPERATIONS_PER_S"),
        ({"database_promote_bytes": 50_000_000_000}, "TENANCY_DATABASE_PROMOTE_BYTES"),
        ({"promotion_failed_cooldown_s": 1.0}, "TENANCY_PROMOTION_FAILED_COOLDOWN_S"),
        (
            {"orchestration": "automatic", "orchestrated_retention_s": 3_600.0},
            "TENANCY_ORCHESTRATED_RETENTION_S must be below TENANCY_MOVE_RETENTION_S",
        ),
        ({"orchestration": "on"}, "TENANCY_ORCHESTRATION is 'on'; use off, propose, automatic"),
    ):
        with pytest.raises(SettingError, match=named):
            Settings(**values).check_levels()  # type: ignore[arg-type]


# The budget, and whether a tenant is worse off


def test_the_budget_says_what_is_against_a_move():
    assert BUDGET.against(lately=1, under_way=0) is None
    assert "under way" in (BUDGET.against(lately=0, under_way=1) or "")
    assert "an hour" in (BUDGET.against(lately=2, under_way=0) or "")


def test_a_tenant_goes_back_when_its_operations_take_much_longer():
    guard = LatencyGuard(factor=2.0, slack_ms=1.0, windows_min=3, operations_min=10)

    assert "5 ms" in (guard.verdict(2.0, [(10, 5.0), (10, 5.0), (10, 5.0)]) or "")
    # Not by one slow moment, too few windows or operations, or next to nothing.
    assert guard.verdict(2.0, [(10, 90.0), (10, 2.0), (10, 2.0)]) is None
    assert guard.verdict(2.0, [(10, 90.0), (10, 90.0)]) is None
    assert guard.verdict(2.0, [(10, 90.0), (10, 90.0), (9, 90.0)]) is None
    assert guard.verdict(0.1, [(10, 1.0)] * 3) is None
    assert guard.verdict(None, [(10, 90.0)] * 3) is None


# Any course of load


@dataclass
class Simulated:
    """A tenant whose moves take some windows, and end as the test wants."""

    level: IsolationLevel
    chosen: IsolationLevel
    streak: Streak = field(init=False)
    moving: int = 0
    target: IsolationLevel | None = None
    ended_at: datetime | None = None
    failed: bool = False
    starts: list[datetime] = field(default_factory=list)
    ends: list[tuple[datetime, bool]] = field(default_factory=list)
    levels: list[IsolationLevel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.streak = Streak(level=self.level)

    def step(self, window: Window, now: datetime, room: bool, fails: bool, takes: int) -> bool:
        """One window; whether a move was begun."""
        if self.moving:
            self.moving -= 1
            if not self.moving:
                assert self.target is not None
                self.level = self.level if fails else self.target
                self.ended_at, self.failed = now, fails
                self.ends.append((now, fails))
                self.levels.append(self.level)
        self.streak = self.streak.after(POLICY, self.level, window)
        found = decide(
            POLICY,
            Subject(
                tenant=tenant_at(ACME, self.level),
                streak=self.streak,
                bounds=LevelBounds(),
                chosen=self.chosen,
                under_move=self.moving > 0,
                moved_at=self.ended_at,
                move_failed=self.failed,
            ),
            servers=SERVERS,
            now=now,
        )
        if found.target is None or not room:
            return False
        self.target, self.moving = found.target.level, takes
        self.starts.append(now)
        return True


WINDOWS = st.builds(
    load,
    st.sampled_from([0.0, 10, 19, 20, 50, 99, 100, 101, 199, 200, 500, 999, 1_000, 5_000]),
    busy_share=st.sampled_from([None, 0.0, 0.19, 0.2, 0.4, 0.5, 1.0]),
    size=st.sampled_from(
        [
            None,
            SMALL,
            TenantSize(rows=50_000, bytes=10, complete=True),
            TenantSize(rows=100_000, bytes=10, complete=False),
        ]
    ),
)
#: Each kind of window for a while, so that counts in a row are reached.
COURSE = st.lists(st.tuples(WINDOWS, st.integers(1, 12)), min_size=1, max_size=8)
LEVELS = st.sampled_from(list(IsolationLevel))


def at(number: int) -> datetime:
    return NOW + timedelta(seconds=number * WINDOW_S)


@given(
    level=LEVELS, course=COURSE, ends=st.lists(st.booleans(), min_size=1), takes=st.integers(1, 4)
)
def test_two_moves_of_a_tenant_are_the_pause_apart_whatever_it_does(level, course, ends, takes):
    tenant, number = Simulated(level=level, chosen=ROW), 0
    for window, times in course:
        for _ in range(times):
            tenant.step(window, at(number), True, ends[number % len(ends)], takes)
            number += 1

    for (ended_at, failed), begun_at in zip(tenant.ends, tenant.starts[1:], strict=False):
        pause_s = POLICY.failed_cooldown_s if failed else POLICY.cooldown_s
        assert (begun_at - ended_at).total_seconds() >= pause_s


@given(level=LEVELS, window=WINDOWS, number=st.integers(1, 90))
def test_a_steady_load_gives_one_move_at_most(level, window, number):
    tenant = Simulated(level=level, chosen=ROW)
    for step in range(number):
        tenant.step(window, at(step), True, False, 2)
    assert len(tenant.starts) <= 1


@given(chosen=LEVELS, course=COURSE)
def test_a_tenant_is_never_below_what_others_have_chosen(chosen, course):
    tenant, number = Simulated(level=chosen, chosen=chosen), 0
    for window, times in course:
        for _ in range(times):
            tenant.step(window, at(number), True, False, 1)
            number += 1
    assert all(strength(level) >= strength(chosen) for level in tenant.levels)


@given(courses=st.lists(COURSE, min_size=1, max_size=5), takes=st.integers(1, 5))
def test_the_budget_of_the_fleet_is_never_exceeded(courses, takes):
    fleet = [Simulated(level=ROW, chosen=ROW) for _ in courses]
    loads = [[window for window, times in course for _ in range(times)] for course in courses]
    started: list[datetime] = []
    for number in range(max(map(len, loads))):
        now = at(number)
        for tenant, windows in zip(fleet, loads, strict=True):
            lately = sum(now - timedelta(hours=1) < item for item in started)
            under_way = sum(other.moving > 0 for other in fleet if other is not tenant)
            room = BUDGET.against(lately=lately, under_way=under_way) is None
            if tenant.step(windows[number % len(windows)], now, room, False, takes):
                started.append(now)
        assert sum(other.moving > 0 for other in fleet) <= BUDGET.at_once_max
    for first in started:
        within = [item for item in started if first <= item < first + timedelta(hours=1)]
        assert len(within) <= BUDGET.per_hour_max


def test_the_simulation_moves_at_all():
    tenant = Simulated(level=ROW, chosen=ROW)
    course = [load(100)] * 5 + [load(0)] * 40
    for number, window in enumerate(course):
        tenant.step(window, at(number), True, False, 2)
    assert tenant.levels == [SCHEMA, ROW]
