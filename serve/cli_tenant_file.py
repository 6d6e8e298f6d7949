"""`tenancy tenant create --from FILE`: many tenants."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TextIO

import typer
from rich import progress as bars
from rich.console import Console

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.json_documents import dump_json
from tenancy.data_isolation.serve.runtime_client import AnswerError, RuntimeClient
from tenancy.data_isolation.serve.tenant_file import TenantLine, read_tenants
from tenancy.data_isolation.serve.terminal import (
    STATUS_ERROR,
    STATUS_INTERRUPTED,
    STATUS_USAGE,
    CommandError,
    note,
    print_json,
    say,
    visible,
)

_PATH: Final = "/v1/tenant-batches"
#: Tenants of one request, and the part of its largest size that they may take.
_TENANTS_AT_ONCE: Final = 500
_SIZE_SHARE: Final = 0.5
#: A batch of databases takes its time.
_TIMEOUT_S: Final = 3_600.0
#: How often a batch is sent again that was turned away, and how long to wait at least.
_ATTEMPTS: Final = 5
_PAUSE_MIN_S: Final = 1.0
#: Errors that are printed one by one; `--json` has all.
_LISTED_MAX: Final = 20
_AGAIN: Final = "run it again: what is there already is left as it is"


@dataclass(kw_only=True, slots=True)
class _Outcome:
    created: int = 0
    existing: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tenants(self) -> int:
        """Lines that were dealt with."""
        return self.created + self.existing + len(self.errors)

    def fail(self, line: TenantLine, error: str) -> None:
        """Note a line that came to nothing."""
        self.errors.append({"line": line.number, "tenant_id": line.tenant_id, "error": error})

    def json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "tenants": self.tenants,
            "created": self.created,
            "existing": self.existing,
            "failed": len(self.errors),
            "errors": self.in_order(),
        }

    def in_order(self) -> list[dict[str, Any]]:
        """The errors in the order of the file: some are seen when it is read, some later."""
        return sorted(self.errors, key=lambda item: item["line"])


def create_from_file(path: Path, defaults: Mapping[str, Any], *, as_json: bool) -> None:
    """Make the tenants of a file; exit status 1 when one of them could not be made."""
    settings = Settings.from_env()
    outcome = _Outcome()
    try:
        with (
            _opened(path) as (file, size),
            RuntimeClient.connect(settings) as client,
            _bar(size) as (advance, lines),
        ):
            for batch in _batches(read_tenants(lines(file), defaults), settings, outcome):
                _send(client, batch, outcome)
                advance(outcome)
    except InvalidInputError as error:
        raise CommandError(f"{path}: {error.detail}", _told(outcome), STATUS_USAGE) from None
    except KeyboardInterrupt:
        hint = f"{_there(outcome)}; {_AGAIN}"
        raise CommandError("interrupted", hint, STATUS_INTERRUPTED) from None
    except CommandError as error:
        raise CommandError(str(error), _told(outcome), error.status) from None
    _report(outcome, as_json=as_json)
    if outcome.errors:
        raise typer.Exit(STATUS_ERROR)


def _batches(
    lines: Iterator[TenantLine], settings: Settings, outcome: _Outcome
) -> Iterator[list[TenantLine]]:
    """The lines that can be sent, in batches; the others are noted."""
    most = min(_TENANTS_AT_ONCE, settings.batch_operations_max)
    bytes_max = settings.request_bytes_max * _SIZE_SHARE
    batch: list[TenantLine] = []
    size = 0
    for line in lines:
        if line.error is not None:
            outcome.fail(line, line.error)
            continue
        length = len(dump_json(line.body))
        if batch and (len(batch) >= most or size + length > bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += length
    if batch:
        yield batch


def _send(client: RuntimeClient, batch: list[TenantLine], outcome: _Outcome) -> None:
    """Have a batch made, again while the runtime says that it may succeed then."""
    body = {"tenants": [line.body for line in batch]}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            results = client.post(_PATH, body, timeout_s=_TIMEOUT_S)["results"]
            break
        except AnswerError as error:
            if not error.retryable or attempt == _ATTEMPTS:
                raise
            time.sleep(max(error.retry_after_s, _PAUSE_MIN_S))
    for line, result in zip(batch, results, strict=True):
        if "error" in result:
            outcome.fail(line, result["error"]["detail"])
        elif result["created"]:
            outcome.created += 1
        else:
            outcome.existing += 1


def _report(outcome: _Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json(outcome.json())
        return
    say(f"{outcome.created} made, {outcome.existing} were there, {len(outcome.errors)} failed")
    for item in outcome.in_order()[:_LISTED_MAX]:
        text = f"line {item['line']}: {item['tenant_id']}: {item['error']}"
        note(visible(" ".join(text.split())))
    left = len(outcome.errors) - _LISTED_MAX
    if left > 0:
        note(f"and {left} more; --json has all of them")


def _told(outcome: _Outcome) -> str:
    return f"{_there(outcome)}; mend that, then {_AGAIN}"


def _there(outcome: _Outcome) -> str:
    """What is known to be done; of what was under way nothing is known."""
    done = outcome.created + outcome.existing
    return (
        f"at least {done} tenants of the file are there"
        if done
        else "none of the file is known to be made"
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[TextIO, int | None]]:
    """The file and its size in bytes; `-` is standard input, of which the size is not known."""
    if str(path) == "-":
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield sys.stdin, None
        return
    try:
        file = path.open(encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", status=STATUS_USAGE) from None
    with file:
        yield file, path.stat().st_size


@contextmanager
def _bar(size: int | None) -> Iterator[tuple[Any, Any]]:
    """A bar on standard error, where someone can see it: how much of the file was dealt with."""
    read = 0

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal read
        for line in file:
            read += len(line.encode("utf-8", "surrogateescape"))
            yield line

    with bars.Progress(
        bars.TextColumn("making tenants"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[tenants]:,} tenants, {task.fields[failed]:,} failed"),
        bars.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=size, tenants=0, failed=0)

        def advance(outcome: _Outcome) -> None:
            progress.update(
                task, completed=read, tenants=outcome.tenants, failed=len(outcome.errors)
            )

        yield advance, lines
