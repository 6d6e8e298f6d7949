"""Making the user that embedded servers run as, when several want it at the same time."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tenancy.data_isolation.engine import service_user
from tenancy.data_isolation.engine.service_user import ServiceUser

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root makes users"
)


@pytest.fixture
def name():
    name = f"tenancy_{secrets.token_hex(4)}"
    yield name
    # Beside a maker of users it would try again once a second, for up to 15 seconds per file.
    with service_user._making_users():
        subprocess.run(["userdel", name], check=False, capture_output=True)


def test_starts_at_the_same_time_get_one_user(name, monkeypatch):
    monkeypatch.setattr(service_user, "_OWN_USER", name)
    starts = 4
    together = Barrier(starts)

    def start(_: int) -> ServiceUser | None:
        together.wait()
        return service_user.service_user()

    with ThreadPoolExecutor(starts) as pool:
        users = list(pool.map(start, range(starts)))

    assert {user.uid for user in users} == {pwd.getpwnam(name).pw_uid}
