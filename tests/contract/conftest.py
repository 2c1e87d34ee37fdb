"""Every test of this directory runs over both brokers: the model in memory and a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from durablefuture_trio.ports.broker import Broker
from tests._support.broker_servers import STREAMS, ServerUnderTest, memory_under_test, nats_under_test


class BrokerPair(NamedTuple):
    """Two independent connections to one server that has `STREAMS`."""

    a: Broker
    b: Broker


@pytest.fixture(params=["memory", "nats"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ServerUnderTest]:
    """A server without streams."""
    if request.param == "memory":
        async with memory_under_test() as memory:
            yield memory
    else:
        async with nats_under_test() as nats:
            yield nats


@pytest.fixture
async def broker_pair(server: ServerUnderTest) -> BrokerPair:
    """Two connections, and the streams."""
    pair = BrokerPair(await server.connect("a"), await server.connect("b"))
    await pair.a.provision(STREAMS)
    return pair
