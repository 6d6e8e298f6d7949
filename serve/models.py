"""What the HTTP interface takes and gives: the shapes behind its OpenAPI document.

Rules this module keeps: a name that is not known is refused, so that a misspelt option is never
silently without effect; nothing is converted (the text "1" is no number); every list and text that
a client sends has a largest size.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tenancy.data_isolation.core import IsolationLevel, TenantStatus, TenantType
from tenancy.data_isolation.core.identifiers import TENANT_ID_PATTERN, WORD_PATTERN

_WORDS_MAX = 32
_METADATA_KEYS_MAX = 64

#: Words of ours; `core` checks the exact form and says what is wrong with it, and the document says
#: which form it is.
Word = Annotated[str, Field(max_length=200, json_schema_extra={"pattern": f"^{WORD_PATTERN}$"})]
TenantName = Annotated[
    str, Field(max_length=200, json_schema_extra={"pattern": f"^{TENANT_ID_PATTERN}$"})
]
MigrationName = Annotated[str, Field(max_length=200)]
#: Names of objects of PostgreSQL have 63 bytes at most, none of them zero (manual, 4.1.1).
ObjectName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[^\x00]+$")]


class Body(BaseModel):
    """Something that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """Something that a client gets."""

    model_config = ConfigDict(frozen=True)


class TenantBody(Body):
    """A new tenant. Without `isolation_level`, the runtime chooses one and gives its reasons."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"tenant_id": "acme", "tenant_type": "standard"},
                {
                    "tenant_id": "st-mary",
                    "tenant_type": "enterprise",
                    "isolation_level": "database",
                    "compliance": ["hipaa"],
                },
            ]
        }
    )

    tenant_id: TenantName = Field(
        description="1 to 63 of a-z, 0-9, '_' and '-', starting with a letter or a digit."
    )
    # Enumerations arrive as text, which strict mode would not take for a member.
    tenant_type: Annotated[TenantType, Field(strict=False)] = TenantType.STANDARD
    isolation_level: Annotated[IsolationLevel, Field(strict=False)] | None = None
    region: Word | None = None
    compliance: list[Word] = Field(
        default=[],
        max_length=_WORDS_MAX,
        description="Regimes that apply to the data, such as `gdpr`, `hipaa` or `pci_dss`.",
    )
    metadata: dict[str, Any] = Field(
        default={},
        max_length=_METADATA_KEYS_MAX,
        description=(
            "Facts for the choice (`size_bytes`, `size_rows`, `load_ops_s`, `workload`, `budget`, "
            "`required_security`, `required_latency`); other keys are yours."
        ),
    )


class PlacementAnswer(Answer):
    """Where a tenant's data is. Names of database objects stay inside."""

    level: IsolationLevel
    server: str
    epoch: int


class TenantAnswer(Answer):
    """A tenant."""

    tenant_id: str
    tenant_type: TenantType
    status: TenantStatus
    isolation_level: IsolationLevel | None = Field(
        description="Null while the tenant is being created."
    )
    strategy: str | None = Field(
        description=(
            "What holds the data: `row_level`, `schema_level`, `database_level`, or `hybrid`: "
            "level `row`, with the tables that are marked sensitive in a schema of the tenant's "
            "own."
        )
    )
    region: str | None
    compliance: list[str]
    placement: PlacementAnswer | None
    results_kept: bool = Field(
        description=(
            "Whether results of its reads are kept, to be given again while they are current."
        )
    )
    pinned: bool = Field(description="Whether it is kept ready for the time at which it asks.")


class NewTenantAnswer(TenantAnswer):
    """A tenant that was just made, and why its data is kept apart the way it is."""

    reasons: list[str]


class TenantBatchBody(Body):
    """Several new tenants, each with what it would be made with by itself."""

    tenants: list[TenantBody]


class TenantBatchEnvelope(Body):
    """A `TenantBatchBody` as it is read: each tenant is checked by itself."""

    tenants: list[Any]


class TenantsAnswer(Answer):
    """One page of tenants in the order of their ids. `next` is the `after` of the next page."""

    tenants: list[TenantAnswer]
    next: str | None


Params = list[Any] | dict[str, Any]


