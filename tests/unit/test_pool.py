"""Who gets a session next: fairness, budgets, bounds and what happens at the edges.

Sessions here are objects that do nothing; the pool knows no more of them than its Protocol says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    RoleName,
    SchemaName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.engine import pool
from tenancy.data_isolation.engine.pool import ServerPool
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.session_line import Request

LIMITS = TierLimits(long_statements_max=1_000)
#: Sessions here work until they are told that they are done, which is nobody's long statement.
QUICK = {"long_statement_ms": 1_000_000}


def key(role: str = "shared") -> SessionKey:
    return SessionKey(
        ServerName("main"), DatabaseName("tenancy"), SchemaName("app"), RoleName(role)
    )


class Session:
    def __init__(self, kind: SessionKey) -> None:
        self.key = kind
        self.used_at = 0.0
        self.bound_tenant: TenantNo | None = None
        self.closed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Whether the server lets go of it.
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def close(self) -> None:
        self.closed = True
        await self.let_go.wait()
        self.abort()
        await asyncio.sleep(0)

    def abort(self) -> None:
        self.closed = True
        if not self.ended.done():
            self.ended.set_result(None)


class Want(Request):
    __slots__ = ("done", "error", "released", "session")

    def __init__(self, tenant: int, kind: SessionKey | None = None, *, alone: bool = False) -> None:
        super().__init__(kind or key(), TenantNo(tenant), limits=LIMITS)
        self.alone = alone
        self.session: Session | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.released = asyncio.Event()
        self.error: TenancyError | None = None

    @property
    def abandoned(self) -> bool:
        return self.done.done()

    def refuse(self, error: TenancyError) -> None:
        self.error = error
        if not self.done.done():
            self.done.set_result(None)


class Stage:
    """A pool whose sessions work until they are told that they are done."""

    def __init__(self, **limits: Any) -> None:
        self.flights: list[tuple[Session, list[Want]]] = []
        self.sessions: list[Session] = []
        self.failures: list[TenancyError] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.most = 0
        self.pool = ServerPool(
            settings=Settings(**(QUICK | limits)),
            shared=lambda kind: kind.role == "shared",
            open_session=self._open,
            fly=self._fly,
        )

    async def _open(self, kind: SessionKey) -> Session:
        await self.hold.wait()
        if self.failures:
            raise self.failures.pop(0)
        session = Session(kind)
        self.sessions.append(session)
        self.most = max(self.most, sum(not item.closed for item in self.sessions))
        return session

    async def _fly(self, session: Session, wants: list[Want]) -> None:
        self.flights.append((session, wants))
        session.bound_tenant = wants[-1].tenant_no
        for want in wants:
            want.session = session
        for want in wants:
            await want.released.wait()
            if not want.done.done():
                want.done.set_result(None)

    def want(self, tenant: int, kind: SessionKey | None = None, **options: Any) -> Want:
        made = Want(tenant, kind, **options)
        self.pool.submit(made)
        return made


@asynccontextmanager
async def stage(**limits: Any) -> AsyncIterator[Stage]:
    made = Stage(**{"drain_timeout_s": 0.001} | limits)
    yield made
    await made.pool.close()


async def settle(until: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(10):
        while not until():
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_together_travels_together_over_a_few_sessions():
    async with stage() as scene:
        wants = [scene.want(n % 10) for n in range(64)]
        await settle(lambda: all(want.session for want in wants))

        assert len(scene.sessions) <= 4
        assert len(scene.flights) < 16
        assert sorted(id(w) for _, flight in scene.flights for w in flight) == sorted(
            map(id, wants)
        )


async def test_what_travels_alone_shares_its_session_with_nobody():
    async with stage() as scene:
        wants = [scene.want(1, alone=n % 2 == 0) for n in range(8)]
        for want in wants:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in wants))

        for _, flight in scene.flights:
            assert len(flight) == 1 or not any(want.alone for want in flight)


async def test_what_travels_alone_does_not_wait_for_what_gathers():
    async with stage() as scene:
        # So many sessions that some are left when the first ones have taken theirs.
        ready = [scene.want(1, alone=True) for _ in range(8)]
        await settle(lambda: all(want.session for want in ready))
        for want in ready:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in ready))
        first = [scene.want(n) for n in range(16)]
        await settle(lambda: all(want.session for want in first))
        short, alone = [scene.want(n) for n in range(3)], scene.want(20, alone=True)
        await turns(6)
        assert alone.session is not None
        assert not any(want.session for want in short), "they gather"
        # After a moment they go to work, although those before them have not come back.
        await settle(lambda: all(want.session for want in short))
        assert not any(want.done.done() for want in first)


async def test_requests_that_are_held_leave_nothing_behind_when_they_go():
    async with stage(connection_wait_ms=20) as scene:
        wants = [scene.want(n % 3, alone=n % 2 == 0) for n in range(40)]
        await settle(lambda: sum(want.done.done() for want in wants) >= 20)
        for want in wants:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in wants))
        await turns()
        (line,) = scene.pool._lines.values()
        assert (line.waiting, line.waiting_alone, line.short) == (0, 0, {})


async def test_tenants_take_turns_however_much_one_of_them_wants():
    async with stage(tenant_connections_max=1, server_connections_max=1) as scene:
        first = scene.want(1)
        await settle(lambda: first.session is not None)
        many = [scene.want(1) for _ in range(200)]
        one = scene.want(2)
        for want in [first, *many, one]:
            want.released.set()
        await settle(lambda: one.done.done())

        served = [want for _, flight in scene.flights for want in flight]
        assert served.index(one) < 60


async def test_a_session_goes_to_the_tenant_that_it_is_bound_to():
    async with stage() as scene:
        wants = [scene.want(n, alone=True) for n in range(4)]
        await settle(lambda: all(want.session for want in wants))
        for want in wants:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in wants))
        await turns()

        for tenant in (2, 0, 3, 1):
            again = scene.want(tenant)
            await settle(lambda again=again: again.session is not None)
            assert again.session is wants[tenant].session
            again.released.set()
            await settle(lambda again=again: again.done.done())


async def test_the_budget_holds_over_all_kinds_and_idle_sessions_make_room():
    async with stage(server_connections_max=5) as scene:
        for n in range(40):
            want = scene.want(n, key(f"t{n}"))
            want.released.set()
            await settle(lambda want=want: want.done.done())
            assert scene.pool.slots <= 5

        assert scene.most <= 5


async def test_more_kinds_than_sessions_are_all_served_though_one_never_stops():
    async with stage(server_connections_max=3) as scene:
        stop = False

        async def never_stops() -> None:
            while not stop:
                want = scene.want(0)
                want.released.set()
                await want.done

        async def once(n: int) -> None:
            for _ in range(3):
                want = scene.want(n, key(f"t{n}"))
                want.released.set()
                await want.done
                assert want.error is None

        busy = [asyncio.create_task(never_stops()) for _ in range(20)]
        await asyncio.gather(*(once(n) for n in range(1, 30)))
        stop = True
        await asyncio.gather(*busy)
        assert scene.most <= 3


async def test_tenants_that_hold_their_sessions_for_long_do_not_hide_those_behind_them():
    """The former have waited longest; the others' only chance are tenants that never stop."""
    async with stage(server_connections_max=10, tenant_connections_max=1) as scene:
        held = [scene.want(n, key(f"held{n}"), alone=True) for n in range(8) for _ in range(2)]
        await settle(lambda: all(want.session for want in held[::2]))
        stop = False

        async def never_stops(n: int) -> None:
            while not stop:
                want = scene.want(n, key(f"hot{n}"), alone=True)
                want.released.set()
                await want.done

        busy = [asyncio.create_task(never_stops(20 + n % 2)) for n in range(8)]
        await settle(lambda: scene.pool.slots == 10)
        await turns()
        cold = scene.want(30, key("cold"))
        cold.released.set()
        await asyncio.wait_for(cold.done, 1)
        stop = True
        await asyncio.gather(*busy)

        assert cold.error is None
        assert not any(want.done.done() for want in held)
        for want in held:
            want.released.set()


