"""Fixtures for the bridge's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durablefuture_trio.nats_bridge import ConnectOptions, NatsBroker, open_broker
from durablefuture_trio.ports.broker import StreamSpec
from tests._support.nats_server import NatsServer

STREAMS = (
    StreamSpec(name="H", subjects=("h.>",)),
    StreamSpec(name="W", subjects=("w.>", "s.>"), retention="workqueue", schedules=True),
    StreamSpec(name="L", subjects=("l.>",), last_per_subject=True),
)


@pytest.fixture
async def broker(nats: NatsServer) -> AsyncIterator[NatsBroker]:
    """A broker with a history, an inbox and a last-per-subject stream."""
    async with open_broker(ConnectOptions(urls=(nats.url,))) as broker:
        await broker.provision(STREAMS)
        yield broker
