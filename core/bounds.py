"""From where to where the numbers of settings go.

Most follow from the unit that a setting's name ends with. What PostgreSQL or Linux would not take
is refused here, where the error can still name the variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tenancy.data_isolation.core.errors import SettingError

#: The most that an integer of 4 bytes holds, in which PostgreSQL counts milliseconds, kilobytes and
#: rows of its settings (manual, 20.1.1; `max_val` of the view pg_settings).
INT4_MAX: Final = 2_147_483_647
#: The least and the most that PostgreSQL takes for work_mem, in bytes (manual, 20.4.1).
_MEMORY_BYTES: Final = (64 * 1024, INT4_MAX * 1024)
#: The most that max_connections can be (`MAX_BACKENDS`; `max_val` of the view pg_settings).
CONNECTIONS_MAX: Final = 262_143
#: The most processes that Linux gives numbers to (proc(5), /proc/sys/kernel/pid_max).
_PROCESSES_MAX: Final = 4_194_304
#: Files that a process may open, at most, on Linux unless that is changed (proc(5), nr_open).
_FILES_MAX: Final = 1_048_576
_YEAR_S: Final = 31_536_000.0
_SHOWN_CHARACTERS: Final = 40


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the most that a setting may be, both included, and who says so.

    `or_zero` = it may also be 0, which is less than the least and means something of its own.
    """

    least: float
    most: float
    source: str = ""
    or_zero: bool = False

    def check(self, variable: str, value: float) -> None:
        """Raise `SettingError`, naming the variable, for what is outside or no number."""
        if not self.least <= value <= self.most and not (self.or_zero and value == 0):
            source = f" ({self.source})" if self.source else ""
            raise SettingError(
                f"{variable} is {_shown(str(value))}; it must be {'0, or ' * self.or_zero}from "
                f"{_whole(self.least)} to {_whole(self.most)}{source}"
            )


def not_a_number(variable: str, text: str) -> SettingError:
    """The error of a variable that has a text in place of a number."""
    return SettingError(f"{variable} is {_shown(text)!r}; a number is needed")


def _shown(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def _whole(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


_MILLISECONDS: Final = Bounds(1, INT4_MAX, "PostgreSQL counts milliseconds in 4 bytes")
_SECONDS: Final = Bounds(1e-3, 10 * _YEAR_S, "10 years")
#: How often something is looked at again.
_LOOKS: Final = Bounds(0.01, 10 * _YEAR_S, "who looks more often than that does nothing else")
_BYTES: Final = Bounds(1, 1 << 60, "1 EiB")
_RATE: Final = Bounds(1e-3, 1e9)
_PERCENT: Final = Bounds(0.1, 100)
_COUNT: Final = Bounds(1, INT4_MAX, "4 bytes")
_PORT: Final = Bounds(0, 65_535, "a port number; 0 is for any that is free")
_CONNECTIONS: Final = Bounds(
    1, CONNECTIONS_MAX, "the most that PostgreSQL takes for max_connections"
)
_PROCESSES: Final = Bounds(1, _PROCESSES_MAX, "the most processes that Linux has")

#: What does not follow from the unit.
_BY_NAME: Final[dict[str, Bounds]] = {
    "server_connections_max": _CONNECTIONS,
    "tenant_connections_max": _CONNECTIONS,
    "connections_max": _CONNECTIONS,
    "connections_opening_max": _CONNECTIONS,
    # The watchdogs add some of their own.
    "admin_connections_max": Bounds(1, CONNECTIONS_MAX // 2, _CONNECTIONS.source),
    "catalog_connections_max": _CONNECTIONS,
    "server_long_statements_max": Bounds(0, CONNECTIONS_MAX, "0 follows the processors"),
    "statement_params_max": Bounds(1, 65_535, "PostgreSQL's protocol: manual, 55.7, Bind"),
    "statement_bytes_max": Bounds(1, (1 << 30) - 1, "PostgreSQL: manual, appendix K, field size"),
    "statement_memory_bytes": Bounds(*_MEMORY_BYTES, "PostgreSQL: manual, 20.4.1, work_mem"),
    "temp_file_bytes_max": Bounds(
        1, INT4_MAX * 1024, "PostgreSQL: manual, 20.4.2, temp_file_limit in kB"
    ),
    "server_start_timeout_s": Bounds(
        1e-3, INT4_MAX // 1_000, "PostgreSQL counts milliseconds in 4 bytes"
    ),
    "cache_statement_min_us": Bounds(0, 1e9, "0 asks for every statement"),
    "cache_result_bytes_max": Bounds(1_024, 1 << 30, "1 GiB"),
    "statement_statistics_max": Bounds(
        100, INT4_MAX // 2, "PostgreSQL: manual, F.32.4, pg_stat_statements.max", or_zero=True
    ),
    "pinned_tenants_max": Bounds(1, 1_000, "each is looked after all the time"),
    "pinned_sessions": Bounds(1, 16, "each takes a connection to the server"),
    "pinned_statements_max": Bounds(1, 256, "a session keeps as many prepared by default"),
    "provisioning_tenants_max": Bounds(1, 1_000, "each takes two of the server's locks"),
    "stream_piece_bytes": Bounds(1_024, 1 << 24, "a message each; 16 MiB"),
    "traces_sample_percent": Bounds(0, 100, "0 = what callers trace"),
    "traces_per_s_max": Bounds(0.01, 100_000, "more is nothing to look at"),
    "credential_cache_ms": Bounds(1, 1_000, "so that revocations hold within a second"),
    "watchdog_tick_ms": Bounds(1, 500, "who looks less often than each second does not watch"),
    "measurement_window_s": Bounds(
        1, 3_600, "0 = nothing is measured; each window is written to a file; an hour", or_zero=True
    ),
    "load_window_s": Bounds(0.1, 86_400, "each window is written to the catalog; a day"),
    "move_poll_s": _LOOKS,
    "move_follow_s": _LOOKS,
    "schema_refresh_s": _LOOKS,
    "named_operation_refresh_s": _LOOKS,
    "metrics_top_tenants_max": Bounds(0, 100, "each is a series of its own"),
    "http_tls_hsts_s": Bounds(0, 100 * _YEAR_S, "100 years"),
    "operations_per_s": _RATE,
    "actor_calls_max": Bounds(1, 200, "of each process, all of which wait at the actor"),
    "actor_local_connections_max": Bounds(0, _FILES_MAX, "0 = none; each is an open file"),
    "shared_actors": _PROCESSES,
    "dedicated_actors_max": _PROCESSES,
    "http_replicas": _PROCESSES,
}


def bounds(name: str) -> Bounds:
    """The bounds of the setting, or limit of a type of tenant, of that name."""
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    if name.endswith("_port"):
        return _PORT
    if name.endswith("_operations_per_s"):
        return _RATE
    if name.endswith("_percent"):
        return _PERCENT
    if name.endswith("_ms"):
        return _MILLISECONDS
    if name.endswith("_s"):
        return _SECONDS
    return _BYTES if "_bytes" in name else _COUNT
