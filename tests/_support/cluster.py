"""Whole supervisors in one process and in virtual time: the owners, leases and protocol of production over the model of
JetStream, workflow code in the production replay host, activities as coroutines with a witness."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.client import Client, open_client
from durablefuture_trio.memory_broker import FaultPlan, MemoryBroker, MemoryServer, TrioScheduler, open_trio_scheduler
from durablefuture_trio.protocol.lease import Member
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard
from simulator.pools import ActivityWorld, HostedActivities, HostedReplay, HostedVerification
from simulator.supervisor import is_paranoid, open_ownership


class Supervisor:
    """One simulated supervisor process: kill it at any time."""

    def __init__(self, cluster: Cluster, name: str, faults: FaultPlan | None, skew_s: float) -> None:
        self.cluster = cluster
        self.skew_s = skew_s
        self.name = name
        self.broker: MemoryBroker = cluster.server.connect(name, faults=faults)
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ownership: Ownership | None = None
        self.replay: HostedReplay | None = None
        self.verification: HostedVerification | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        cluster = self.cluster
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    replay = self.replay = HostedReplay(
                        cluster.registry, cluster.scheduler, cached_workflows=cluster.cached_workflows
                    )
                    if cluster.paranoid:
                        self.verification = HostedVerification(cluster.registry, cluster.scheduler)
                    activities = HostedActivities(cluster.registry, cluster.world, cluster.scheduler, nursery)
                    self.ownership = await open_ownership(
                        self.broker,
                        member=Member(name=self.name, token=f"token-{self.name}", incarnation=new_id()),
                        wall=lambda: cluster.scheduler.now() + self.skew_s,
                        replay=replay,
                        activities=activities,
                        shards=cluster.shards,
                        verifiers=None if self.verification is None else self.verification.verifiers,
                        shard_type=cluster.shard_type,
                        ownership_type=cluster.ownership_type,
                    )
                    await nursery.start(self.ownership.run)
                    task_status.started()
        finally:
            if self.replay is not None:
                self.replay.close()
            if self.verification is not None:
                self.verification.close()
            self.ended.set()

    async def stop(self) -> None:
        """SIGTERM: finish what runs and give the shards back; `kill` it after that."""
        if self.ownership is not None:
            await self.ownership.leave()

    async def kill(self) -> None:
        """SIGKILL: nothing more leaves this process."""
        self.broker.kill()
        self.scope.cancel()
        await self.ended.wait()


class Cluster:
    """A server, supervisors and clients."""

    def __init__(
        self,
        server: MemoryServer,
        scheduler: TrioScheduler,
        nursery: trio.Nursery,
        definitions: Iterable[Any],
        world: ActivityWorld,
        *,
        shards: int = 2,
        cached_workflows: int = 1000,
    ) -> None:
        self.server = server
        self.scheduler = scheduler
        self.nursery = nursery
        self.registry = Registry.of(definitions)
        self.world = world
        self.shards = shards
        self.cached_workflows = cached_workflows
        self.paranoid = is_paranoid()
        """Whether supervisors that are started verify what they do: ``PARANOID=1`` in the environment, or set it."""
        self.shard_type: Callable[..., Shard] = Shard
        self.ownership_type: Callable[..., Ownership] = Ownership
        self.supervisors: dict[str, Supervisor] = {}

    async def start(self, name: str = "A", faults: FaultPlan | None = None, *, skew_s: float = 0.0) -> Supervisor:
        """Start a supervisor (again), and wait until it looks after its leases.

        Args:
            skew_s: how far its machine's clock is ahead of the server's.
        """
        supervisor = self.supervisors[name] = Supervisor(self, name, faults, skew_s)
        await self.nursery.start(supervisor.run)
        return supervisor

    @asynccontextmanager
    async def client(self, name: str = "client", faults: FaultPlan | None = None) -> AsyncIterator[Client]:
        """A client on a link of its own."""
        broker = self.server.connect(name, faults=faults)
        async with open_client(broker, Subjects("test", self.shards), clock=self.scheduler.now) as client:
            yield client


@asynccontextmanager
async def open_cluster(
    definitions: Iterable[Any],
    *,
    seed: int = 0,
    faults: FaultPlan | None = None,
    shards: int = 2,
    cached_workflows: int = 1000,
) -> AsyncIterator[Cluster]:
    """A cluster without supervisors yet; everything in it ends with the block."""
    rng = Random(seed)
    async with open_trio_scheduler() as scheduler, trio.open_nursery() as nursery:
        server = MemoryServer(scheduler, rng=Random(rng.random()), faults=faults)
        world = ActivityWorld(Random(rng.random()))
        yield Cluster(server, scheduler, nursery, definitions, world, shards=shards, cached_workflows=cached_workflows)
        nursery.cancel_scope.cancel()
