"""The stages, which all attacks of a session share."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.install import Install, cloned
from support.postgres import PostgresServer

from attacks.product_stage import ProductStage
from attacks.report import Report, page
from attacks.weak_stage import WeakStage

_REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The report is printed when it is asked for."""
    parser.addoption("--attack-report", action="store_true", help="print what came of each attack")
    parser.addoption(
        "--attack-page", metavar="FILE", help="write what came of each attack as a page"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Findings are gathered in any case."""
    config.stash[_REPORT] = Report()


@pytest.fixture
def report(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Report:
    """What came of the attacks so far."""
    found = request.config.stash[_REPORT]
    found.server = str(postgres_server.major_version)
    return found


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the report."""
    found = config.stash[_REPORT]
    if config.getoption("--attack-report"):
        for line in (*found.lines(), found.json()):
            terminalreporter.write_line(line)
    if path := config.getoption("--attack-page"):
        Path(path).write_text(page(found))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def product(
    installed_model: Install, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ProductStage]:
    """The product, with a pair of tenants at each level."""
    name = f"tenancy_{secrets.token_hex(5)}"
    home: Path = tmp_path_factory.mktemp("attacks")
    async with cloned(installed_model, name, home) as install, ProductStage.opened(install) as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def weak(postgres_server: PostgresServer) -> AsyncIterator[WeakStage]:
    """The setup on which attacks have to succeed."""
    async with WeakStage.opened(postgres_server) as made:
        yield made