async def test_a_few_tenants_cannot_hold_all_sessions_of_a_server():
    async with stage(server_connections_max=16, tenant_connections_max=8) as scene:
        held = [scene.want(n, key(f"held{n}"), alone=True) for n in range(3) for _ in range(9)]
        await settle(lambda: sum(want.session is not None for want in held) == 14)
        cold = [scene.want(9 + n, key(f"cold{n}")) for n in range(50)]
        for want in cold:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in cold))

        assert [want.error for want in cold] == [None] * 50
        assert sum(want.session is not None for want in held) == 14
        for want in held:
            want.released.set()


async def test_a_tenant_that_is_alone_may_hold_all_sessions_of_a_server():
    async with stage(server_connections_max=8, tenant_connections_max=8) as scene:
        held = [scene.want(1, key("held"), alone=True) for _ in range(9)]
        await settle(lambda: sum(want.session is not None for want in held) == 8)
        for want in held:
            want.released.set()


async def test_a_first_session_for_each_comes_before_a_second_one_for_any():
    async with stage(server_connections_max=8) as scene:
        held = [scene.want(n, key(f"held{n}"), alone=True) for n in range(3) for _ in range(4)]
        others = [scene.want(9 + n, key(f"other{n}"), alone=True) for n in range(5)]
        await settle(lambda: scene.pool.slots == 8)
        await settle(lambda: all(want.session for want in [*others, *held[::4]]))

        assert sum(want.session is not None for want in held) == 3
        for want in [*held, *others]:
            want.released.set()