class QueryBody(Body):
    """One SQL statement and its parameters."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "SELECT id, email FROM users WHERE id = $1", "params": [123]},
                {"query": "SELECT id FROM users WHERE email = :email", "params": {"email": "a@b"}},
            ]
        }
    )

    query: str
    params: Params = Field(
        default=[],
        description=(
            "A list for `$1` placeholders or an object for `:name` placeholders. A value is "
            "accepted in the form in which it is returned: numbers for smallint to bigint, real "
            "and double precision; true and false; any JSON value for json and jsonb; lists for "
            "arrays of these; for every other type the text that PostgreSQL writes, so that "
            "numeric keeps its digits. NaN and infinities are the texts `NaN`, `Infinity` and "
            "`-Infinity`."
        ),
    )


class ColumnAnswer(Answer):
    """A column: its name, and its PostgreSQL type as `format_type` spells it."""

    name: str
    type: str


class QueryAnswer(Answer):
    """What one statement returned."""

    columns: list[ColumnAnswer]
    rows: list[list[Any]] = Field(description="One list per row; see `params` for the values.")
    row_count: int = Field(description="Rows returned, or changed where none are returned.")


class BatchBody(Body):
    """Several statements, each for itself or all in one transaction."""

    operations: list[QueryBody]
    atomic: bool = Field(
        default=False, description="One transaction: all take effect, or none does."
    )


class FieldProblem(Answer):
    """One field that is not as it must be."""

    field: str
    detail: str


class ProblemAnswer(Answer):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:tenancy:problem:tenant-not-found",
                    "title": "Tenant not found",
                    "status": 404,
                    "detail": "There is no such tenant.",
                    "retryable": False,
                }
            ]
        }
    )

    type: str = Field(description="A stable URN that names the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What happened and what to do.")
    retryable: bool = Field(description="Whether the same request may succeed when sent again.")
    sqlstate: str | None = Field(default=None, description="Where PostgreSQL gave one.")
    instance: str | None = Field(default=None, description="Under this id the log has more.")
    errors: list[FieldProblem] | None = None


class BatchProblem(Answer):
    """What one statement of a batch got in place of a result."""

    error: ProblemAnswer


class BatchAnswer(Answer):
    """One entry per statement, in their order."""

    results: list[QueryAnswer | BatchProblem]


class MadeTenantAnswer(Answer):
    """A tenant, and whether it was made now or was there already."""

    tenant: TenantAnswer
    created: bool


class TenantBatchAnswer(Answer):
    """One entry per tenant, in their order."""

    results: list[MadeTenantAnswer | BatchProblem]


class OrchestratorAnswer(Answer):
    """What the orchestrator did. `processing_time` is in seconds."""

    selected_strategy: str
    processing_time: float
    reasons: list[str]


class OperationAnswer(Answer):
    """What a named operation returned, and how it was carried out."""

    tenant_id: str
    operation: str
    strategy: str
    isolation_level: IsolationLevel
    columns: list[ColumnAnswer]
    rows: list[list[Any]]
    row_count: int
    processing_time: float
    orchestrator: OrchestratorAnswer


class NamedOperationBody(Body):
    """The SQL that a named operation runs; `:name` placeholders take the request's fields."""

    sql: str


class NamedOperationAnswer(Answer):
    """A named operation."""

    name: str
    sql: str


class NamedOperationsAnswer(Answer):
    """All named operations, in the order of their names."""

    operations: list[NamedOperationAnswer]


class MigrationBody(Body):
    """A tenant-neutral migration. `name` is `0001_users`, or `users` for the next free number."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "0001_users",
                    "sql": (
                        "CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL UNIQUE);"
                    ),
                }
            ]
        }
    )

    name: MigrationName
    sql: str


class MigrationAnswer(Answer):
    """A registered migration. `name` begins with the number, as that of a file would."""

    number: int
    name: str
    checksum: str = Field(description="SHA-256 of the text, in hexadecimal.")


class NamespacesAnswer(Answer):
    """How many copies of the schema there are, and how far they have come."""

    total: int
    current: int = Field(description="Copies at the newest version.")
    behind: int
    failed: int
    versions: dict[str, int] = Field(description="Copies at each version.")


class NamespaceFailure(Answer):
    """A copy of the schema at which a migration failed. Names of database objects stay inside."""

    server: str
    kind: str
    tenant_no: int | None
    tenant_id: str | None = Field(
        description="The tenant whose own copy it is; null for a copy that tenants share."
    )
    version: int
    error: str | None


class RelationColumnAnswer(ColumnAnswer):
    """A column of a table or view."""

    not_null: bool
    generated: bool = Field(description="Computed from other columns; it takes no value.")
    identity: Literal["always", "by default"] | None = Field(
        description=(
            "Numbered by a sequence; `always` takes a value only with OVERRIDING SYSTEM VALUE."
        )
    )


class RelationAnswer(Answer):
    """A table or view as tenants see it."""

    name: str
    kind: Literal["table", "view"]
    columns: list[RelationColumnAnswer]
    primary_key: list[str] = Field(description="In the order of the key; empty for a view.")
    sensitive: bool = Field(
        description=(
            "Hybrid tenants keep it in a schema of their own: it is marked `@sensitive` in its "
            "comment, or foreign keys or a view join it with one that is."
        )
    )


class SchemaAnswer(Answer):
    """The tenant-neutral schema: its migrations, its tables, and where its copies stand."""

    version: int
    migrations: list[MigrationAnswer]
    tables: list[str] = Field(description="The names of `relations`.")
    relations: list[RelationAnswer]
    namespaces: NamespacesAnswer
    failures: list[NamespaceFailure]


class ServerStatisticsAnswer(Answer):
    """Whether a server's statistics of statements could be read."""

    server: str
    state: Literal[
        "read",
        "not_loaded",
        "not_available",
        "not_permitted",
        "timed_out",
        "unreachable",
        "failed",
    ]
    hint: str | None = Field(default=None, description="What to do so that they can be.")
    planning_counted: bool = Field(
        default=False, description="It counts planning too (pg_stat_statements.track_planning)."
    )


