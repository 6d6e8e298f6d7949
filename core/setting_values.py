"""Settings' values, as they are written in variables of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenancy.data_isolation.core.bounds import not_a_number


def parsed(variable: str, text: str, kind: Any) -> Any:
    """`text` as a value of the field's type. Raises `SettingError`."""
    try:
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is Path or kind == Path | None:
            return Path(text)
    except ValueError:
        raise not_a_number(variable, text) from None
    return text
