"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests._support.nats_server import NatsServer, nats_server


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    """A fresh server with JetStream and an empty store."""
    async with nats_server() as server:
        yield server
