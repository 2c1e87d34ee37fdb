"""A namespace over the in-memory broker, with a client and an owner that the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from durablefuture_trio.client import Client, open_client
from durablefuture_trio.memory_broker import FaultPlan, MemoryBroker, MemoryServer, open_trio_scheduler
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.subjects import Subjects
from tests._support.scripted_owner import ScriptedOwner, scripted_owner
from tests._support.virtual_time import run_in_virtual_time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses `world` runs in virtual time."""
    for item in items:
        if isinstance(item, pytest.Function) and "world" in item.fixturenames:
            # Before the marker of pytest-trio's own mode, which asks for the ordinary trio.run.
            item.add_marker(pytest.mark.trio(run=run_in_virtual_time), append=False)


@dataclass
class World:
    """Time is virtual: it passes when nothing can run. ``faults`` concern the client's link alone."""

    server: MemoryServer
    broker: MemoryBroker
    faults: FaultPlan
    owner_broker: MemoryBroker
    subjects: Subjects
    owner: ScriptedOwner
    client: Client

    def published(self) -> list[str]:
        """Subjects of what the client has had stored so far."""
        return [subject for who, what, subject in self.trace if who == "client" and what == "stored"]

    def __post_init__(self) -> None:
        self.trace: list[tuple[str, str, str]] = []
        self.server.on_trace = lambda _time, who, what, subject: self.trace.append((who, what, subject))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_trio_scheduler() as scheduler:
        server = MemoryServer(scheduler)
        faults = FaultPlan()
        broker = server.connect("client", faults=faults)
        owner_broker = server.connect("owner", faults=FaultPlan())
        subjects = await establish_namespace(owner_broker, "shop", shards=1)
        async with scripted_owner(owner_broker, subjects) as owner, open_client(broker, subjects) as client:
            yield World(server, broker, faults, owner_broker, subjects, owner, client)