class IndexAdviceAnswer(Answer):
    """An index that would help, and what the statements that would use it have come to."""

    table: str
    columns: list[str]
    statements: int = Field(description="Kinds of statement that would use it.")
    calls: int
    total_s: float = Field(description="Seconds that PostgreSQL took for all calls.")
    blocks_per_call: float = Field(description="Blocks of 8 KiB that a call touches.")
    migration: MigrationBody = Field(description="What POST /v1/schema/migrations takes.")


class TableBody(Body):
    """A table of tenants where it lies, as advice about plans names it."""

    server: Word
    database: ObjectName
    schema_: ObjectName = Field(alias="schema")
    table: ObjectName


class ShownStatementAnswer(Answer):
    """A kind of statement, by fingerprint and by ids of PostgreSQL; its text is not shown."""

    fingerprint: str
    query_ids: list[str] = Field(description="`queryid` in pg_stat_statements, some of them.")
    tables: list[str]


class VariableAnswer(Answer):
    """A setting of the runtime, which is read when it starts."""

    name: str
    value: str


class PlanAdviceAnswer(Answer):
    """What would help statements to better plans: what was seen, what to do, and what it costs."""

    kind: Literal["statistics", "memory", "planning"]
    statements: int = Field(description="Kinds of statement that it is about.")
    shown: list[ShownStatementAnswer] = Field(description="Those that took the longest.")
    calls: int
    total_s: float = Field(description="Seconds that PostgreSQL took to run all calls.")
    figures: dict[str, float] = Field(description="What decided.")
    remedy: str
    cost: str
    undo: str = Field(description="How it is taken back.")
    sql: str | None = None
    variable: VariableAnswer | None = None
    analyze: TableBody | None = Field(
        default=None, description="What POST /v1/schema/statistics takes."
    )


class SchemaAdviceAnswer(Answer):
    """What would help, of each kind the one first that would save the most. Nothing is done."""

    servers: list[ServerStatisticsAnswer]
    indexes: list[IndexAdviceAnswer]
    plans: list[PlanAdviceAnswer]


class AnalyzedAnswer(Answer):
    """A table whose statistics are up to date now."""

    sql: str = Field(description="What was run.")
    rows: float = Field(description="Rows of the table, roughly.")
    took_s: float


class MigrationAppliedAnswer(MigrationAnswer):
    """A migration that is registered and was brought to every copy of the schema."""

    version: int
    namespaces: NamespacesAnswer


class KeyBody(Body):
    """A new API key: for one tenant, or with the rights of an administrator."""

    scope: Literal["admin", "tenant"]
    tenant_id: TenantName | None = None
    label: str = Field(default="", max_length=200)
    expires_at: Annotated[datetime, Field(strict=False)] | None = Field(
        default=None, description="With a time zone; null = never."
    )


class KeyRotationBody(Body):
    """How an API key gets another secret."""

    overlap_s: float = Field(
        default=0,
        ge=0,
        description=(
            "Seconds for which the old secret stays good beside the new one; 0 = it is dead at "
            "once. At most what `TENANCY_CREDENTIAL_OVERLAP_MAX_S` says."
        ),
    )


class KeyAnswer(Answer):
    """An API key, without its secret."""

    key_id: str
    scope: Literal["admin", "tenant"]
    tenant_id: str | None
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rotated_at: datetime | None = Field(description="When it got its present secret; null = never.")
    previous_until: datetime | None = Field(
        description="Until when the secret before the present one is good as well."
    )
    last_used_at: datetime | None = Field(
        description="To within a minute (`TENANCY_CREDENTIAL_USE_INTERVAL_S`); null = never."
    )


class RotatedKeyAnswer(KeyAnswer):
    """An API key with its new secret. `key` is shown this once and kept nowhere."""

    key: str


class NewKeyAnswer(Answer):
    """A fresh API key. `key` is shown this once and kept nowhere."""

    key_id: str
    key: str
    scope: Literal["admin", "tenant"]
    tenant_id: str | None
    label: str
    expires_at: datetime | None


class KeysAnswer(Answer):
    """One page of API keys. `next` is the `after` of the next page."""

    keys: list[KeyAnswer]
    next: str | None


class HealthAnswer(Answer):
    """The process is alive."""

    status: Literal["ok"]


class ReadinessAnswer(Answer):
    """What is needed to serve, and whether it answers (`ok`, or why not).

    `moves` is for information: tenants are served while moves stand still.
    """

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]
