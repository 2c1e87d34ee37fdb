"""Whole supervisors in one process and in virtual time: the owners, leases and protocol of production over the model of
JetStream, workflow code in the production replay host, activities as coroutines with a witness."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from durablefuture_trio import codec
from durablefuture_trio._ids import new_id
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.client import Client, open_client
from durablefuture_trio.engine.attempts import (
    ActivityKey,
    AttemptCompleted,
    AttemptFailed,
    AttemptOutcome,
    RunActivity,
)
from durablefuture_trio.history.events import Stimulus
from durablefuture_trio.memory_broker import FaultPlan, MemoryBroker, MemoryServer, TrioScheduler, open_trio_scheduler
from durablefuture_trio.ports.children import ReplayAnswer
from durablefuture_trio.ports.frames import Activate, Activated, Blocked, Evict, Evicted, Loaded, LoadRun, Missing
from durablefuture_trio.protocol.lease import Member
from durablefuture_trio.protocol.namespace import establish_namespace
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.sandbox._host import ReplayHost
from durablefuture_trio.supervisor._clock import ServerClock
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._shard import Shard

logger = logging.getLogger("tests.cluster")


@dataclass(frozen=True)
class Witness:
    """One attempt that really ran."""

    at: float
    key: ActivityKey
    name: str
    workflow_id: str


@dataclass
class World:
    """What activities did, and how long they take."""

    rng: Random
    witnesses: list[Witness] = field(default_factory=list)
    duration: tuple[float, float] = (0.0, 0.05)
    crash: float = 0.0


class HostedReplay:
    """`ReplayPool` over a replay host in this process; answers come a moment later."""

    def __init__(self, registry: Registry, scheduler: TrioScheduler, *, cached_workflows: int = 1000) -> None:
        self._host = ReplayHost(registry.workflows, cached_workflows=cached_workflows)
        self._scheduler = scheduler
        self._waiting: dict[int, tuple[str, Callable[[ReplayAnswer], None]]] = {}
        self._exchange = 0
        self._cached: set[str] = set()
        self.is_dead = False
        self.code_hash = registry.code_hash

    def cached(self, run_id: str) -> bool:
        return run_id in self._cached

    def activate(
        self, run_id: str, activation: int, stimulus: Stimulus, on_answer: Callable[[ReplayAnswer], None]
    ) -> None:
        exchange = self._ask(run_id, on_answer)
        self._cached.add(run_id)
        self._send(Activate(exchange=exchange, run_id=run_id, activation=activation, stimulus=stimulus))

    def load(
        self,
        run_id: str,
        commits: tuple[bytes, ...],
        *,
        first: bool,
        last: bool,
        on_answer: Callable[[ReplayAnswer], None] | None = None,
    ) -> None:
        exchange = 0 if on_answer is None else self._ask(run_id, on_answer)
        self._cached.add(run_id)
        self._send(LoadRun(exchange=exchange, run_id=run_id, commits=commits, first=first, last=last))

    def evict(self, run_id: str) -> None:
        self._waiting = {number: item for number, item in self._waiting.items() if item[0] != run_id}
        self._cached.discard(run_id)
        self._send(Evict(run_id=run_id))

    def _ask(self, run_id: str, on_answer: Callable[[ReplayAnswer], None]) -> int:
        self._exchange += 1
        self._waiting[self._exchange] = (run_id, on_answer)
        return self._exchange

    def _send(self, frame: Any) -> None:
        self._scheduler.call_at(self._scheduler.now(), lambda: self._handle(frame))

    def _handle(self, frame: Any) -> None:
        if self.is_dead:
            return
        answers = self._host.handle(frame)
        self._host.close_evicted()
        for answer in answers:
            if isinstance(answer, Evicted):
                self._cached.discard(answer.run_id)
            elif isinstance(answer, Activated | Loaded | Blocked | Missing):
                if not isinstance(answer, Activated | Loaded):
                    self._cached.discard(answer.run_id)
                waiting = self._waiting.pop(answer.exchange, None)
                if waiting is not None:
                    waiting[1](answer)

    def forget_everything(self) -> None:
        """The replay process dies while it has nothing to answer."""
        for run_id in self._host.cached:
            self._host.handle(Evict(run_id=run_id))
        self._host.close_evicted()
        self._cached.clear()

    def close(self) -> None:
        self.is_dead = True
        self._host.close()


class HostedActivities:
    """`ActivityPool` whose attempts are tasks of this process; each leaves a witness when it runs."""

    def __init__(self, registry: Registry, world: World, scheduler: TrioScheduler, nursery: trio.Nursery) -> None:
        self._registry = registry
        self._world = world
        self._scheduler = scheduler
        self._nursery = nursery
        self._scopes: dict[ActivityKey, trio.CancelScope] = {}

    def serves(self, task_queue: str) -> bool:
        return task_queue == "default"

    def dispatch(
        self, attempt: RunActivity, task_queue: str, on_outcome: Callable[[AttemptOutcome, str], None]
    ) -> None:
        self._nursery.start_soon(self._run, attempt, on_outcome)

    def cancel(self, key: ActivityKey) -> None:
        if (scope := self._scopes.get(key)) is not None:
            scope.cancel()

    async def _run(self, attempt: RunActivity, on_outcome: Callable[[AttemptOutcome, str], None]) -> None:
        started_at = self._scheduler.now()
        world = self._world
        world.witnesses.append(Witness(started_at, attempt.key, attempt.name, attempt.workflow_id))
        scope = self._scopes[attempt.key] = trio.CancelScope()
        outcome: AttemptOutcome | None = None
        with scope:
            await trio.sleep(world.rng.uniform(*world.duration))
            if world.crash and world.rng.random() < world.crash:
                failure = codec.failure_of(RuntimeError("the process was killed"))
                outcome = AttemptFailed(key=attempt.key, started_at=started_at, reason="crashed", failure=failure)
            else:
                outcome = await self._call(attempt, started_at)
        if outcome is None:
            failure = codec.failure_of(RuntimeError("cancelled"))
            outcome = AttemptFailed(key=attempt.key, started_at=started_at, reason="cancelled", failure=failure)
        del self._scopes[attempt.key]
        on_outcome(outcome, "test/0")

    async def _call(self, attempt: RunActivity, started_at: float) -> AttemptOutcome:
        definition = self._registry.activities[attempt.name]
        try:
            arguments = codec.decode_arguments(attempt.arguments, definition.parameter_hints)
            result = definition.fn(*arguments)
            if isinstance(result, Awaitable):
                result = await result
        except Exception as error:
            return AttemptFailed(
                key=attempt.key, started_at=started_at, reason="error", failure=codec.failure_of(error)
            )
        return AttemptCompleted(key=attempt.key, started_at=started_at, result=codec.encode_value(result))


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

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        cluster = self.cluster
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    replay = self.replay = HostedReplay(
                        cluster.registry, cluster.scheduler, cached_workflows=cluster.cached_workflows
                    )
                    activities = HostedActivities(cluster.registry, cluster.world, cluster.scheduler, nursery)
                    clock = ServerClock(wall=lambda: cluster.scheduler.now() + self.skew_s, monotonic=trio.current_time)
                    subjects = await establish_namespace(self.broker, "test", shards=cluster.shards)

                    def new_shard(number: int, on_reader_lost: Callable[[], None]) -> Shard:
                        return cluster.shard_type(
                            number,
                            broker=self.broker,
                            subjects=subjects,
                            replay=replay,
                            activities=activities,
                            clock=clock,
                            on_reader_lost=on_reader_lost,
                        )

                    member = Member(name=self.name, token=f"token-{self.name}", incarnation=new_id())
                    self.ownership = cluster.ownership_type(
                        self.broker, subjects, member, clock, new_shard, monotonic=trio.current_time
                    )
                    await nursery.start(self.ownership.run)
                    task_status.started()
        finally:
            if self.replay is not None:
                self.replay.close()
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
        world: World,
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
        world = World(Random(rng.random()))
        yield Cluster(server, scheduler, nursery, definitions, world, shards=shards, cached_workflows=cached_workflows)
        nursery.cancel_scope.cancel()
