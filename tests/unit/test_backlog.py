"""Who is turned away because of what is under way."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.backlog import Backlog
from tenancy.data_isolation.core.errors import OverloadedError
from tenancy.data_isolation.core.identifiers import TenantId

TENANTS = [TenantId(f"t{number}") for number in range(100)]
DEADLINE_S = 2.0


class Server:
    """Serves so many operations per second in the order in which they came, in steps of 10 ms."""

    STEP_S = 0.01

    def __init__(self, rate: float) -> None:
        self.backlog = Backlog()
        self.now = 0.0
        self.queue: list[tuple[TenantId, float]] = []
        self.waits: list[float] = []
        self.refusals: list[OverloadedError] = []
        self._step = rate * self.STEP_S
        self._credit = 0.0

    def offer(self, tenant: TenantId, deadline_s: float = DEADLINE_S) -> bool:
        try:
            self.backlog.enter(tenant, deadline_s)
        except OverloadedError as error:
            self.refusals.append(error)
            return False
        self.queue.append((tenant, self.now))
        return True

    def step(self) -> None:
        self.now += self.STEP_S
        self._credit = min(self._credit + self._step, len(self.queue))
        while self._credit >= 1:
            self._credit -= 1
            tenant, since = self.queue.pop(0)
            self.waits.append(self.now - since)
            self.backlog.leave(tenant, self.now, done=True)


@pytest.mark.parametrize("rate", [300, 1_000, 5_000])
def test_at_ten_times_the_capacity_what_is_let_in_is_done_in_time_and_nothing_idles(rate):
    server = Server(rate)
    for turn in range(1_000):
        for number in range(int(rate * 10 * server.STEP_S)):
            server.offer(TENANTS[(turn * 7 + number) % len(TENANTS)])
        server.step()

    late = [wait for wait in server.waits if wait > DEADLINE_S]
    # Until the pace is known nobody is turned away; that is over at once.
    assert len(late) < len(server.waits) * 0.4
    assert all(wait < DEADLINE_S for wait in server.waits[-len(server.waits) // 2 :])
    assert len(server.waits) > rate * 1_000 * server.STEP_S * 0.95
    assert server.refusals
    assert all(0 < (error.retry_after_s or 0) <= DEADLINE_S for error in server.refusals)


def test_within_the_capacity_nobody_is_turned_away():
    server = Server(1_000)
    for turn in range(1_000):
        for number in range(9):
            assert server.offer(TENANTS[(turn + number) % len(TENANTS)])
        server.step()


def test_a_tenant_that_sends_much_is_turned_away_and_its_neighbours_are_not():
    server = Server(20)
    hog, neighbour = TENANTS[:2]
    let_in = [server.offer(hog) for _ in range(500)]
    for _ in range(200):
        server.step()
        let_in.append(server.offer(hog))
        assert server.offer(neighbour)
        server.queue.remove((neighbour, server.now))
        server.backlog.leave(neighbour, server.now, done=True)

    assert not all(let_in)


def test_where_nothing_is_done_any_more_who_comes_is_turned_away_until_it_is_empty():
    server = Server(1_000)
    for number in range(2_000):
        server.offer(TENANTS[number % len(TENANTS)], 60.0)
    for _ in range(100):
        server.step()
    for _ in range(20):
        server.now += 1.0
        tenant, _ = server.queue.pop()
        server.backlog.leave(tenant, server.now, done=False)

    assert not server.offer(TENANTS[0])
    while server.queue:
        tenant, _ = server.queue.pop()
        server.backlog.leave(tenant, server.now, done=False)
    assert server.backlog._under_way == 0
    assert server.offer(TENANTS[0])


def test_what_was_turned_away_further_on_says_nothing_about_the_pace():
    server = Server(1_000)
    for number in range(1_000):
        server.offer(TENANTS[number % len(TENANTS)], 60.0)
    for _ in range(50):
        server.step()
        for _ in range(20):
            tenant, _ = server.queue.pop()
            server.backlog.leave(tenant, server.now, done=False)
            server.offer(TENANTS[0], 1e9)

    assert not server.offer(TENANTS[1], 0.05)


def test_after_everything_stood_still_all_are_let_in_again():
    server = Server(0.0001)
    for number in range(3_000):  # Half a minute in which nothing ends, but by its deadline.
        if number % 2:
            server.offer(TENANTS[number % len(TENANTS)])
        server.step()
        while server.queue and server.now - server.queue[0][1] > DEADLINE_S:
            tenant, _ = server.queue.pop(0)
            server.backlog.leave(tenant, server.now, done=False)
    assert server.refusals

    server._step = 1_000 * server.STEP_S
    for turn in range(2_000):
        if turn == 1_000:
            server.refusals.clear()
        for number in range(int(900 * server.STEP_S)):
            server.offer(TENANTS[(turn * 9 + number) % len(TENANTS)])
        server.step()
    assert not server.refusals