async def test_a_tenant_that_has_work_keeps_its_session_while_free_ones_can_make_room():
    limits = {"server_connections_max": 3, "tenant_connections_max": 1}
    async with stage(connections_opening_max=1, **limits) as scene:
        hot = [scene.want(1, key("hot"), alone=True) for _ in range(4)]
        free = [scene.want(n, key(f"free{n}")) for n in (2, 3)]
        await settle(lambda: all(want.session for want in (hot[0], *free)))
        for want in free:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in free))
        scene.hold.clear()
        cold = [scene.want(n, key(f"cold{n}")) for n in (4, 5)]
        # One of the free sessions has gone, and the one in its place is being opened.
        await settle(lambda: sum(item.closed for item in scene.sessions) == 1)
        await turns()
        for want in hot:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in hot))

        assert len({id(want.session) for want in hot}) == 1
        scene.hold.set()
        for want in cold:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in cold))
        assert scene.most <= 3


async def test_tenants_that_work_all_the_time_leave_each_other_their_sessions(monkeypatch):
    monkeypatch.setattr(pool, "_COLD_S", 1e9)
    async with stage(server_connections_max=6) as scene:
        for n in range(4):
            first = scene.want(n, key(f"t{n}"))
            first.released.set()
            await settle(lambda first=first: first.done.done())
        more = [scene.want(0, key("t0"), alone=True) for _ in range(3)]
        await settle(lambda: sum(want.session is not None for want in more) == 3)
        assert not any(session.closed for session in scene.sessions)

        # There is no slot left, and the others have used their only one just now.
        most = scene.want(0, key("t0"), alone=True)
        await turns()
        assert most.session is None
        assert not any(session.closed for session in scene.sessions)

        # Who has none gets one of those who have several, not somebody's only one.
        for want in more:
            want.released.set()
        await settle(lambda: most.session is not None)
        newcomer = scene.want(9, key("new"))
        await settle(lambda: newcomer.session is not None)
        assert [session.key.role for session in scene.sessions if session.closed] == ["t0"]

        for want in (newcomer, most):
            want.released.set()


async def test_a_line_whose_session_is_held_up_does_not_wait_for_others_to_rest(monkeypatch):
    monkeypatch.setattr(pool, "_COLD_S", 0.05)
    async with stage(server_connections_max=2) as scene:
        busy = scene.want(1, key("busy"))
        busy.released.set()
        await settle(busy.done.done)
        # As if it were in use all the time, so that it is never cold.
        scene.sessions[0].used_at = float("inf")
        held = scene.want(2, key("held"), alone=True)
        await settle(lambda: held.session is not None)
        behind = scene.want(2, key("held"), alone=True)
        await turns()
        assert behind.session is None

        await settle(lambda: behind.session is not None)

        assert [session.key.role for session in scene.sessions if session.closed] == ["busy"]
        for want in (held, behind):
            want.released.set()


