"""One random life of a cluster: workflows under kills and faults, from one seed, and the oracle that judges it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random

import trio
from trio._core import _run
from trio.testing import MockClock

from durablefuture_trio.authoring import activity, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import (
    RequestFailedError,
    WorkflowAlreadyStartedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
)
from durablefuture_trio.history.commit import decode_commit
from durablefuture_trio.history.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    WorkflowStarted,
    WorkflowTerminated,
)
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.memory_broker import FaultPlan
from durablefuture_trio.ports.frames import Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.cluster import Cluster, open_cluster

QUICK = RetryPolicy(initial_interval=0.2, maximum_interval=2.0)


@activity(retry_policy=QUICK)
async def step(total: int, number: int) -> int:
    return total + number


@activity(retry_policy=QUICK)
async def doubled(number: int) -> int:
    return 2 * number


@workflow
async def chain(count: int) -> int:
    """Steps one after the other."""
    total = 0
    for number in range(count):
        total = await step(total, number)
    return total


@workflow
async def sleepy(count: int) -> int:
    """Timers short and long between the steps."""
    total = 0
    for number in range(count):
        await trio.sleep([0.05, 0.7, 3.0, 20.0][number % 4])
        total = await step(total, number)
    return total


@workflow
async def fan(count: int) -> int:
    """Steps beside each other."""
    results: list[int] = []

    async def one(number: int) -> None:
        results.append(await doubled(number))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return sum(results)


@workflow
async def impatient(count: int) -> int:
    """Steps that are cancelled when they take too long, and compensated."""
    done = 0
    for number in range(count):
        with trio.move_on_after(0.03):
            done = await step(done, 1)
            continue
        await doubled(number)
    return done


EXPECTED: dict[str, Callable[[int], int] | None] = {
    "chain": lambda count: sum(range(count)),
    "sleepy": lambda count: sum(range(count)),
    "fan": lambda count: sum(2 * number for number in range(count)),
    "impatient": None,
}
WORKFLOWS = {item.name: item for item in (chain, sleepy, fan, impatient)}


@dataclass
class Scenario:
    """What a seed stands for."""

    seed: int
    workflows: int = 12
    supervisors: int = 2
    kills: int = 6
    faults: FaultPlan = field(default_factory=FaultPlan)
    cached_workflows: int = 1000
    patience_s: float = 600.0

    @classmethod
    def random(cls, seed: int) -> Scenario:
        """Everything from the seed."""
        rng = Random(seed)
        faults = FaultPlan(
            latency=(0.0, 0.002),
            late_append=rng.choice([0.0, 0.01]),
            dropped_append=rng.choice([0.0, 0.01]),
            lost_puback=rng.choice([0.0, 0.02]),
            stale_read=rng.choice([0.0, 0.2]),
            incomplete_read=rng.choice([0.0, 0.05]),
            lost_ack=rng.choice([0.0, 0.05]),
            late_ack=rng.choice([0.0, 0.05]),
            lost_delivery=rng.choice([0.0, 0.005]),
            lost_tell=rng.choice([0.0, 0.2]),
            late_fire=0.5,
            racing_fire=rng.choice([0.0, 0.5]),
            double_fire=rng.choice([0.0, 0.2]),
            lands_after_link_loss=0.5,
            forgotten_ack=rng.choice([0.0, 0.3]),
        )
        return cls(
            seed,
            workflows=rng.randint(1, 12),
            supervisors=rng.randint(1, 3),
            kills=rng.randint(0, 8),
            faults=faults,
            cached_workflows=rng.choice([0, 2, 1000]),
        )


class Anomaly(AssertionError):
    """The engine broke a promise."""


def run(scenario: Scenario) -> Counter[str]:
    """Live through a scenario; returns what was injected.

    Raises:
        Anomaly: a promise was broken.
    """
    # Trio shuffles the tasks of a batch; a seed has to stand for one life only.
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(scenario.seed)
    return trio.run(_live, scenario, clock=MockClock(autojump_threshold=0))


async def _live(scenario: Scenario) -> Counter[str]:
    rng = Random(scenario.seed + 1)
    injected: Counter[str] = Counter()
    definitions = [step, doubled, *WORKFLOWS.values()]
    async with open_cluster(
        definitions, seed=scenario.seed, faults=scenario.faults, cached_workflows=scenario.cached_workflows
    ) as cluster:
        cluster.world.crash = rng.choice([0.0, 0.1])
        names = [f"S{index}" for index in range(scenario.supervisors)]
        async with trio.open_nursery() as starting:
            for name in names:
                starting.start_soon(cluster.start, name)
        plan = {f"w{index}": (rng.choice(sorted(WORKFLOWS)), rng.randint(0, 6)) for index in range(scenario.workflows)}
        results: dict[str, int | None] = {}
        async with cluster.client() as client:
            with trio.move_on_after(scenario.patience_s) as scope:
                async with trio.open_nursery() as nursery:
                    for workflow_id, (name, count) in plan.items():
                        delay, habits = rng.uniform(0, 5), Random(rng.random())
                        nursery.start_soon(_run_one, client, workflow_id, name, count, delay, habits, results)
                    nursery.start_soon(_disturb, cluster, scenario, rng, names, injected)
            cluster.server.faults = FaultPlan()
            if scope.cancelled_caught:
                raise Anomaly(
                    f"not finished: {sorted(plan.keys() - results.keys())}\n" + await _explain(client, plan, results)
                )
            await _judge(cluster, plan, results)
        return injected


async def _run_one(
    client: Client, workflow_id: str, name: str, count: int, delay: float, rng: Random, results: dict[str, int | None]
) -> None:
    """One client that wants one result; sometimes with a rival for the id, or with somebody who loses patience."""
    await trio.sleep(delay)
    start = partial(client.start, WORKFLOWS[name], count, id=workflow_id)
    habit = rng.choice(["plain", "plain", "rival", "replace", "terminate"])
    async with trio.open_nursery() as nursery:
        if habit == "rival":
            nursery.start_soon(_rival, start, rng.uniform(0, 2))
        elif habit == "terminate":
            nursery.start_soon(_lose_patience, client, workflow_id, rng.uniform(0, 10))
        handle = await start(id_conflict_policy="use_existing")
        if habit == "replace":
            await trio.sleep(rng.uniform(0, 3))
            handle = await start(id_conflict_policy="terminate_existing")
        try:
            results[workflow_id] = await handle.result()
        except WorkflowTerminatedError:
            if habit != "terminate":
                raise
            results[workflow_id] = None


async def _rival(start: Callable[..., Awaitable[object]], delay: float) -> None:
    await trio.sleep(delay)
    with suppress(WorkflowAlreadyStartedError):
        await start(id_conflict_policy="fail", id_reuse_policy="reject")


async def _lose_patience(client: Client, workflow_id: str, delay: float) -> None:
    await trio.sleep(delay)
    with suppress(WorkflowNotFoundError, RequestFailedError):
        await client.handle(workflow_id).terminate("it takes too long")


async def _disturb(cluster: Cluster, scenario: Scenario, rng: Random, names: list[str], injected: Counter[str]) -> None:
    for _ in range(scenario.kills):
        await trio.sleep(rng.expovariate(1 / 1.5))
        kind = rng.choice(["kill", "kill", "stop", "unplug", "server", "pause", "replay"])
        name = rng.choice(names)
        supervisor = cluster.supervisors[name]
        injected[kind] += 1
        if kind == "kill":
            await supervisor.kill()
            await trio.sleep(rng.choice([0.0, 0.5, 8.0]))
            await cluster.start(name)
        elif kind == "stop":
            with trio.move_on_after(rng.choice([0.0, 0.5, 20.0])):
                await supervisor.stop()
            await supervisor.kill()
            await trio.sleep(rng.choice([0.0, 2.0]))
            await cluster.start(name)
        elif kind == "unplug":
            supervisor.broker.link.drop()
            await trio.sleep(rng.choice([0.1, 2.0, 8.0]))
            supervisor.broker.link.restore()
        elif kind == "server":
            cluster.server.kill()
            await trio.sleep(rng.choice([0.0, 0.5, 7.0]))
            cluster.server.start()
        elif kind == "pause":
            cluster.server.pause()
            await trio.sleep(rng.choice([0.5, 8.0]))
            cluster.server.resume()
        elif kind == "replay" and supervisor.replay is not None:
            supervisor.replay.kill_child()


async def _explain(client: Client, plan: dict[str, tuple[str, int]], results: dict[str, int | None]) -> str:
    lines: list[str] = []
    with trio.move_on_after(30):
        for workflow_id in sorted(plan.keys() - results.keys()):
            lines.append(f"{workflow_id} {plan[workflow_id]}")
            try:
                lines.extend(f"   {item.n} {item.event}" for item in await client.handle(workflow_id).history())
            except Exception as error:
                lines.append(f"   {error!r}")
    return "\n".join(lines)


@dataclass
class Run:
    """One run as the history stream holds it."""

    workflow_id: str
    run_id: str
    commits: list[bytes]
    events: list[Event]


def runs_of(cluster: Cluster) -> list[Run]:
    """Every run of every id, from the streams themselves."""
    numbered: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for shard in range(cluster.shards):
        for stored in cluster.server.page(f"DF_test_H{shard}", ">", 0, 1_000_000):
            prefix, _, n = stored.subject.rpartition(".")
            numbered[prefix].append((int(n), stored.body))
    runs: list[Run] = []
    for prefix, commits in numbered.items():
        commits.sort()
        if [n for n, _ in commits] != list(range(1, len(commits) + 1)):
            raise Anomaly(f"{prefix}: commits {[n for n, _ in commits]}")
        of_id: list[Run] = []
        for _, body in commits:
            commit = decode_commit(body)
            for event in commit.events:
                if isinstance(event, WorkflowStarted):
                    of_id.append(Run(event.workflow_id, event.run_id, [], []))
                of_id[-1].events.append(event)
            of_id[-1].commits.append(body)
        for run in of_id[:-1]:
            if not isinstance(run.events[-1], TERMINAL_EVENTS):
                raise Anomaly(f"{run.workflow_id}: a run began before the one before it was closed")
        runs.extend(of_id)
    return runs


async def _judge(cluster: Cluster, plan: dict[str, tuple[str, int]], results: dict[str, int | None]) -> None:
    runs = runs_of(cluster)
    for workflow_id, (name, count) in plan.items():
        expected, result = EXPECTED[name], results[workflow_id]
        if expected is not None and result is not None and result != expected(count):
            raise Anomaly(f"{workflow_id}: {name}({count}) gave {result}, not {expected(count)}")
    requests = Counter(run.events[0].request_id for run in runs if isinstance(run.events[0], WorkflowStarted))
    if repeated := [request for request, times in requests.items() if times > 1]:
        raise Anomaly(f"starts applied twice: {repeated}")
    scheduled: set[tuple[str, int, int]] = set()
    host = ReplayHost(cluster.registry.workflows)
    for run in runs:
        _judge_run(run, host, scheduled)
    host.close()
    for witness in cluster.world.witnesses:
        key = (witness.key.run_id, witness.key.activity_id, witness.key.attempt)
        if key not in scheduled:
            raise Anomaly(f"attempt {key} of {witness.workflow_id} ran and was never scheduled")
    twice = [key for key, number in Counter(w.key for w in cluster.world.witnesses).items() if number > 1]
    if twice:
        raise Anomaly(f"attempts ran twice: {twice}")
    await _settled(cluster)


def _judge_run(run: Run, host: ReplayHost, scheduled: set[tuple[str, int, int]]) -> None:
    ids = [event.id for event in run.events]
    if ids != list(range(1, len(ids) + 1)):
        raise Anomaly(f"{run.workflow_id}: event ids {ids}")
    if any(later.at < earlier.at for earlier, later in pairwise(run.events)):
        raise Anomaly(f"{run.workflow_id}: time went back")
    if not isinstance(run.events[-1], TERMINAL_EVENTS):
        raise Anomaly(f"{run.workflow_id}: not closed")
    if sum(isinstance(event, TERMINAL_EVENTS) for event in run.events) != 1:
        raise Anomaly(f"{run.workflow_id}: closed twice")
    ends: Counter[int] = Counter()
    for event in run.events:
        if isinstance(event, ActivityScheduled):
            scheduled.add((run.run_id, event.activity_id, event.attempt))
        elif isinstance(event, ActivityCompleted | ActivityCancelled) or (
            isinstance(event, ActivityFailed) and event.retry_at is None
        ):
            ends[event.activity_id] += 1
    if any(number != 1 for number in ends.values()):
        raise Anomaly(f"{run.workflow_id}: a call has two results: {ends}")
    if isinstance(run.events[-1], WorkflowTerminated):
        return  # its last activation may be missing
    answers = host.handle(LoadRun(exchange=1, run_id=run.run_id, commits=tuple(run.commits), first=True, last=True))
    if not isinstance(answers[-1], Loaded):
        raise Anomaly(f"{run.workflow_id}: does not replay: {answers}")


async def _settled(cluster: Cluster) -> None:
    """Nothing is waiting anywhere, once new owners have read what lost acknowledgements left behind."""
    for name, supervisor in list(cluster.supervisors.items()):
        await supervisor.kill()
        await cluster.start(name)
    for name in [*(f"W{shard}" for shard in range(cluster.shards)), "T"]:
        left = -1
        for _ in range(60):
            state = cluster.server.stream_state(f"DF_test_{name}")
            assert state is not None
            left = state.messages
            if left == 0:
                break
            await trio.sleep(1)
        if left:
            raise Anomaly(f"{left} messages are left in {name}: {cluster.server.page(f'DF_test_{name}', '>', 0, 10)}")
