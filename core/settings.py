"""Everything that can be set: one frozen object, read once from `TENANCY_*` variables.

A field `statement_timeout_ms` is set by `TENANCY_STATEMENT_TIMEOUT_MS`. Limits carry their unit
last; how far they go is in `bounds`. An error names the variable, and an unknown `TENANCY_*`
variable is an error too, because a misspelt limit is no limit.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from tenancy.data_isolation.core.bounds import bounds
from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.performance_settings import PerformanceSettings
from tenancy.data_isolation.core.setting_names import PREFIX, unknown_variable, variable_of
from tenancy.data_isolation.core.setting_values import parsed
from tenancy.data_isolation.core.tier_limits import LIMIT_VARIABLES, TierTable, limit_variable
from tenancy.data_isolation.core.types import TenantType

#: As `core.proposal.OrchestrationMode` has them, which needs more of `core` than settings may.
_ORCHESTRATION = ("off", "propose", "automatic")
_MEASURES = ("operations_per_s", "rows", "bytes")
#: Of each pair the first has to be below the second.
_BELOW = (
    ("schema_demote_busy_percent", "schema_promote_busy_percent"),
    *(
        (f"{level}_demote_{name}", f"{level}_promote_{name}")
        for level in ("schema", "database")
        for name in _MEASURES
    ),
    *(
        (f"schema_{side}_{name}", f"database_{side}_{name}")
        for side in ("promote", "demote")
        for name in _MEASURES
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """A PostgreSQL server of the user's own.

    `dsn` is a libpq URI of a role that may create roles and databases there; it names the
    maintenance database. `region` is a word of the user's choice.

    The other fields are libpq's parameters of the same names (manual, 32.1.2), for those who would
    rather not write them into the DSN; `core.server_tls` says what they mean.
    """

    dsn: str
    name: str = "main"
    region: str | None = None
    sslmode: str | None = None
    sslrootcert: Path | str | None = None
    sslcert: Path | str | None = None
    sslkey: Path | str | None = None
    sslcrl: Path | str | None = None
    ssl_min_protocol_version: str | None = None

    def __post_init__(self) -> None:
        for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, str(_absolute(Path(value))))

    def __repr__(self) -> str:
        return f"ServerConfig(name={self.name!r}, region={self.region!r})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(PerformanceSettings):
    """The runtime's settings, with their defaults."""

    #: Directory of all state: data of embedded servers, keys, logs, pid files.
    home: Path = Path(".tenancy")
    #: Database of the catalog and of the shared tables; `<database>_template` is cloned from.
    database: str = "tenancy"
    #: DSN of a PostgreSQL server to use in place of the embedded one.
    postgres_dsn: str | None = field(default=None, repr=False)
    #: TLS to the server of `postgres_dsn`, as libpq's parameters without `postgres_`; what the DSN
    #: says itself need not be said here.
    postgres_sslmode: str | None = None
    postgres_sslrootcert: Path | None = None
    postgres_sslcert: Path | None = None
    postgres_sslkey: Path | None = None
    postgres_sslcrl: Path | None = None
    postgres_ssl_min_protocol_version: str | None = None
    #: File of further servers, to which tenants can be made and moved (`core.servers_file`).
    postgres_servers_file: Path | None = None
    #: URL of a Redis server to use in place of the embedded one.
    redis_url: str | None = field(default=None, repr=False)
    #: TLS to a server of a `rediss://` URL: what signs its certificate (the system's certificates
    #: when it is not given), and the client's certificate with its key.
    redis_ssl_ca_certs: Path | None = None
    redis_ssl_certfile: Path | None = None
    redis_ssl_keyfile: Path | None = None
    #: 64 hexadecimal digits from which binding keys and role passwords are derived. Made on the
    #: first start and kept in `home` when it is not given.
    master_key: str | None = field(default=None, repr=False)
    #: TCP port of the embedded PostgreSQL and Redis, on the loopback address; 0 = a free one.
    postgres_port: int = 0
    redis_port: int = 0
    #: Directory with the binaries (`postgres`, `initdb`) of the embedded PostgreSQL.
    postgres_bin: Path | None = None
    #: Releases of PostgreSQL that are started on although a tenant can cross its boundary there
    #: (known CVEs), as in "15.12" or "15.12,16.3". Each start warns.
    vulnerable_postgres_allowed: str | None = None
    #: How long a server may take to start or stop.
    server_start_timeout_s: float = 60.0
    #: Free space without which no embedded server is started.
    server_free_disk_min_bytes: int = 128 * 1024 * 1024
    #: Data that the embedded Redis keeps in memory before it refuses writes.
    redis_memory_max_bytes: int = 256 * 1024 * 1024
    #: HTTP endpoint.
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    #: The endpoint speaks HTTPS, and nothing else, when there is a certificate (PEM, with what
    #: signs it) and its key. `http_tls_ca` signs the certificate, for the command line to check it
    #: by: the system's certificates when it is not given.
    http_tls_certificate: Path | None = None
    http_tls_key: Path | None = None
    http_tls_ca: Path | None = None
    #: The name by which clients reach the endpoint, which the certificate must be for; when it is
    #: not given, one that is in the certificate.
    http_tls_name: str | None = None
    #: How long browsers and clients keep to HTTPS once they have seen it (RFC 6797); 0 = they
    #: forget it.
    http_tls_hsts_s: float = 31_536_000.0

    #: Connections the runtime may hold on one PostgreSQL server, per process and per tenant.
    server_connections_max: int = 60
    tenant_connections_max: int = 8
    #: A connection that nobody used for so long is closed.
    connection_idle_s: float = 60.0
    #: How long an operation waits for a connection before it is turned away.
    connection_wait_ms: int = 5_000
    #: Operations that may wait for a connection, over all tenants of a process, and per tenant.
    waiting_operations_max: int = 10_000
    tenant_waiting_operations_max: int = 1_000

    #: What a tenant may take, by its type: `TENANCY_<TYPE>_<LIMIT>` (`tier_limits.py`). Limits
    #: of the same name here are ceilings for all types.
    tiers: TierTable = field(default_factory=TierTable)
    #: A statement that has run for so long counts as a long one; how many of them may run at the
    #: same time on one server, per process. 0 = one less than this machine has processors.
    long_statement_ms: int = 200
    server_long_statements_max: int = 0
    #: How often the watchdog looks at the sessions of tenants' logins, and for how long a login
    #: that it had to act against gets no further session.
    watchdog_tick_ms: int = 25
    watchdog_penalty_s: float = 30.0

    #: Limits of one statement.
    statement_timeout_ms: int = 30_000
    result_rows_max: int = 10_000
    result_bytes_max: int = 8 * 1024 * 1024
    statement_bytes_max: int = 256 * 1024
    statement_params_max: int = 1_000
    #: Statements in one batch, and bytes of their results together.
    batch_operations_max: int = 1_000
    batch_result_bytes_max: int = 8 * 1024 * 1024
    #: Body of one HTTP request.
    request_bytes_max: int = 4 * 1024 * 1024
    #: Parsed statements kept in the guard's cache, per process.
    guard_cache_entries: int = 4_096
    guard_cache_bytes_max: int = 64 * 1024 * 1024

    #: Fleet migrations: placements at work at the same time, and failures after which to stop.
    migration_concurrency: int = 4
    migration_failures_max: int = 5
    #: How long a migration waits for a table lock before it gives up on that placement.
    migration_lock_timeout_ms: int = 5_000
    migration_statement_timeout_ms: int = 600_000
    #: How often a migration is tried in one placement when a lock does not come, and the pause
    #: before the second attempt, which doubles each time.
    migration_attempts_max: int = 3
    migration_retry_ms: int = 200
    #: Tenants for whom one transaction of a migration takes locks of their own; with more tenants
    #: it keeps everybody else from the tables instead.
    migration_bound_tenants_max: int = 2_000

    #: Hybrid tenants of one server, give or take those that are made at the same moment: a
    #: migration of sensitive tables changes those of all of them in one transaction, which takes a
    #: lock for each table and index, and a server has room for so many (max_locks_per_transaction).
    hybrid_tenants_max: int = 200

    #: Moves that are carried out at the same time, over all processes; open ones do not count.
    moves_at_once_max: int = 2
    #: Moves of which something may be left to do, those that wait and those that are open included.
    moves_unsettled_max: int = 1_000
    #: How often a process looks for moves that nobody carries out, and asks for what is wished.
    move_poll_s: float = 0.5
    #: A process that carries a move out and is silent for so long (frozen, or cut off) loses it.
    move_owner_timeout_s: float = 10.0
    #: Rows that are copied in one transaction, how many times as many where nobody is to be spared,
    #: and changed rows that may be left for the moment at which the tenant is held.
    move_chunk_rows: int = 10_000
    move_chunk_factor: int = 4
    #: Where a piece of copying takes longer although others are to be spared, the next is smaller.
    move_piece_max_ms: int = 500
    move_backlog_rows_max: int = 200
    #: How long the processes that work for the tenant have to open sessions at its new place, once
    #: the copies are equal and before it is held.
    move_warm_ms: int = 1_000
    #: How long one attempt to hold the tenant waits for its last statement: new ones wait as long.
    move_drain_ms: int = 50
    #: How long the server lets anything take while the tenant is held, and how long it is held at
    #: most; then it is let go. When there is no answer for so long the mover gives its connections
    #: up and looks over new ones at which side the tenant is.
    move_hold_max_ms: int = 1_000
    #: How long a move waits for a table's lock before it tries again, since others queue behind it,
    #: how long one of its statements may take, and how long it may be silent in a transaction.
    move_lock_timeout_ms: int = 100
    move_statement_timeout_ms: int = 600_000
    move_idle_timeout_ms: int = 60_000
    #: How much longer than that the answer to a statement may take. What has not come then is taken
    #: for lost, together with the connection.
    move_answer_timeout_s: float = 30.0
    #: Attempts to hold the tenant before the move fails, and the longest pause between two.
    move_cutover_attempts_max: int = 100
    move_cutover_pause_s: float = 2.0
    #: Failures in a row of anything else before it fails, and the longest pause between two.
    move_failures_max: int = 10
    move_retry_s: float = 5.0
    #: What copying aims at: how many times as long as before others' small writes take on average,
    #: and the share of their throughput that clients lose who wait for each answer. It gets a
    #: twentieth of the time at least, so that it comes to an end.
    move_latency_factor: float = 2.0
    move_dip_percent: float = 3.0
    #: How often the source follows a tenant that works at the target already, and after how long
    #: the move is confirmed by itself, so that it cannot be rolled back any more.
    move_follow_s: float = 10.0
    move_retention_s: float = 3_600.0
    #: Plans estimate by the median of the last so many moves, and the rate by those that had at
    #: least so many rows: what a smaller one takes says nothing of it.
    move_estimate_moves: int = 10
    move_estimate_rows_min: int = 10_000

    #: What the orchestrator does about tenants that are at the wrong level: off, propose (somebody
    #: has to accept), or automatic.
    orchestration: str = "propose"
    #: Operations are counted in windows of so long; tenants that one process tells the counts of by
    #: name, the busiest, and how often a tenant's rows are counted again, so many at a time.
    load_window_s: float = 60.0
    load_tenants_max: int = 1_000
    tenant_size_interval_s: float = 3_600.0
    tenant_sizes_per_review_max: int = 20
    #: A tenant gets a schema of its own from these, and goes back to the shared tables below those:
    #: operations per second, rows, bytes, and its share of the time in which its server works for
    #: tenants, if the others do so many operations per second at least.
    schema_promote_operations_per_s: float = 500.0
    schema_demote_operations_per_s: float = 100.0
    schema_promote_rows: int = 10_000_000
    schema_demote_rows: int = 4_000_000
    schema_promote_bytes: int = 50_000_000_000
    schema_demote_bytes: int = 20_000_000_000
    schema_promote_busy_percent: float = 50.0
    schema_demote_busy_percent: float = 20.0
    busy_neighbours_operations_per_s: float = 50.0
    #: A tenant gets a database of its own from these, and loses it below those.
    database_promote_operations_per_s: float = 5_000.0
    database_demote_operations_per_s: float = 1_000.0
    database_promote_rows: int = 1_000_000_000
    database_demote_rows: int = 400_000_000
    database_promote_bytes: int = 500_000_000_000
    database_demote_bytes: int = 200_000_000_000
    #: Windows in a row that lead up, and down.
    promote_windows: int = 5
    demote_windows: int = 1_440
    #: A tenant is left alone for so long after a move, and after one that did not stay, or a
    #: proposal that was dismissed or refused.
    promotion_cooldown_s: float = 21_600.0
    promotion_failed_cooldown_s: float = 86_400.0
    #: Moves that the orchestrator starts by itself, over all tenants.
    orchestrated_moves_per_hour_max: int = 4
    orchestrated_moves_at_once_max: int = 1
    #: After how long it confirms a move of its own whose proof has held, and when it rolls one
    #: back: the tenant's operations take so many times as long as before, and so much longer, in
    #: the middle one of so many windows with so many operations each.
    orchestrated_retention_s: float = 1_800.0
    orchestrated_latency_factor: float = 2.0
    orchestrated_latency_slack_ms: float = 2.0
    orchestrated_latency_windows: int = 3
    orchestrated_latency_operations_min: int = 100

    #: Tenants of level ROW that are made in one transaction; each takes two locks of the server's.
    provisioning_tenants_max: int = 200
    #: What operations take is measured in windows of so long (`docs/measurements.md`; 0 = not at
    #: all), for so many kinds of statement in a window, per process and per tenant, and the files
    #: of it are kept for so long and in so many bytes.
    measurement_window_s: float = 60.0
    measured_fingerprints_max: int = 5_000
    tenant_measured_fingerprints_max: int = 100
    measurement_retention_s: float = 1_209_600.0
    measurement_bytes_max: int = 512 * 1024 * 1024
    #: Busiest tenants of the last window that `/metrics` names; 0 = none.
    metrics_top_tenants_max: int = 0
    #: Where spans of traced requests go (OTLP over HTTP; nothing is traced without), how many of
    #: 100 requests that nobody else traces are, and of all in a second, in one HTTP process.
    traces_endpoint: str | None = field(default=None, repr=False)
    traces_sample_percent: float = 100.0
    traces_per_s_max: float = 50.0

    #: Rows of a tenant of level ROW that are deleted in one transaction.
    removal_batch_rows_max: int = 10_000

    #: Tenants that one shared actor keeps active, and after how long an idle one is passivated.
    actor_tenants_max: int = 10_000
    tenant_idle_s: float = 300.0
    #: Shared tenant actors per region.
    shared_actors: int = 2

    #: Tenants whose placement a strategy remembers, and for how long before it asks again.
    known_tenants_max: int = 10_000
    known_tenant_s: float = 5.0
    #: Named operations that can be registered, and the age at which a process reads them again.
    named_operations_max: int = 1_000
    named_operation_refresh_s: float = 2.0

    #: On the way to one tenant actor, per calling process: operations that wait to be sent,
    #: operations that are at the actor, calls under way, and bytes of one call or reply.
    actor_queued_operations_max: int = 50_000
    actor_sent_operations_max: int = 4_000
    actor_calls_max: int = 3
    actor_call_bytes_max: int = 1024 * 1024
    #: Connections that an actor takes from processes of its machine; 0 = all of them call by Ray.
    actor_local_connections_max: int = 256
    #: How long a finished operation waits in its actor for others, to travel back with them.
    actor_reply_wait_ms: int = 5
    #: How long operations wait for an actor that starts or restarts.
    actor_restart_timeout_s: float = 30.0
    #: How long a change of a tenant (making, suspending, deleting it) may take.
    control_timeout_s: float = 600.0
    #: Tenants that may have an actor of their own; further ones live in shared actors.
    dedicated_actors_max: int = 4

    #: Requests that one HTTP process works on at the same time, over all tenants and per tenant,
    #: and the bytes that their bodies may take together.
    requests_in_flight_max: int = 10_000
    tenant_requests_in_flight_max: int = 1_000
    request_bytes_in_flight_max: int = 256 * 1024 * 1024
    #: Results that are sent as streams: so many at the same time, in one HTTP process and for one
    #: tenant; bytes of a piece; and how long a client may take for a piece, and for all of them.
    streams_in_flight_max: int = 64
    tenant_streams_in_flight_max: int = 8
    stream_piece_bytes: int = 64 * 1024
    stream_write_timeout_s: float = 30.0
    stream_timeout_s: float = 600.0
    #: How deep JSON in a request may be nested, and how long a body may take to arrive.
    request_depth_max: int = 64
    request_read_timeout_s: float = 30.0
    #: Creations of tenants whose answers an HTTP process remembers by their idempotency key.
    idempotency_answers_max: int = 1_000
    #: Processes that answer HTTP.
    http_replicas: int = 1
    #: File that says how many there are instead, and when there are more (`serve.replicas_file`).
    http_replicas_file: Path | None = None
    #: How long requests that are being worked on may take to end when the runtime goes down.
    drain_timeout_s: float = 10.0
    #: Verified credentials that a process remembers.
    credential_cache_entries: int = 10_000
    #: JSON Web Tokens: keys (URL or file of a JWK set), and what a token must say. No keys = none.
    jwt_jwks: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    #: The claim that names the tenant.
    jwt_tenant_claim: str = "tenant_id"
    #: Clocks may differ by so much.
    jwt_leeway_s: float = 30.0
    #: Age at which the keys are read again, and the shortest time between two readings.
    jwt_keys_refresh_s: float = 300.0
    jwt_keys_retry_s: float = 5.0
    #: Local Ray: its object store, and how long its parts may take to start.
    ray_object_store_bytes: int = 100 * 1024 * 1024
    ray_start_timeout_s: float = 120.0

    #: Connections of the admin role per process, and how long making any connection may take.
    admin_connections_max: int = 8
    connect_timeout_s: float = 10.0
    #: Connections to the catalog per process, and rows in one page of a listing.
    catalog_connections_max: int = 4
    catalog_page_rows_max: int = 1_000
    #: How long a verified credential is believed without asking again: a revocation takes effect
    #: everywhere within this time. At most a second, which is what is promised.
    credential_cache_ms: int = 500
    #: How long the old secret of a rotated API key may stay good.
    credential_overlap_max_s: float = 604_800.0
    #: How exactly the last use of an API key is noted: at most one write per key in this time.
    credential_use_interval_s: float = 60.0
    #: Sessions that are being opened at the same time, per server and process.
    connections_opening_max: int = 4
    #: Statements that a session keeps prepared, and descriptions of statements per server.
    connection_statements_max: int = 256
    statement_descriptions_max: int = 4_096
    #: How long a cancelled statement may take to stop before its session is closed.
    cancel_timeout_ms: int = 5_000
    #: Operations that travel to PostgreSQL together.
    flight_operations_max: int = 64
    #: How long the answer of an operation with an idempotency key is kept.
    idempotency_retention_s: float = 86_400.0
    #: Tenants whose placement a process remembers.
    tenant_cache_entries: int = 10_000
    #: How long a process believes where tenants are, before it asks which of them have moved.
    placement_refresh_ms: int = 500
    #: Age at which a process looks again whether there is a newer version of the schema.
    schema_refresh_s: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", _absolute(Path(self.home)))
        if isinstance(self.tiers, Mapping):
            object.__setattr__(self, "tiers", TierTable.of_plain(self.tiers))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Path):
                object.__setattr__(self, item.name, _absolute(value))
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bounds(item.name).check(variable_of(item.name), value)
        _check_key(self.master_key)
        if self.orchestration not in _ORCHESTRATION:
            raise SettingError(
                f"TENANCY_ORCHESTRATION is {self.orchestration!r}; use {', '.join(_ORCHESTRATION)}"
            )
        for release in self.allowed_vulnerable_releases():
            if not re.fullmatch(r"[0-9]{2}\.[0-9]{1,2}", release):
                raise SettingError(
                    f"TENANCY_VULNERABLE_POSTGRES_ALLOWED names {release!r}; name releases as in "
                    "15.12, with commas between them"
                )

    def check_levels(self) -> None:
        """Raise `SettingError`, naming the variables, for values that move tenants to and fro."""
        for lower, higher in _BELOW:
            if getattr(self, lower) >= getattr(self, higher):
                raise SettingError(
                    f"{variable_of(lower)} is {getattr(self, lower):,.15g}; it must be below "
                    f"{variable_of(higher)}, which is {getattr(self, higher):,.15g}"
                )
        if self.promotion_failed_cooldown_s < self.promotion_cooldown_s:
            raise SettingError(
                "TENANCY_PROMOTION_FAILED_COOLDOWN_S must not be below TENANCY_PROMOTION_COOLDOWN_S"
            )
        if self.orchestrated_retention_s >= self.move_retention_s and (
            self.orchestration == "automatic"
        ):
            raise SettingError(
                "TENANCY_ORCHESTRATED_RETENTION_S must be below TENANCY_MOVE_RETENTION_S: "
                "otherwise a move is confirmed before it is known whether the tenant is slower"
            )

    def allowed_vulnerable_releases(self) -> frozenset[str]:
        """The releases that `vulnerable_postgres_allowed` names."""
        listed = self.vulnerable_postgres_allowed
        return frozenset(part.strip() for part in listed.split(",")) if listed else frozenset()

    @property
    def tier_limits(self) -> TierTable:
        """What tenants may take, with the ceilings for all types applied.

        Not `server_connections_max`: an actor has its share there, and a login is for all of them.
        """
        return self.tiers.under(
            {
                "statement_timeout_ms": self.statement_timeout_ms,
                "result_rows_max": self.result_rows_max,
                "result_bytes_max": self.result_bytes_max,
                "batch_result_bytes_max": self.batch_result_bytes_max,
                "connections_max": self.tenant_connections_max,
            }
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from `env` (the process environment by default); `overrides` win.

        Raises `SettingError`, naming the variable.
        """
        env = os.environ if env is None else env
        hints = get_type_hints(cls)
        fields = (item.name for item in dataclasses.fields(cls) if item.name != "tiers")
        names = {variable_of(name): name for name in fields}
        values: dict[str, Any] = {}
        limits: dict[str, str] = {}
        for variable, text in env.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in names and variable not in LIMIT_VARIABLES:
                raise unknown_variable(variable, [*names, *LIMIT_VARIABLES])
            if not text:
                raise SettingError(f"{variable} is empty; give it a value, or unset it")
            if variable in LIMIT_VARIABLES:
                limits[variable] = text
            else:
                values[names[variable]] = parsed(variable, text, hints[names[variable]])
        if limits:
            values["tiers"] = TierTable().changed(limits)
        return cls(**(values | overrides))

    def postgres_server(self) -> ServerConfig | None:
        """The server that `postgres_dsn` names; None = the embedded one."""
        given = {
            name: getattr(self, f"postgres_{name}")
            for name in (item.name for item in dataclasses.fields(ServerConfig))
            if name.startswith("ssl")
        }
        if self.postgres_dsn is not None:
            return ServerConfig(dsn=self.postgres_dsn, **given)
        for name, value in given.items():
            if value is not None:
                raise SettingError(
                    f"{variable_of(f'postgres_{name}')} has nothing to act on: the embedded server "
                    "listens on this machine only and has no TLS; set TENANCY_POSTGRES_DSN as well"
                )
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What the engine works on.

    `EngineConfig()` starts embedded servers under `TENANCY_HOME`. `servers` are the user's own
    PostgreSQL servers instead (`ServerConfig`, or plain DSN strings, which are named main,
    server-2, ...); the first one also holds the catalog. `settings` defaults to the environment.
    `gateway` replaces work in this process by work elsewhere (tenant actors give one).
    """

    servers: Sequence[ServerConfig | str] = ()
    redis_url: str | None = field(default=None, repr=False)
    settings: Settings | None = None
    gateway: Any = None

    def __post_init__(self) -> None:
        given = [self.servers] if isinstance(self.servers, str) else list(self.servers)
        servers = tuple(
            server
            if isinstance(server, ServerConfig)
            else ServerConfig(dsn=server, name="main" if index == 0 else f"server-{index + 1}")
            for index, server in enumerate(given)
        )
        names = [server.name for server in servers]
        if len(set(names)) != len(names):
            raise SettingError(f"EngineConfig.servers: two servers have one name ({names})")
        object.__setattr__(self, "servers", servers)

    def resolved_settings(self) -> Settings:
        """`settings`, or those of the environment, with the Redis server that is given here."""
        settings = self.settings or Settings.from_env()
        if self.redis_url is None or self.redis_url == settings.redis_url:
            return settings
        return dataclasses.replace(settings, redis_url=self.redis_url)


def variables(settings: Settings) -> dict[str, Any]:
    """Every `TENANCY_*` variable, and what it is in `settings`."""
    inherited = {item.name for item in dataclasses.fields(PerformanceSettings)}
    found = {
        variable_of(item.name): getattr(settings, item.name)
        for item in sorted(dataclasses.fields(settings), key=lambda one: one.name in inherited)
        if item.name != "tiers"
    }
    for kind in TenantType:
        tier = settings.tiers.of(kind)
        for item in dataclasses.fields(tier):
            found[limit_variable(kind, item.name)] = getattr(tier, item.name)
    return found


def secret_variables() -> frozenset[str]:
    """The variables that are keys, or addresses that may hold a password."""
    return frozenset(variable_of(one.name) for one in dataclasses.fields(Settings) if not one.repr)


def _absolute(path: Path) -> Path:
    """The path for processes with other working directories; `system` is no path but a word."""
    return path if str(path) == "system" else path.expanduser().absolute()


def _check_key(key: str | None) -> None:
    if key is None:
        return
    try:
        right = len(bytes.fromhex(key)) == 32
    except ValueError:
        right = False
    if not right:
        raise SettingError("TENANCY_MASTER_KEY must be 64 hexadecimal digits (32 bytes)")