async def test_a_session_that_nobody_has_used_for_a_while_goes_to_who_can_use_it(monkeypatch):
    monkeypatch.setattr(pool, "_COLD_S", 0.0)
    async with stage(server_connections_max=2) as scene:
        rare = scene.want(1, key("rare"))
        rare.released.set()
        await settle(rare.done.done)
        busy = [scene.want(2, key("busy"), alone=True) for _ in range(2)]
        await settle(lambda: all(want.session for want in busy))

        assert [session.key.role for session in scene.sessions if session.closed] == ["rare"]
        for want in busy:
            want.released.set()


async def test_one_who_needs_a_session_costs_the_others_no_more_than_one():
    async with stage(server_connections_max=4) as scene:
        free = [scene.want(n, key(f"free{n}")) for n in range(4)]
        for want in free:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in free))
        for session in scene.sessions:
            session.let_go.clear()
        cold = scene.want(9, key("cold"))
        cold.released.set()
        await settle(lambda: any(session.closed for session in scene.sessions))
        for _ in range(3):
            again = scene.want(3, key("free3"))
            again.released.set()
            await settle(lambda again=again: again.done.done())

        assert [session.closed for session in scene.sessions] == [True, False, False, False]
        for session in scene.sessions:
            session.let_go.set()
        await settle(lambda: cold.done.done())
        assert sum(session.closed for session in scene.sessions) == 1


async def test_one_tenant_has_so_many_sessions_at_work_and_no_more():
    async with stage(tenant_connections_max=3, server_connections_max=20) as scene:
        own = [scene.want(7, key("t7"), alone=True) for _ in range(10)]
        shared = [scene.want(8, alone=True) for _ in range(10)]
        other = scene.want(9, alone=True)
        await settle(lambda: other.session is not None)
        await settle(lambda: sum(want.session is not None for want in own) == 3)
        await asyncio.sleep(0.05)

        assert sum(want.session is not None for want in own) == 3
        assert sum(want.session is not None for want in shared) == 3
        for want in [*own, *shared, other]:
            want.released.set()
        await settle(lambda: all(want.done.done() for want in [*own, *shared]))


async def test_sessions_beyond_the_first_few_come_only_when_the_others_are_held_up():
    async with stage(tenant_connections_max=50) as scene:
        held = [scene.want(n, alone=True) for n in range(6)]
        await settle(lambda: all(want.session for want in held))

        assert len(scene.sessions) == 6


async def test_who_waits_too_long_is_turned_away_and_told_when_to_come_again():
    async with stage(connection_wait_ms=20, server_connections_max=1) as scene:
        first, second = scene.want(1), scene.want(2, alone=True)
        await settle(lambda: second.done.done())

        assert first.session is not None
        assert isinstance(second.error, OverloadedError)
        assert second.error.retry_after_s
        assert scene.pool.waiting == 0


async def test_a_deadline_behind_others_of_the_tenant_is_seen():
    async with stage(connection_wait_ms=60_000, server_connections_max=1) as scene:
        scene.want(1, alone=True)
        scene.want(2, alone=True)
        late = Want(2, alone=True)
        late.give_up_at = asyncio.get_running_loop().time() + 0.01
        scene.pool.submit(late)

        await settle(lambda: late.done.done())
        assert isinstance(late.error, OverloadedError)


async def test_queues_are_bounded_in_all_and_per_tenant():
    async with stage(
        waiting_operations_max=8, tenant_waiting_operations_max=5, server_connections_max=1
    ) as scene:
        scene.hold.clear()
        for _ in range(5):
            scene.want(1)
        with pytest.raises(OverloadedError, match="of the tenant"):
            scene.want(1)
        for n in range(3):
            scene.want(2 + n)
        with pytest.raises(OverloadedError):
            scene.want(9)
        assert scene.pool.waiting == 8
        scene.hold.set()


async def test_a_server_without_a_free_slot_is_waited_for():
    async with stage() as scene:
        scene.failures = [ServerUnavailableError("full", "53300")] * 3
        want = scene.want(1)
        want.released.set()
        await settle(lambda: want.done.done())

        assert want.error is None
        assert scene.pool.slots == 1


