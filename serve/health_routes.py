"""Whether the process lives, whether it can serve, and its figures. Need no credential."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.engine.operation_figures import Figures
from tenancy.data_isolation.serve.http_metrics import MEDIA_TYPE, HttpMetrics
from tenancy.data_isolation.serve.models import HealthAnswer, ReadinessAnswer
from tenancy.data_isolation.serve.openapi import answers
from tenancy.data_isolation.serve.problems import public_detail
from tenancy.data_isolation.serve.requests import check_parameters, json_answer
from tenancy.data_isolation.serve.services import Probe, Services

_log = logging.getLogger(__name__)
_PROBE_TIMEOUT_S = 5.0
_COUNT_TIMEOUT_S = 2.0
_OK = "ok"


class HealthRoutes:
    """The routes `/healthz`, `/readyz` and `/metrics`."""

    def __init__(self, services: Services, metrics: HttpMetrics) -> None:
        self._services = services
        self._metrics = metrics

    def router(self) -> APIRouter:
        """The routes, for FastAPI."""
        router = APIRouter(tags=["health"])
        add = router.add_api_route
        add(
            "/healthz",
            self.alive,
            methods=["GET"],
            summary="Whether the process lives",
            responses=answers(HealthAnswer, credential=False),
        )
        add(
            "/readyz",
            self.ready,
            methods=["GET"],
            summary="Whether everything that is needed answers",
            responses=answers(ReadinessAnswer, credential=False)
            | {503: {"model": ReadinessAnswer, "description": "Something does not answer."}},
        )
        add(
            "/metrics",
            self.figures,
            methods=["GET"],
            summary="Figures in Prometheus's format",
            responses={200: {"description": "Figures.", "content": {MEDIA_TYPE: {}}}},
        )
        return router

    async def alive(self, request: Request) -> Response:
        """The process answers."""
        check_parameters(request)
        return json_answer(HealthAnswer(status="ok").model_dump())

    async def ready(self, request: Request) -> Response:
        """Ask everything that is needed, at the same time."""
        check_parameters(request)
        needed = self._services.probes
        probes = {**needed, **self._services.advisory_probes}
        found = await asyncio.gather(*(_asked(probe) for probe in probes.values()))
        checks = dict(zip(probes, found, strict=True))
        well = all(checks[name] == _OK for name in needed)
        answer = ReadinessAnswer(status="ok" if well else "unavailable", checks=checks)
        return json_answer(
            answer.model_dump(),
            status=200 if well else 503,
            headers=None if well else {"Retry-After": "1"},
        )

    async def figures(self, request: Request) -> Response:
        """The figures of this process and of the actors, and the tenants at each level."""
        check_parameters(request)
        tenants, operations = await asyncio.gather(self._tenants(), self._operations())
        return Response(self._metrics.exposition(tenants, operations), media_type=MEDIA_TYPE)

    async def _tenants(self) -> Mapping[StrategyName, int] | None:
        try:
            async with asyncio.timeout(_COUNT_TIMEOUT_S):
                return await self._services.gateway.strategy_counts()
        except (TenancyError, TimeoutError):
            # The rest is worth having, above all while the catalog does not answer.
            return None

    async def _operations(self) -> Mapping[ActorName, Figures | None]:
        ask = self._services.operation_figures
        return {} if ask is None else await ask()


async def _asked(probe: Probe) -> str:
    """`ok`, or why not."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            await probe()
    except TenancyError as error:
        return public_detail(error)
    except TimeoutError:
        return f"no answer within {_PROBE_TIMEOUT_S:g} s"
    except Exception:
        _log.exception("a readiness probe failed in a way that was not foreseen")
        return "it failed; the log has the details"
    return _OK
