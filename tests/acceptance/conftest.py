"""One supervisor for all tests that do not disturb each other, and installations of their own for the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from durablefuture_trio.client import Client
from tests._support.installation import Installation, SupervisorProcess


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An empty directory; what is started in it ends with the test."""
    installed = Installation(tmp_path)
    try:
        yield installed
    finally:
        installed.end_now()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A running supervisor with the modules of `tests._support.acceptance_app`."""
    installed = Installation(tmp_path_factory.mktemp("shared"))
    installed.configure(
        """
        [supervisor]
        modules = ["tests._support.acceptance_app"]
        [nats.embedded]
        data_dir = "data"
        sync = "2m"
        [sandbox]
        activation_timeout = 0.5
        memory_limit_mb = 256
        [[activity_pool]]
        processes = 1
        grace_period = 0.3
        [[activity_pool]]
        task_queue = "side"
        processes = 1
        """
    )
    try:
        trio.run(installed.start)
        yield installed
    finally:
        installed.end_now()


@pytest.fixture
async def client(shared: Installation) -> AsyncIterator[Client]:
    """A client of the shared supervisor."""
    async with shared.client() as client:
        yield client


@pytest.fixture
def supervisor(shared: Installation) -> SupervisorProcess:
    """The shared supervisor's process."""
    return shared.running


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where activities leave their traces."""
    return tmp_path / "journal"
