"""Starting and killing processes that own an embedded server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("server_owner.py")


class OwnerProcess:
    """A process that runs `server_owner.py`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self) -> dict[str, Any]:
        """The next line that it says; an assertion error with its complaints when it ended."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = await self._process.stdout.readline()
        assert line, (await self._process.stderr.read()).decode()
        told: dict[str, Any] = json.loads(line)
        return told

    async def kill(self) -> list[dict[str, Any]]:
        """SIGKILL; all that it still had said."""
        self._process.kill()
        return [json.loads(line) for line in await self._rest() if line.endswith(b"\n")]

    async def end(self) -> None:
        """Let it come to the end of its program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._rest()
        assert self._process.returncode == 0

    async def _rest(self) -> list[bytes]:
        out, _ = await self._process.communicate()
        return out.splitlines(keepends=True)

    async def close(self) -> None:
        """End it if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


@asynccontextmanager
async def owner_process(
    kind: str, mode: str, home: Path, binaries: Path | None = None
) -> AsyncIterator[OwnerProcess]:
    """An owner process; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_SCRIPT),
        kind,
        mode,
        str(home),
        *([str(binaries)] if binaries else []),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    owner = OwnerProcess(process)
    try:
        yield owner
    finally:
        await owner.close()
