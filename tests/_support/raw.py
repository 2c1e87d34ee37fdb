"""Straight into the streams of an installation, past client and supervisor."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from durablefuture_trio.client._connect import find_namespace, find_server
from durablefuture_trio.nats_bridge import open_broker
from durablefuture_trio.ports.broker import Broker
from durablefuture_trio.protocol.subjects import Subjects
from tests._support.installation import Installation


@asynccontextmanager
async def raw_broker(installation: Installation) -> AsyncIterator[tuple[Broker, Subjects]]:
    """The broker of the installation, and the names in its namespace."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLEFUTURE_")}
    server = find_server(None, installation.config, environment)
    async with open_broker(server.options) as broker:
        yield broker, await find_namespace(broker, server.namespace)
