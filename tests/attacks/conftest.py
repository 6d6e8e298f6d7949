"""The stages, which all attacks of a session share."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from support.install import Install, cloned
from support.postgres import PostgresServer

from attacks.product_stage import ProductStage
from attacks.weak_stage import WeakStage


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
