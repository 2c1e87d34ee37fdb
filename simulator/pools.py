"""The children of a simulated supervisor: the production replay host answering in virtual time, and activity processes
whose attempts leave a witness when they begin."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from zlib import crc32

import msgspec
import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.engine.attempts import (
    ActivityKey,
    AttemptCompleted,
    AttemptFailed,
    AttemptOutcome,
    RunActivity,
)
from durablefuture_trio.history.events import FailureReason, Stimulus, TimeoutKind
from durablefuture_trio.memory_broker import Scheduler
from durablefuture_trio.ports.children import ReplayAnswer
from durablefuture_trio.ports.frames import (
    Activate,
    Activated,
    Blocked,
    Evict,
    Evicted,
    Loaded,
    LoadRun,
    Missing,
    Queried,
    Query,
    SandboxDown,
    ValidateUpdate,
)
from durablefuture_trio.sandbox._host import ReplayHost
from durablefuture_trio.supervisor._verifier import Verifiers
from simulator.programs.behaviours import AttemptPlan

OnAnswer = Callable[[ReplayAnswer], None]
OnOutcome = Callable[[AttemptOutcome, str], None]


@dataclass(frozen=True)
class Witness:
    """One attempt that really ran."""

    at: float
    key: ActivityKey
    name: str
    workflow_id: str


@dataclass
class ActivityWorld:
    """What activities did, and how they go.

    Attributes:
        duration: seconds an attempt takes, from and to, where no plan says otherwise.
        crash: the share of attempts that take their process down, likewise.
        plan: how an attempt goes, from the activity's name, its arguments and how often this call has failed.
        on_begin: called when an attempt begins.
    """

    rng: Random
    witnesses: list[Witness] = field(default_factory=list)
    duration: tuple[float, float] = (0.0, 0.05)
    crash: float = 0.0
    plan: Callable[[str, Sequence[Any], int], AttemptPlan] | None = None
    on_begin: Callable[[Witness], None] | None = None
    failures: Counter[tuple[str, int]] = field(default_factory=Counter)

    def begin(self, witness: Witness) -> None:
        """An attempt begins."""
        self.witnesses.append(witness)
        if self.on_begin is not None:
            self.on_begin(witness)

    def plan_of(self, attempt: RunActivity, arguments: Sequence[Any]) -> AttemptPlan:
        """How this attempt goes."""
        if self.plan is not None:
            return self.plan(attempt.name, arguments, self.failures[attempt.key.run_id, attempt.key.activity_id])
        duration_s = self.rng.uniform(*self.duration)
        crashes = self.crash > 0 and self.rng.random() < self.crash
        return AttemptPlan(duration_s, "crash" if crashes else "return")


class _ReplayChild:
    """One replay process: a host, and the answers it owes, oldest first."""

    def __init__(self, registry: Registry, cached_workflows: int, strict_code: str) -> None:
        self.host = ReplayHost(registry.workflows, cached_workflows=cached_workflows, strict_code=strict_code)
        self.owed: deque[tuple[int, str, OnAnswer]] = deque()
        self.is_dead = False
        self.busy_until = 0.0


class HostedReplay:
    """`ReplayPool` over replay hosts in this process; answers come a moment later.

    Args:
        cached_workflows: of each child.
        children: replay processes.
        latency: seconds an answer takes, from and to, drawn from `rng`.
        strict_code: see `ReplayHost`.
    """

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        *,
        cached_workflows: int = 1000,
        children: int = 1,
        latency: tuple[float, float] = (0.0, 0.0),
        rng: Random | None = None,
        strict_code: str = "",
    ) -> None:
        self._registry = registry
        self._strict_code = strict_code
        self._scheduler = scheduler
        self._cached_workflows = cached_workflows
        self._latency = latency
        self._rng = rng or Random(0)
        self._children = [self._new_child() for _ in range(children)]
        self._exchange = 0
        self._cached: dict[str, _ReplayChild] = {}
        self._loading: dict[str, _ReplayChild] = {}
        self._excused: set[str] = set()
        self.is_dead = False
        self.code_hash = registry.code_hash

    # --- ports.children.ReplayPool ---

    def cached(self, run_id: str) -> bool:
        return run_id in self._cached

    def activate(self, run_id: str, activation: int, stimulus: Stimulus, on_answer: OnAnswer) -> None:
        child = self._child_of(run_id)
        exchange = self._ask(child, run_id, on_answer)
        self._send(child, Activate(exchange=exchange, run_id=run_id, activation=activation, stimulus=stimulus))

    def load(
        self,
        run_id: str,
        commits: tuple[bytes, ...],
        *,
        first: bool,
        last: bool,
        patches: tuple[str, ...] = (),
        keep: bool = False,
        on_answer: OnAnswer | None = None,
    ) -> None:
        if first:
            self._loading[run_id] = self._child_of(run_id)
        child = self._loading[run_id]
        if last:
            del self._loading[run_id]
        if child.is_dead:
            if on_answer is not None:
                missing = Missing(exchange=0, run_id=run_id)
                self._scheduler.call_at(self._scheduler.now(), partial(on_answer, missing))
            return
        exchange = 0 if on_answer is None else self._ask(child, run_id, on_answer)
        frame = LoadRun(
            exchange=exchange, run_id=run_id, commits=commits, first=first, last=last, patches=patches, keep=keep
        )
        self._send(child, frame)

    def ask(self, question: Query | ValidateUpdate, on_answer: OnAnswer) -> None:
        child = self._child_of(question.run_id)
        exchange = self._ask(child, question.run_id, on_answer)
        self._send(child, msgspec.structs.replace(question, exchange=exchange))

    def evict(self, run_id: str) -> None:
        child = self._cached.pop(run_id, None)
        self._loading.pop(run_id, None)
        if child is not None:
            child.owed = deque(item for item in child.owed if item[1] != run_id)
            self._send(child, Evict(run_id=run_id))

    # --- its fate ---

    def kill_child(self, index: int = 0) -> None:
        """SIGKILL to one replay process; another takes its place. The run it was busy with is excused once."""
        index %= len(self._children)
        child, self._children[index] = self._children[index], self._new_child()
        child.is_dead = True
        child.host.close()
        for run_id in [run_id for run_id, where in self._cached.items() if where is child]:
            del self._cached[run_id]
        owed, child.owed = child.owed, deque()
        for place, (exchange, run_id, on_answer) in enumerate(owed):
            answer: ReplayAnswer = Missing(exchange=exchange, run_id=run_id)
            if place == 0:
                if run_id in self._excused:
                    self._excused.discard(run_id)
                    text = "the replay process was killed twice while it was busy with this run"
                    answer = Blocked(exchange=exchange, run_id=run_id, kind="crashed", message=text)
                else:
                    self._excused.add(run_id)
            on_answer(answer)

    def close(self) -> None:
        """The supervisor ends, and its children with it."""
        self.is_dead = True
        for child in self._children:
            child.host.close()

    # --- between the two ---

    def _new_child(self) -> _ReplayChild:
        return _ReplayChild(self._registry, self._cached_workflows, self._strict_code)

    def _child_of(self, run_id: str) -> _ReplayChild:
        child = self._cached.get(run_id)
        if child is None:
            child = self._cached[run_id] = self._children[crc32(run_id.encode()) % len(self._children)]
        return child

    def _ask(self, child: _ReplayChild, run_id: str, on_answer: OnAnswer) -> int:
        self._exchange += 1
        child.owed.append((self._exchange, run_id, on_answer))
        return self._exchange

    def _send(self, child: _ReplayChild, frame: SandboxDown) -> None:
        now = self._scheduler.now()
        low, high = self._latency
        takes = self._rng.uniform(low, high) if high > 0 else 0.0
        child.busy_until = at = max(now, child.busy_until) + takes
        self._scheduler.call_at(at, partial(self._handle, child, frame))

    def _handle(self, child: _ReplayChild, frame: SandboxDown) -> None:
        if self.is_dead or child.is_dead:
            return
        answers = child.host.handle(frame)
        child.host.close_evicted()
        for answer in answers:
            if isinstance(answer, Evicted):
                self._forget(child, answer.run_id)
            elif isinstance(answer, Activated | Loaded | Blocked | Missing | Queried):
                if isinstance(answer, Activated | Loaded | Queried):
                    self._excused.discard(answer.run_id)
                else:
                    self._forget(child, answer.run_id)
                self._answer(child, answer)

    def _forget(self, child: _ReplayChild, run_id: str) -> None:
        if self._cached.get(run_id) is child:
            del self._cached[run_id]

    def _answer(self, child: _ReplayChild, answer: ReplayAnswer) -> None:
        for place, (exchange, _, on_answer) in enumerate(child.owed):
            if exchange == answer.exchange:
                del child.owed[place]
                on_answer(answer)
                return


class HostedVerification:
    """Paranoid mode of a simulated supervisor: every finished commit is replayed once more by another host.

    Attributes:
        verifiers: for its shards.
    """

    def __init__(self, registry: Registry, scheduler: Scheduler) -> None:
        self._pool = HostedReplay(registry, scheduler, cached_workflows=0, strict_code=registry.code_hash)
        self.verifiers = Verifiers(self._pool, None, lambda: registry.code_hash)

    def kill_child(self) -> None:
        """SIGKILL to the process that verifies."""
        self._pool.kill_child()

    def close(self) -> None:
        """The supervisor ends."""
        self._pool.close()


class _Attempt:
    def __init__(self, run: RunActivity, worker: int, on_outcome: OnOutcome) -> None:
        self.run = run
        self.worker = worker
        self.on_outcome = on_outcome
        self.scope = trio.CancelScope()
        self.fate: FailureReason | None = None


class HostedActivities:
    """`ActivityPool` whose attempts are tasks of the simulated supervisor, spread over worker processes that may die.

    Args:
        workers: activity processes.
        is_dead: whether the supervisor has been killed: a dead one begins nothing.
    """

    def __init__(
        self,
        registry: Registry,
        world: ActivityWorld,
        scheduler: Scheduler,
        nursery: trio.Nursery,
        *,
        workers: int = 1,
        is_dead: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry = registry
        self._world = world
        self._scheduler = scheduler
        self._nursery = nursery
        self._workers = workers
        self._is_dead = is_dead
        self._attempts: dict[ActivityKey, _Attempt] = {}
        self._suspects: set[tuple[str, int]] = set()
        self._turn = 0

    # --- ports.children.ActivityPool ---

    def serves(self, task_queue: str) -> bool:
        return task_queue == "default"

    def dispatch(self, attempt: RunActivity, task_queue: str, on_outcome: OnOutcome) -> None:
        self._turn += 1
        # A call that shared a process that died is run alone, so that the culprit convicts itself.
        is_suspect = (attempt.key.run_id, attempt.key.activity_id) in self._suspects
        worker = -self._turn if is_suspect else self._turn % self._workers
        entry = self._attempts[attempt.key] = _Attempt(attempt, worker, on_outcome)
        self._nursery.start_soon(self._run, entry)

    def cancel(self, key: ActivityKey) -> None:
        if (attempt := self._attempts.get(key)) is not None:
            self._end(attempt, "cancelled")

    # --- their fate ---

    def kill_worker(self, worker: int) -> None:
        """SIGKILL to one activity process: what ran alone in it has crashed, what shared it is lost."""
        worker = worker % self._workers if worker >= 0 else worker
        together = [attempt for attempt in self._attempts.values() if attempt.worker == worker]
        for attempt in together:
            if len(together) > 1:
                self._suspects.add((attempt.run.key.run_id, attempt.run.key.activity_id))
            self._end(attempt, "lost" if len(together) > 1 else "crashed")

    def _end(self, attempt: _Attempt, fate: FailureReason) -> None:
        attempt.fate = attempt.fate or fate
        attempt.scope.cancel()

    async def _run(self, attempt: _Attempt) -> None:
        run, world = attempt.run, self._world
        started_at = self._scheduler.now()
        outcome: AttemptOutcome | None = None
        limit_s, kind = _limit(run, started_at)
        if not self._is_dead() and attempt.fate is None and limit_s > 0:
            world.begin(Witness(started_at, run.key, run.name, run.workflow_id))
            definition = self._registry.activities[run.name]
            arguments = codec.decode_arguments(run.arguments, definition.parameter_hints)
            plan = world.plan_of(run, arguments)
            attempt.scope.deadline = trio.current_time() + limit_s
            with attempt.scope:
                await trio.sleep(plan.duration_s)
                if plan.how == "hang":
                    await trio.sleep_forever()
                if plan.how == "crash":
                    self.kill_worker(attempt.worker)
                    await trio.lowlevel.checkpoint()
                outcome = await _call(run, partial(definition.fn, *arguments), plan.error, started_at)
        if outcome is None:
            reason = attempt.fate or "timed_out"
            outcome = AttemptFailed(
                key=run.key,
                started_at=started_at,
                reason=reason,
                failure=Failure(type="Simulated", message=reason),
                timeout=kind if reason == "timed_out" else None,
            )
        if isinstance(outcome, AttemptFailed) and not self._is_dead():
            world.failures[run.key.run_id, run.key.activity_id] += 1
        self._attempts.pop(run.key, None)
        attempt.on_outcome(outcome, f"simulated/{attempt.worker}")


async def _call(
    run: RunActivity, function: Callable[[], Any], error: Exception | None, started_at: float
) -> AttemptOutcome:
    try:
        if error is not None:
            raise error
        result = function()
        if isinstance(result, Awaitable):
            result = await result
    except Exception as raised:  # noqa: BLE001 - whatever an activity raises is its outcome
        failure = codec.failure_of(raised)
        return AttemptFailed(key=run.key, started_at=started_at, reason="error", failure=failure)
    return AttemptCompleted(key=run.key, started_at=started_at, result=codec.encode_value(result))


def _limit(run: RunActivity, now: float) -> tuple[float, TimeoutKind]:
    """Seconds the attempt may take, and by which of its limits."""
    if run.deadline is not None and (run.start_to_close is None or run.deadline - now < run.start_to_close):
        return run.deadline - now, run.timeout or "schedule_to_close"
    return (float("inf") if run.start_to_close is None else run.start_to_close), "start_to_close"