async def test_a_server_that_does_not_answer_is_told_to_all_who_wait():
    async with stage() as scene:
        scene.hold.clear()
        scene.failures = [ServerUnavailableError("down")] * 4
        wants = [scene.want(n) for n in range(4)]
        await turns()
        scene.hold.set()
        await settle(lambda: all(want.done.done() for want in wants))

        assert {str(want.error) for want in wants} == {"down"}
        assert scene.pool.slots == 0


async def test_a_session_that_broke_is_not_given_to_anybody():
    async with stage(server_connections_max=1) as scene:
        first = scene.want(1)
        await settle(lambda: first.session is not None)
        assert first.session is not None
        first.session.abort()
        first.released.set()
        second = scene.want(1)
        await settle(lambda: second.session is not None)
        assert second.session is not first.session

        second.released.set()
        await settle(lambda: second.done.done())
        await turns()
        assert second.session is not None
        second.session.abort()  # While it is idle.
        third = scene.want(1)
        await settle(lambda: third.session is not None)
        assert third.session is not second.session


async def test_idle_sessions_are_closed_after_a_time():
    async with stage(connection_idle_s=0.02) as scene:
        want = scene.want(1)
        want.released.set()
        await settle(lambda: want.done.done())
        await settle(lambda: scene.pool.slots == 0)


async def test_sessions_of_a_kind_are_closed_when_it_is_retired():
    async with stage() as scene:
        idle, busy = scene.want(1, key("t1"), alone=True), scene.want(1, key("t1"), alone=True)
        other = scene.want(2)
        await settle(lambda: bool(idle.session and busy.session and other.session))
        idle.released.set()
        other.released.set()
        await settle(lambda: idle.done.done() and other.done.done())
        await turns()

        await scene.pool.retire(key("t1"))
        assert idle.session is not None
        assert idle.session.closed
        assert busy.session is not None
        assert not busy.session.closed
        busy.released.set()
        await settle(lambda: busy.session is not None and busy.session.closed)
        assert other.session is not None
        assert not other.session.closed
        again = scene.want(1, key("t1"))
        await settle(lambda: again.session is not None)


async def test_a_mistake_in_the_work_is_an_error_for_those_it_was_for(caplog):
    made = Stage()

    async def fly(session: Any, wants: list[Any]) -> None:
        raise RuntimeError("a mistake")

    made.pool._fly = fly
    want = made.want(1)
    await settle(lambda: want.done.done())

    assert type(want.error) is TenancyError
    assert "a mistake" in caplog.text
    await settle(lambda: made.pool.slots == 0)
    await made.pool.close()


async def test_closing_refuses_who_waits_and_ends_all_sessions():
    made = Stage(server_connections_max=1, drain_timeout_s=0.01)
    at_work, waiting = made.want(1, alone=True), made.want(2, alone=True)
    await settle(lambda: at_work.session is not None)

    await made.pool.close()

    assert isinstance(waiting.error, ServerUnavailableError)
    assert all(session.closed for session in made.sessions)
    with pytest.raises(ServerUnavailableError):
        made.want(3)
    await made.pool.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.sampled_from(["shared", "t1", "t2", "t3"]),
            st.booleans(),
            st.sampled_from(["work", "break", "leave"]),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
)
def test_whatever_happens_everybody_is_served_or_told_and_no_slot_is_lost(steps, budget):
    async def play() -> None:
        made = Stage(server_connections_max=budget, tenant_connections_max=2)
        wants = []
        for tenant, role, alone, fate in steps:
            want = made.want(tenant, key(role), alone=alone)
            wants.append((want, fate))
            if tenant % 3 == 0:
                await asyncio.sleep(0)
            if fate == "leave":
                want.done.set_result(None)
            elif fate == "break":
                asyncio.get_running_loop().call_later(0.002, _break, want)
            want.released.set()
        await settle(lambda: all(want.done.done() for want, _ in wants))
        await settle(lambda: made.pool.waiting == 0)
        assert all(want.error is None for want, _ in wants)
        assert made.most <= budget
        await made.pool.close()
        await turns()
        assert made.pool.slots == 0
        assert not made.pool._flying
        assert not made.pool._waiting_per_tenant

    asyncio.run(play())


def _break(want: Want) -> None:
    if want.session is not None:
        want.session.abort()
