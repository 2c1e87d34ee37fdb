from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests._support.worker_process import WorkerProcess, ready_worker


@pytest.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    """A process that is ready."""
    async with ready_worker() as process:
        yield process
