"""Everything that is compared: its name, how it runs, and with how many tenants."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from peers.work import BATCH, MIXED_ROW, MIXED_SCHEMA

IN_FLIGHT = (1, 64, 512)


class Kind(StrEnum):
    """What a variant is in the comparison."""

    LIMIT = "limit"
    REFERENCE = "reference"
    RIVAL = "rival"
    PEER = "peer"
    OURS = "ours"


class Way(StrEnum):
    """How a variant is reached."""

    LIBRARY = "library"
    HTTP = "http"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to do the work.

    `driver` is a class in `.venv-peers` or, when `own` is set, in `.venv`; `pgbench:...` is for
    `pgbench`. `app` is the application that is served meanwhile. Those that need the runtime run
    while it is up, and all others while it is down, so that it takes nothing from them.
    """

    key: str
    title: str
    kind: Kind
    driver: str
    way: Way = Way.LIBRARY
    level: str = "row"
    own: bool = False
    runtime: bool = False
    app: str | None = None
    threads: int = 0
    per_call: int = 1
    in_flight: tuple[int, ...] = IN_FLIGHT
    packages: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)

    @property
    def mixed(self) -> int:
        """Tenants when they are mixed."""
        return MIXED_ROW if self.level == "row" else MIXED_SCHEMA


_ASYNCPG = ("asyncpg", "uvloop")
_ALCHEMY = (*_ASYNCPG, "SQLAlchemy", "greenlet")
_FASTAPI_TENANCY = ("fastapi-tenancy", *_ALCHEMY)
_DJANGO = ("Django", "psycopg")
_WEB = ("fastapi", "starlette", "pydantic", "uvicorn", "httptools", *_ASYNCPG)
_OURS = ("tenancy-data-isolation", "ray", *_ASYNCPG)
_WITH_BATCH = (1, 64)


def _pgbench(key: str, title: str, driver: str, in_flight: tuple[int, ...] = IN_FLIGHT) -> Variant:
    return Variant(
        key=key, title=title, kind=Kind.LIMIT, driver=f"pgbench:{driver}", in_flight=in_flight
    )


def _ours(key: str, title: str, name: str, level: str, *, runtime: bool) -> Variant:
    return Variant(
        key=f"{key}-{level}",
        title=f"ours, {title}, level {level}",
        kind=Kind.OURS,
        driver=f"peers.ours:{name}",
        level=level,
        own=True,
        runtime=runtime,
        packages=_OURS,
    )


def _endpoint(level: str, per_call: int) -> Variant:
    alone = per_call == 1
    return Variant(
        key=f"http-ours-{level}" + ("" if alone else "-batch"),
        title=f"ours, level {level}" + ("" if alone else f", batch of {per_call}"),
        kind=Kind.OURS,
        driver="peers.http_reader:Endpoint",
        way=Way.HTTP,
        level=level,
        runtime=True,
        per_call=per_call,
        in_flight=IN_FLIGHT if alone else _WITH_BATCH,
    )


def _application(
    key: str, title: str, kind: Kind, app: str, packages: tuple[str, ...], **more: object
) -> Variant:
    return Variant(
        key=f"http-{key}",
        title=title,
        kind=kind,
        driver="peers.http_reader:Application",
        way=Way.HTTP,
        app=app,
        packages=packages,
        **more,
    )


def _fastapi_tenancy(isolation: str, level: str) -> tuple[Variant, Variant]:
    title, options = f"fastapi-tenancy, {isolation}", {"isolation": isolation}
    return (
        Variant(
            key=f"fastapi-tenancy-{isolation}",
            title=title,
            kind=Kind.PEER,
            driver="peers.fastapi_tenancy_peer:FastapiTenancy",
            level=level,
            packages=_FASTAPI_TENANCY,
            options=options,
        ),
        _application(
            f"fastapi-tenancy-{isolation}",
            title,
            Kind.PEER,
            "fastapi_tenancy",
            (*_FASTAPI_TENANCY, *_WEB),
            level=level,
            options=options,
        ),
    )


def _django(library: str, level: str) -> Variant:
    return Variant(
        key=library,
        title=library,
        kind=Kind.PEER,
        driver="peers.django_peer:reader",
        level=level,
        threads=10,
        packages=(library, *_DJANGO),
        options={"library": library},
    )


def _rival(key: str, title: str, name: str) -> Variant:
    return Variant(
        key=key, title=title, kind=Kind.RIVAL, driver=f"peers.by_hand:{name}", packages=_ASYNCPG
    )


BY_HAND = Variant(
    key="by-hand",
    title="asyncpg by hand, pool of 10",
    kind=Kind.REFERENCE,
    driver="peers.by_hand:ByHand",
    packages=_ASYNCPG,
)
HTTP_BY_HAND = _application("by-hand", "FastAPI by hand", Kind.REFERENCE, "by_hand", _WEB)
_RLS, _HTTP_RLS = _fastapi_tenancy("rls", "row")
_SCHEMA, _HTTP_SCHEMA = _fastapi_tenancy("schema", "schema")

VARIANTS = (
    _pgbench("pgbench-plain", "pgbench, no row security, pipelined", "plain:pipelined"),
    _pgbench("pgbench-rls", "pgbench, row security, pipelined", "secured:pipelined"),
    _pgbench(
        "pgbench-rls-turns", "pgbench, row security, turn by turn", "secured:turns", _WITH_BATCH
    ),
    BY_HAND,
    _rival("fetchmany", "held connections, fetchmany per tenant", "FetchmanyPerTenant"),
    _rival("function", "held connections, function of a mixed batch", "FunctionOfBatch"),
    _rival("bare", "held connections, fetchmany, no boundary", "BareFetchmany"),
    _RLS,
    Variant(
        key="sqlalchemy-tenants",
        title="sqlalchemy-tenants",
        kind=Kind.PEER,
        driver="peers.sqlalchemy_tenants_peer:SqlalchemyTenants",
        packages=("sqlalchemy-tenants", *_ALCHEMY),
    ),
    _django("django-rls-tenants", "row"),
    _SCHEMA,
    _django("django-tenants", "schema"),
    _ours("engine", "engine in process", "InProcess", "row", runtime=False),
    _ours("engine", "engine in process", "InProcess", "schema", runtime=False),
    _ours("actor", "through actors", "ThroughActors", "row", runtime=True),
    _ours("actor", "through actors", "ThroughActors", "schema", runtime=True),
    HTTP_BY_HAND,
    _application(
        "by-hand-batch",
        f"FastAPI by hand, batch of {BATCH}",
        Kind.REFERENCE,
        "by_hand",
        _WEB,
        per_call=BATCH,
        in_flight=_WITH_BATCH,
    ),
    _HTTP_RLS,
    _HTTP_SCHEMA,
    *(_endpoint(level, per_call) for level in ("row", "schema") for per_call in (1, BATCH)),
)
BY_KEY = {variant.key: variant for variant in VARIANTS}
