"""What the regression tests of the protocol share: a cluster whose parts a test may replace by broken ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.client._handle import WorkflowHandle
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted
from durablefuture_trio.engine.requests import AttemptReport
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.ports.broker import Append, Broker
from durablefuture_trio.protocol.envelope import Envelope, encode_envelope, kind_of
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._shard import Shard
from tests._support.cluster import Cluster, open_cluster

SUBJECTS = Subjects("test", 1)


@activity
async def quick() -> str:
    return "done"


@activity
async def takes(seconds: float) -> str:
    await trio.sleep(seconds)
    return "done"


@activity(retry_policy=RetryPolicy(initial_interval=3600.0))
async def fails_then_waits_an_hour() -> str:
    raise RuntimeError("not now")


@activity(retry_policy=RetryPolicy(initial_interval=10.0, backoff_coefficient=1.0))
async def fails_then_waits_ten_seconds() -> str:
    raise RuntimeError("not now")


@workflow
async def one_step() -> str:
    return await quick()


@workflow
async def one_long_step(seconds: float) -> str:
    return await takes(seconds)


@workflow
async def sleeps_then_steps(pause: float, seconds: float) -> str:
    await trio.sleep(pause)
    return await takes(seconds)


@workflow
async def sleeps(pause: float) -> str:
    await trio.sleep(pause)
    return "woke"


@workflow
async def retries_hourly(pause: float) -> str:
    await fails_then_waits_an_hour()
    await trio.sleep(pause)
    return "woke"


@workflow
async def retries_every_ten_seconds(pause: float) -> str:
    await fails_then_waits_ten_seconds()
    await trio.sleep(pause)
    return "woke"


DEFINITIONS: tuple[Any, ...] = (
    quick,
    takes,
    fails_then_waits_an_hour,
    fails_then_waits_ten_seconds,
    one_step,
    one_long_step,
    sleeps_then_steps,
    sleeps,
    retries_hourly,
    retries_every_ten_seconds,
)


class Stage:
    """One shard, one client, and the means to play a scene."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.server = cluster.server
        self.faults = cluster.server.faults
        self._began = trio.current_time()

    @property
    def now(self) -> float:
        """Seconds since the curtain rose."""
        return trio.current_time() - self._began

    async def until(self, seconds: float) -> None:
        """Wait until so many seconds have passed since the beginning."""
        await trio.sleep_until(self._began + seconds)

    async def takeover(self, dies: str, heir: str) -> None:
        """Kill one supervisor, start another, and wait until it has the shard."""
        await self.cluster.supervisors[dies].kill()
        await self.start(heir)

    async def start(self, name: str, *, skew_s: float = 0.0) -> None:
        """Start a supervisor, and wait until it reads the inbox."""
        supervisor = await self.cluster.start(name, skew_s=skew_s)
        with trio.fail_after(30):
            while True:
                assert supervisor.ownership is not None
                shard = supervisor.ownership.shards.get(0)
                if shard is not None and shard._is_active:
                    return
                await trio.sleep(0.05)

    async def put(self, envelope: Envelope) -> None:
        """Put a message into the inbox, as another supervisor would."""
        broker = self.server.connect("elsewhere")
        await broker.append(
            Append(subject=SUBJECTS.inbox(envelope.workflow_id, kind_of(envelope)), body=encode_envelope(envelope))
        )

    async def report_success(self, workflow_id: str, run_id: str, *, attempt: int = 1) -> None:
        """Somebody else reports that an attempt of the run's first call has succeeded after all."""
        key = ActivityKey(run_id, 1, attempt)
        outcome = AttemptCompleted(key=key, started_at=self.cluster.scheduler.now(), result=codec.encode_value("done"))
        await self.put(AttemptReport(workflow_id=workflow_id, worker="elsewhere", outcome=outcome))

    def waiting(self, stream: str = "W0") -> int:
        """How many messages a stream of the namespace holds."""
        state = self.server.stream_state(f"DF_test_{stream}")
        assert state is not None
        return state.messages


@asynccontextmanager
async def stage(
    *,
    owner: type[RunOwner] = RunOwner,
    shard: Callable[..., Shard] = Shard,
    definitions: tuple[Any, ...] = DEFINITIONS,
    cached_workflows: int = 1000,
) -> AsyncIterator[Stage]:
    """A stage without supervisors yet. `owner` and `shard` are what a test replaces."""
    async with open_cluster(definitions, shards=1, cached_workflows=cached_workflows) as cluster:
        cluster.shard_type = shard if owner is RunOwner else partial(shard, owner_type=owner)
        async with cluster.client() as client:
            yield Stage(cluster, client)


class BrokerProxy:
    """A broker of which a test replaces some methods."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self.broker, name)


async def result_within(handle: WorkflowHandle[Any], seconds: float) -> Any:
    """The result, or None if it does not come in time."""
    with trio.move_on_after(seconds):
        return await handle.result()
    return None


async def event_names(handle: WorkflowHandle[Any]) -> list[str]:
    """The kinds of the events in the history."""
    return [type(item.event).__name__ for item in await handle.history()]
