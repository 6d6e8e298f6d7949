"""The HTTP interface on a port of this machine, and the command `tenancy` that finds it there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.http_api import HttpApi, MakeApi
from tenancy.data_isolation.core import TenancyError
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.serve.json_documents import dump_json

#: Is told the path of each request before it is served; what it returns is the answer instead.
Hook = Callable[[str], Awaitable[TenancyError | None]]


async def _nothing(_: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command printed."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class RunningApi:
    """The interface as it listens, with a `TENANCY_HOME` whose state says where."""

    def __init__(self, api: HttpApi, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.api = api
        self.home = home
        self.hook: Hook = _nothing
        #: Where it listens.
        self.url = ""
        self._capsys = capsys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from tenancy.data_isolation.serve.problems import problem_response

        error = await self.hook(scope["path"])
        app = self.api.app if error is None else problem_response(error)
        await app(scope, receive, send)

    async def run(self, *arguments: str, status: int = 0) -> Said:
        """Run the command in this process."""
        # Imported late, as below: most tests do without, and it takes a second.
        from tenancy.data_isolation.serve.cli import run

        self._capsys.readouterr()
        found = await asyncio.to_thread(run, list(arguments))
        printed = self._capsys.readouterr()
        said = Said(status=found, out=printed.out, err=printed.err)
        assert found == status, said
        return said

    async def sql(self, tenant: str, query: str, *params: Any) -> list[list[Any]]:
        """Run a statement of a tenant, past the command; its rows."""
        answer = await self.api.admin.post(
            f"/v1/tenants/{tenant}/query",
            # The client's own writer would round numbers.
            content=dump_json({"query": query, "params": params}),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        rows: list[list[Any]] = answer.json()["rows"]
        return rows


MakeRunning = Callable[..., Awaitable[RunningApi]]


@pytest.fixture
async def make_running(
    make_api: MakeApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[MakeRunning]:
    """Starts the interface with settings of the test's choice."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**settings: Any) -> RunningApi:
            api = await make_api(**settings)
            over = running_over(api, tmp_path / "state", monkeypatch, capsys)
            return await stack.enter_async_context(over)

        yield make


@pytest.fixture
async def running(make_running: MakeRunning) -> RunningApi:
    """The interface with the test's own installation, listening."""
    return await make_running()


@contextlib.asynccontextmanager
async def running_over(
    api: HttpApi, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[RunningApi]:
    """An interface that is there, listening."""
    running = RunningApi(api, home, capsys)
    async with _listening(running) as running.url:
        key = await running.api.engine.credentials.create(CredentialScope.ADMIN)
        with _state(running.home, running.url, key.text):
            monkeypatch.setenv("TENANCY_HOME", str(running.home))
            yield running


@contextlib.asynccontextmanager
async def _listening(app: Any) -> AsyncIterator[str]:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=5)
    )
    # Signals are the test runner's.
    server.capture_signals = contextlib.nullcontext
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@contextlib.contextmanager
def _state(home: Path, url: str, key: str) -> Iterator[None]:
    """What a daemon keeps: its lock, the state and the administrator's key."""
    from tenancy.data_isolation.serve.runtime_state import Phase, RuntimeDirectory, RuntimeState

    directory = RuntimeDirectory(home)
    directory.prepare()
    assert directory.lock.try_take()
    try:
        directory.admin_key.touch(mode=0o600)
        directory.admin_key.write_text(key)
        directory.write(
            RuntimeState(state=Phase.RUNNING, url=url, admin_key_file=str(directory.admin_key))
        )
        yield
    finally:
        directory.lock.release()
