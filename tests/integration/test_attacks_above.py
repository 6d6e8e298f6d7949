"""Attacks above the database that are neither tokens nor names (A06 and A08 of the catalogue)."""

from __future__ import annotations

import asyncio
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.engines import ask, make_tenant, opened
from support.http_api import HttpApi, MakeApi
from support.install import Install

from tenancy.data_isolation.core.types import Operation


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


async def test_a_tenant_is_named_by_each_call_and_not_by_where_it_runs(install: Install):
    """A06: tasks, threads and callbacks of two tenants that are mixed get their own rows."""
    async with opened(install) as engine:
        for name in ("acme", "globex"):
            await make_tenant(engine, name)
        loop = asyncio.get_running_loop()
        asked = Operation(query="select distinct split_part(email, '@', 2) from users")

        async def own(name: str) -> bool:
            return (await engine.execute(name, asked)).rows == [[name]]

        def in_thread(name: str) -> bool:
            return asyncio.run_coroutine_threadsafe(own(name), loop).result(30)

        async def after(name: str, other: str) -> bool:
            # Started while the other one's operation is under way, in a copy of its context.
            started = asyncio.ensure_future(own(other))
            return await own(name) and await started

        names = ("acme", "globex") * 10
        assert all(await asyncio.gather(*(own(name) for name in names)))
        assert all(await asyncio.gather(*(asyncio.to_thread(in_thread, name) for name in names)))
        assert all(await asyncio.gather(*(after(*pair) for pair in pairwise(names))))


async def test_what_a_tenant_sends_is_never_unpickled(make_api: MakeApi, tmp_path: Path):
    """A08: a pickle, or what describes one, stays the text and the JSON that it is."""
    target, control = tmp_path / "touched", tmp_path / "control"
    pickle.loads(pickle.dumps(_Touch(control)))
    assert control.exists(), "the pickle would have done nothing"

    api: HttpApi = await make_api()
    acme = await api.tenant("acme")
    payload = pickle.dumps(_Touch(target), 0).decode("latin-1")
    described = {"__reduce__": ["os.system", [f"touch {target}"]], "py/object": "os.system"}
    for kind, value in (("text", payload), ("jsonb", described), ("text[]", [payload])):
        body = {"query": f"select $1::{kind}", "params": [value]}
        answer = await acme.post("/v1/tenants/acme/query", json=body)
        assert answer.json()["rows"] == [[value]]
    raw = await acme.post(
        "/v1/tenants/acme/query",
        content=pickle.dumps(_Touch(target)),
        headers={"Content-Type": "application/x-python-pickle"},
    )
    assert raw.status_code in (400, 415, 422)
    assert not target.exists()


async def test_a_pickle_in_the_data_is_data(install: Install, tmp_path: Path):
    """A08: from the database it comes back as bytes."""
    target = tmp_path / "touched"
    async with opened(install) as engine:
        await make_tenant(engine)
        text = "\\x" + pickle.dumps(_Touch(target)).hex()
        assert (await ask(engine, "acme", "select $1::bytea", text)).rows == [[text]]
    assert not target.exists()
