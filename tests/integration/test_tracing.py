"""Spans of a request: from the gateway through the actor to PostgreSQL, and nothing of its SQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from support.actor_file import actor_file
from support.engines import TABLES, known_as_quick, make_tenant, opened
from support.install import Install
from support.span_collector import SpanCollector

from tenancy.data_isolation.actors.channel import ActorChannel, Limits
from tenancy.data_isolation.actors.gateway import ActorGateway
from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.core import EngineConfig
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.tracing import Tracing
from tenancy.data_isolation.serve.api import create_api
from tenancy.data_isolation.serve.composition import open_services

pytestmark = pytest.mark.migrated("0001_users", TABLES)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
READ = {"query": "select email from users where id = $1", "params": [1]}


@pytest.fixture
def collector() -> Iterator[SpanCollector]:
    made = SpanCollector()
    made.start()
    yield made
    made.stop()


class Stage:
    """The gateway and an actor in this process, called by the channel as it is called by Ray."""

    def __init__(self, client: httpx.AsyncClient, actor: TenantActor, tracing: Any) -> None:
        self._client, self._actor, self._tracing = client, actor, tracing

    async def post(self, body: Any, path: str = "query", **headers: str) -> httpx.Response:
        return await self._client.post(f"/v1/tenants/acme/{path}", json=body, headers=headers)

    async def stranger(self, **headers: str) -> int:
        """The status that somebody with a wrong key gets."""
        wrong = {"Authorization": "Bearer nobody's"} | headers
        answer = await self._client.post("/v1/tenants/acme/query", json=READ, headers=wrong)
        nowhere = await self._client.get("/v1/nothing", headers=wrong)
        assert nowhere.status_code == 404
        return answer.status_code

    async def end(self) -> None:
        """Have all spans sent."""
        await self._actor.close()
        if self._tracing is not None:
            await self._tracing.close()


@pytest.fixture
async def make_stage(
    install: Install, collector: SpanCollector, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> Stage:
            given = {"traces_endpoint": collector.endpoint, "measurement_window_s": 0.0}
            configuration, path = actor_file(install, **(given | changes))
            settings = configuration.settings
            async with opened(install) as engine:
                await make_tenant(engine, "acme")
            engine = await Engine.attach(
                EngineConfig(servers=configuration.servers, settings=settings)
            )
            stack.push_async_callback(engine.close)
            (name,) = configuration.directory.shared_names()
            actor = TenantActor(name, str(path))
            stack.push_async_callback(actor.close)
            gateway = ActorGateway(configuration.directory, settings)

            async def connect() -> Any:
                return actor.execute_many

            gateway._channels[name] = channel = ActorChannel(
                name=name,
                connect=connect,
                changes_nothing=lambda _: True,
                limits=Limits.of(settings),
                clock=SystemClock(),
            )
            stack.push_async_callback(channel.close)
            tracing = Tracing.of(settings, "gateway")
            app = create_api(await open_services(engine, gateway, stack, tracing=tracing))
            key = await engine.credentials.create(CredentialScope.ADMIN)
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app),
                    base_url="http://api.test",
                    headers={"Authorization": f"Bearer {key.text}"},
                )
            )
            return Stage(client, actor, tracing)

        yield make


async def test_a_trace_goes_through_gateway_actor_and_postgresql(make_stage, collector):
    stage = await make_stage()
    header = f"00-{TRACE}-{SPAN}-01"
    assert (await stage.post(READ, traceparent=header)).status_code == 200
    failing = {"query": "select 1 / 0, 'secret-literal', $1::text", "params": ["secret-value"]}
    assert (await stage.post(failing, traceparent=header)).status_code == 400
    await stage.end()

    edges, actors = collector.named("POST "), collector.named("tenant actor")
    flights = collector.named("PostgreSQL flight")
    assert (len(edges), len(actors), len(flights)) == (2, 2, 2)
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert {span.parent_id for span in edges} == {SPAN}
    assert [span.parent_id for span in actors] == [span.span_id for span in edges]
    assert [span.parent_id for span in flights] == [span.span_id for span in actors]
    assert [span.name for span in edges] == ["POST /v1/tenants/{tenant_id}/query"] * 2
    assert [span.attributes["http.response.status_code"] for span in edges] == [200, 400]
    assert flights[0].attributes["db.system.name"] == "postgresql"
    assert flights[0].attributes["tenancy.flight.operations"] == 1
    assert [span.is_error for span in flights] == [False, True]
    assert flights[1].attributes["db.response.status_code"] == "22012"
    for body in collector.bodies:
        assert b"secret" not in body
        assert b"select" not in body


async def test_operations_that_fly_together_are_linked(make_stage, collector):
    stage = await make_stage()
    headers = [f"00-{number:032x}-{SPAN}-01" for number in range(1, 13)]
    host = await stage._actor._opened()
    await known_as_quick(host.engine, "acme", READ["query"], 1)
    for _ in range(3):
        await asyncio.gather(*(stage.post(READ, traceparent=header) for header in headers))
    await stage.end()

    flights = collector.named("PostgreSQL flight")
    # One that others waited for too long has flown twice.
    assert len({span.parent_id for span in flights}) == 36
    together = [span for span in flights if span.attributes["tenancy.flight.operations"] > 1]
    assert together
    actors = {span.span_id for span in collector.named("tenant actor")}
    for span in together:
        assert len(span.links) == span.attributes["tenancy.flight.operations"] - 1
        assert set(span.links) <= actors - {span.parent_id}


async def test_what_is_not_sampled_or_malformed_begins_no_span_of_that_trace(make_stage, collector):
    stage = await make_stage(traces_sample_percent=100.0)
    assert (await stage.post(READ, traceparent=f"00-{TRACE}-{SPAN}-00")).status_code == 200
    batch = {"operations": [READ, READ]}
    assert (await stage.post(batch, "batch", traceparent="nonsense")).status_code == 200
    await stage.end()

    assert TRACE not in {span.trace_id for span in collector.spans}
    assert sorted(span.name for span in collector.spans) == [
        "POST /v1/tenants/{tenant_id}/batch",
        "PostgreSQL flight",
        "tenant actor",
    ]
    assert len({span.trace_id for span in collector.spans}) == 1
    assert [s.attributes["tenancy.operations"] for s in collector.named("tenant actor")] == [2]


async def test_whoever_is_not_known_decides_nothing(make_stage, collector):
    stage = await make_stage(traces_per_s_max=0.01)
    for number in range(1, 21):
        assert await stage.stranger(traceparent=f"00-{number:032x}-{SPAN}-01") == 401
        assert await stage.stranger() == 401
    # Nor have they taken from what others may have.
    assert (await stage.post(READ, traceparent=f"00-{TRACE}-{SPAN}-01")).status_code == 200
    await stage.end()

    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert len(collector.spans) == 3


async def test_whoever_decides_no_more_are_traced_than_may_be(make_stage, collector):
    stage = await make_stage(traces_per_s_max=0.01)
    for number in range(1, 21):
        header = f"00-{number:032x}-{SPAN}-01"
        assert (await stage.post(READ, traceparent=header)).status_code == 200
        assert (await stage.post(READ)).status_code == 200
    await stage.end()

    assert [span.trace_id for span in collector.named("POST ")] == [f"{1:032x}"]
    # Flights say less here: the actor is in the process of the gateway, whose task called it first.
    assert [span.trace_id for span in collector.named("tenant actor")] == [f"{1:032x}"]


async def test_nothing_is_traced_without_an_endpoint(make_stage, collector):
    stage = await make_stage(traces_endpoint=None)
    assert (await stage.post(READ, traceparent=f"00-{TRACE}-{SPAN}-01")).status_code == 200
    await stage.end()

    assert collector.spans == []


async def test_a_collector_that_is_gone_disturbs_nobody(make_stage, collector):
    stage = await make_stage(traces_endpoint="http://127.0.0.1:1/v1/traces")
    for _ in range(3):
        assert (await stage.post(READ, traceparent=f"00-{TRACE}-{SPAN}-01")).status_code == 200
    await stage.end()
