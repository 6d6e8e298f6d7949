"""Processor time of the parts of a request that were chosen between, in this process.

The same request through FastAPI as most write it, through plain Starlette and through the endpoint of
this product, with a way to tenants behind them that answers at once; and JSON by the libraries
that there are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import orjson
from fastapi import FastAPI
from pydantic import BaseModel
from report import Figure, figure
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tenancy.data_isolation.core import Column, Operation, QueryResult

_BATCH = 50
_ROUNDS = 7
