"""The protocol over the model in memory and over a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.subjects import Subjects
from tests._support.broker_servers import ServerUnderTest, memory_under_test, nats_under_test


@pytest.fixture(params=["memory", "nats"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ServerUnderTest]:
    """A server without streams."""
    if request.param == "memory":
        async with memory_under_test() as memory:
            yield memory
    else:
        async with nats_under_test() as nats:
            yield nats


class Namespace(NamedTuple):
    """Two supervisors' connections, and the namespace they share."""

    a: Broker
    b: Broker
    subjects: Subjects


@pytest.fixture
async def namespace(server: ServerUnderTest) -> Namespace:
    """A namespace with one shard."""
    a, b = await server.connect("a"), await server.connect("b")
    return Namespace(a, b, await establish_namespace(a, "test", shards=1))
