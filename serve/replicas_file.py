"""The file that says how many processes answer HTTP, and when there are more of them.

TOML, with the names that Ray Serve has for it (its configuration file, `deployments`): either
`num_replicas`, or a table `autoscaling_config`. It is read once, when the runtime starts.

Reading is strict: an unknown key, or a value that cannot be meant, is a `SettingError` that names
the field.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.bounds import Bounds
from tenancy.data_isolation.core.errors import SettingError

REPLICAS_VARIABLE: Final = "TENANCY_HTTP_REPLICAS_FILE"
_NUMBER: Final = "num_replicas"
_SCALING: Final = "autoscaling_config"
#: Half of the ports that are set aside for them, so that new ones can start while old ones end.
_REPLICAS: Final = Bounds(1, 100, "each has ports of its own; none would answer nobody")
_DELAY: Final = Bounds(0, 86_400, "a day")
_BOUNDS: Final[Mapping[str, Bounds]] = {
    "min_replicas": _REPLICAS,
    "max_replicas": _REPLICAS,
    "target_ongoing_requests": Bounds(0.1, 1_000_000),
    "upscale_delay_s": _DELAY,
    "downscale_delay_s": _DELAY,
    "look_back_period_s": Bounds(1, 3_600, "an hour"),
}
#: Ray Serve asks each replica how busy it is at most so often.
_REPORT_INTERVAL_MAX_S: Final = 10.0
_REPORTS_PER_LOOK_BACK: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Autoscaling:
    """When there are more and fewer processes: fields of Ray Serve's `AutoscalingConfig`.

    There are as many as keep each at `target_ongoing_requests` requests that are being worked on,
    by the mean of the last `look_back_period_s` seconds, once that has been so for the delay.
    """

    max_replicas: int
    target_ongoing_requests: float
    min_replicas: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """How many processes answer HTTP: so many, or as many as `autoscaling` makes it."""

    number: int | None = None
    autoscaling: Autoscaling | None = None

    @property
    def most(self) -> int:
        """How many there can be at the same time."""
        return self.autoscaling.max_replicas if self.autoscaling else self.number or 1

    def options(self) -> dict[str, Any]:
        """What `ray.serve.deployment` is told."""
        if self.autoscaling is None:
            return {"num_replicas": self.number}
        fields = dataclasses.asdict(self.autoscaling)
        # What happened since a replica last told of itself would not be seen in the time to look
        # back on.
        fields["metrics_interval_s"] = min(
            _REPORT_INTERVAL_MAX_S, self.autoscaling.look_back_period_s / _REPORTS_PER_LOOK_BACK
        )
        return {"num_replicas": None, "autoscaling_config": fields}

    def text(self) -> str:
        """As one argument of a command."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Replicas:
        """What `text` gave."""
        found = json.loads(text)
        scaling = found["autoscaling"]
        return cls(number=found["number"], autoscaling=Autoscaling(**scaling) if scaling else None)


def replicas(settings: Settings) -> Replicas:
    """What the settings' file says, or the settings themselves. Reads the file; `SettingError`."""
    path = settings.http_replicas_file
    if path is None:
        return Replicas(number=settings.http_replicas)
    if settings.http_replicas != type(settings).__dataclass_fields__["http_replicas"].default:
        raise _wrong(path, "the file says how many replicas there are; unset TENANCY_HTTP_REPLICAS")
    document = _document(path)
    _check_keys(path, "it", document, (_NUMBER, _SCALING))
    match _NUMBER in document, _SCALING in document:
        case True, False:
            return Replicas(number=int(_checked(path, _NUMBER, document[_NUMBER], _REPLICAS)))
        case False, True:
            return Replicas(autoscaling=_autoscaling(path, document[_SCALING]))
        case _:
            raise _wrong(path, f"it has to have one of {_NUMBER} and [{_SCALING}]")


def said(settings: Settings) -> str | None:
    """What the file says, to compare with what it says later; None without a file. Reads it."""
    return None if settings.http_replicas_file is None else replicas(settings).text()


def _autoscaling(path: Path, table: Any) -> Autoscaling:
    if not isinstance(table, dict):
        raise _wrong(path, f"{_SCALING} is not a table; begin it with [{_SCALING}]")
    _check_keys(path, _SCALING, table, tuple(_BOUNDS))
    for field in dataclasses.fields(Autoscaling):
        if field.default is dataclasses.MISSING and field.name not in table:
            raise _wrong(path, f"{_SCALING} has no {field.name}")
    values = {
        name: _checked(path, f"{_SCALING}.{name}", value, _BOUNDS[name])
        for name, value in table.items()
    }
    found = Autoscaling(**values)
    if found.min_replicas > found.max_replicas:
        raise _wrong(
            path,
            f"{_SCALING}.min_replicas is {found.min_replicas}; it must not be above max_replicas, "
            f"which is {found.max_replicas}",
        )
    return found


def _checked(path: Path, name: str, value: Any, bounds: Bounds) -> Any:
    """A number within bounds; a whole one where it counts replicas."""
    kinds = int if name.endswith("replicas") else int | float
    if isinstance(value, bool) or not isinstance(value, kinds):
        whole = "a whole number" if kinds is int else "a number"
        raise _wrong(path, f"{name} is {str(value)[:40]!r}; {whole} is needed")
    bounds.check(f"{REPLICAS_VARIABLE} ({path}): {name}", value)
    return value if kinds is int else float(value)


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, f"it cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise _wrong(path, f"it is not valid TOML: {error}") from None


def _check_keys(path: Path, what: str, item: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(item.keys() - set(known))
    if unknown:
        raise _wrong(path, f"{what} has {unknown[0]!r}; there are {', '.join(known)}")


def _wrong(path: Path, problem: str) -> SettingError:
    return SettingError(f"{REPLICAS_VARIABLE} ({path}): {problem}")
