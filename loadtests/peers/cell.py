"""One measurement in a process of its own: `python -m peers.cell` with a JSON object on its input.

The last line that it prints is a JSON object with the figures, and the versions of what it used.
Exit status 3: a value was wrong.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peers.window import Window, in_batches, in_threads, one_by_one
from peers.work import Work, WrongAnswerError

WRONG = 3


def main() -> None:
    """Measure, and print the figures."""
    asked = json.loads(sys.stdin.read())
    window = Window(warm_s=asked["warm_s"], seconds=asked["seconds"])
    pairs = Work(tenants=asked["tenants"], rows=asked["rows"]).drawn(asked["seed"])
    module, _, name = asked["driver"].partition(":")
    driver = getattr(import_module(module), name)
    try:
        if asked["threads"]:
            in_threads(window, driver(asked), pairs, asked["in_flight"], asked["threads"])
        else:
            import uvloop

            uvloop.run(_measure(window, driver(asked), pairs, asked))
    except (WrongAnswerError, ExceptionGroup) as error:
        print(_first(error), file=sys.stderr)
        raise SystemExit(WRONG if isinstance(_first(error), WrongAnswerError) else 1) from error
    result = window.result(asked["per_call"]) | {"versions": _versions(asked["packages"])}
    print(json.dumps(result), flush=True)


async def _measure(
    window: Window, driver: Any, pairs: list[tuple[int, int]], asked: dict[str, Any]
) -> None:
    await driver.open()
    try:
        in_flight, per_call = asked["in_flight"], asked["per_call"]
        if per_call == 1:
            await one_by_one(window, driver.read, pairs, in_flight)
        else:
            await in_batches(window, driver.read_many, pairs, in_flight, per_call)
    finally:
        await driver.close()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _versions(packages: list[str]) -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
