"""A server on a clock that jumps, and streams shaped as the protocol has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
from trio.testing import MockClock

from durablefuture_trio.memory_broker import MemoryServer, VirtualScheduler, open_trio_scheduler
from tests._support.broker_servers import STREAMS


@pytest.fixture
async def server(autojump_clock: MockClock) -> AsyncIterator[MemoryServer]:
    """For tests with waiting: under Trio, whose clock jumps when everybody waits. Tests must ask for
    `autojump_clock` themselves as well: a clock works only for tests that name it."""
    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler, rng=Random(7))
        server.provision(STREAMS)
        yield server


@pytest.fixture
def scheduler() -> VirtualScheduler:
    return VirtualScheduler()


@pytest.fixture
def plain_server(scheduler: VirtualScheduler) -> MemoryServer:
    """For tests without an event loop: time moves when the scheduler is told to."""
    server = MemoryServer(scheduler, rng=Random(7))
    server.provision(STREAMS)
    return server
