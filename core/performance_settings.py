"""Limits of what is done for speed: results that are kept, pinned tenants, advice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceSettings:
    """A part of `settings.Settings`."""

    #: Results that are kept (`PerformanceOptimizedStrategy`): memory of one process for all tenants
    #: and for one, the largest result, and for how long one is kept at most.
    cache_memory_bytes_max: int = 64 * 1024 * 1024
    cache_tenant_bytes_max: int = 8 * 1024 * 1024
    cache_result_bytes_max: int = 64 * 1024
    cache_age_s: float = 60.0
    #: What all processes together share in Redis, so that tenants' data is there; less than the
    #: largest result = nothing.
    cache_shared_bytes_max: int = 32 * 1024 * 1024
    #: Statements that take less than this on average, or less than twice as long as Redis, are left
    #: to PostgreSQL. 0 = Redis is asked for every one.
    cache_statement_min_us: int = 500
    #: Operations that wait for one that is asking PostgreSQL the same.
    cache_followers_max: int = 1_000
    #: How long Redis may take for an answer. When it does not answer, nothing is kept, for this
    #: long at least; so long it is also between two attempts to begin keeping a tenant's results.
    cache_answer_timeout_ms: int = 1_000
    cache_retry_s: float = 2.0
    #: A write that was announced and has not ended for so long counts as lost with its process.
    cache_lost_write_s: float = 60.0

    #: Pinned tenants (`PerformanceConfig.pinned_tenants`): how many there may be, sessions of each
    #: that are kept ready, and statements that are prepared there and answered ahead.
    pinned_tenants_max: int = 20
    pinned_sessions: int = 1
    pinned_statements_max: int = 32
    #: How often is looked at whether they are ready; below `connection_idle_s`, or sessions go.
    pinned_refresh_s: float = 5.0
    #: For how long what they ask for is remembered in Redis, for the time after a restart.
    pinned_statements_kept_s: float = 604_800.0

    #: Kinds of statement that the embedded PostgreSQL counts (pg_stat_statements), for advice about
    #: indexes and plans; 0 = it does not load the library.
    statement_statistics_max: int = 0
    #: Calls of a statement, and blocks of 8 KiB that each touches, before an index is advised.
    advice_calls_min: int = 10
    advice_call_blocks_min: int = 64
    #: Plans of a statement before it counts as planned again and again. Each session makes five
    #: before it keeps one.
    advice_plans_min: int = 1_000
    #: The most memory of one sort or hash that is advised for a type of tenant.
    advice_memory_bytes_max: int = 64 * 1024 * 1024
    #: How long a server may take for each question, and for looking at one table again.
    advice_timeout_s: float = 60.0
