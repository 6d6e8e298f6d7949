"""The house keeps its shape: sizes, names, SQL in files, words. Bounds here only ever tighten."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "engine", "ledger", "strategies", "actors", "training", "serve")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
#: Share of functions that may be longer than 30 lines.
LONG_FUNCTIONS_SHARE_MAX = 0.10
BANNED_MODULE_NAMES = {"utils", "helpers", "manager", "common", "misc"}


def _modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).glob("**/*.py"))


def _functions(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((f"{path.name}:{node.name}", _length(node)))
    return found


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0]
    doc = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        doc = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - doc


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_keep_their_size(path):
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX
    assert [item for item in _functions(path) if item[1] > FUNCTION_LINES_MAX] == []
    assert path.stem not in BANNED_MODULE_NAMES


def test_most_functions_are_short():
    lengths = [length for path in _modules() for _, length in _functions(path)]

    assert sum(length > 30 for length in lengths) / len(lengths) <= LONG_FUNCTIONS_SHARE_MAX


def test_every_room_is_typed_and_packaged():
    packaged = (ROOT / "pyproject.toml").read_text()
    for room in ROOMS:
        if (ROOT / room).is_dir():
            assert (ROOT / room / "py.typed").exists(), room
            assert f'"tenancy.data_isolation.{room}"' in packaged, room


@pytest.mark.parametrize("room", ROOMS)
def test_sql_of_tables_lives_in_sql_files(room):
    pattern = re.compile(
        r"\b(create (table|function|policy|trigger)|insert into|delete from)\b", re.I
    )
    offenders = []
    for path in (ROOT / room).glob("**/*.py"):
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if id(node) not in documents and len(node.value) > 160 and pattern.search(node.value):
                offenders.append(f"{path.name}:{node.lineno}")
    assert offenders == []


def test_tests_do_not_sleep_to_wait():
    # A step of a bounded poll is shorter than a tenth of a second.
    sleeping = re.compile(r"(time|asyncio)\.sleep\((0\.[1-9]|[1-9]|[a-zA-Z_])")
    offenders = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").glob("**/*.py")
        if path.name != Path(__file__).name and sleeping.search(path.read_text())
    ]
    assert offenders == []


def test_the_repository_carries_no_path_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    banned = re.compile(
        "|".join(("/wor" + "k/", "/roo" + "t/", "index-" + "url", "find-" + "links"))
    )
    offenders = [
        name
        for name in listed
        if (ROOT / name).is_file()
        and (ROOT / name).stat().st_size < 1_000_000
        and banned.search((ROOT / name).read_text(errors="replace"))
    ]
    assert offenders == []
