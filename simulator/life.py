"""One life of a cluster, from its beginning until everything has settled, and the evidence for the oracle."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random

import trio

from durablefuture_trio import _ids
from durablefuture_trio._ids import new_id
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.errors import BrokerUnavailableError
from durablefuture_trio.history.commit import decode_commit
from durablefuture_trio.history.events import TERMINAL_EVENTS, Event
from durablefuture_trio.memory_broker import FaultPlan
from durablefuture_trio.ports.broker import Stored
from durablefuture_trio.protocol.lease import Member
from durablefuture_trio.protocol.projection import decode_record
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._ownership import Ownership
from durablefuture_trio.supervisor._verifier import Verifiers
from simulator.clients import ClientProcess
from simulator.oracle import Evidence, Ran, Told, judge
from simulator.pools import ActivityWorld, HostedActivities, HostedReplay, HostedVerification, Witness
from simulator.programs import DEFINITIONS, expected_of, outcome_of, plan_of
from simulator.scenario import Disturbance, Scenario
from simulator.supervisor import NAMESPACE, Parts, is_paranoid, open_ownership
from simulator.trace import Trace
from simulator.world import EPOCH, ProcessFailed, SimulatedProcess, World

PATIENCE_S = 3000.0
"""Retries back off to 100 s."""

QUIET_S = 600.0
"""Longer than any timer of a program: one whose schedule could not be taken away fires, and is acknowledged."""
DRAIN_S = 5.0
RESTART_S = 0.1


@dataclass
class Report:
    """What came of one life.

    Attributes:
        injected: what was done to it, by kind.
        runs: how many runs there were.
        attempts: how many attempts of activities began.
        lasted_s: virtual seconds.
        verified: how often a history was replayed once more and went the same way (paranoid mode).
    """

    scenario: Scenario
    anomalies: list[str]
    injected: Counter[str]
    runs: int
    attempts: int
    lasted_s: float
    trace: Trace
    verified: int = 0


class Seat:
    """The place of one supervisor: whoever dies there is started again."""

    def __init__(self, life: Life, index: int, skew_s: float) -> None:
        self.name = f"S{index}"
        self.life = life
        self.skew_s = skew_s
        self.restart_after = RESTART_S
        self.process: SimulatedProcess | None = None
        self.replay: HostedReplay | None = None
        self.activities: HostedActivities | None = None
        self.verification: HostedVerification | None = None
        self.leave = trio.Event()

    def start(self) -> None:
        """Start a supervisor here, unless one runs."""
        if self.process is None:
            self.leave = trio.Event()
            self.process = self.life.world.spawn(self.name, self._main)
            self.process.at_end(self._ended)

    def _ended(self) -> None:
        self.life.world.trace(self.name, "ended")
        if self.replay is not None:
            self.replay.close()
        if self.verification is not None:
            self.verification.close()
        self.process = self.replay = self.activities = self.verification = None
        world = self.life.world
        world.scheduler.call_at(world.now() + self.restart_after, self.start)
        self.restart_after = RESTART_S

    async def _main(self, process: SimulatedProcess) -> None:
        try:
            await self._serve(process)
        except* BrokerUnavailableError as refused:  # exit code 69: no room, or no answer for too long
            self.life.world.trace(self.name, f"gives up: {refused.exceptions[0]}")

    async def _serve(self, process: SimulatedProcess) -> None:
        scenario, world = self.life.scenario, self.life.world
        registry, parts = self.life.registry, self.life.parts
        broker = process.connect()
        self.replay = HostedReplay(
            registry,
            process,
            cached_workflows=scenario.cached_workflows,
            children=scenario.replays,
            latency=(0.0, scenario.slow_replay),
            rng=world.rng,
        )
        verifiers = None
        if self.life.paranoid:
            self.verification = HostedVerification(registry, process)
            verifiers = self.verification.verifiers
            self.life.verifiers.append(verifiers)
        async with trio.open_nursery() as nursery:
            self.activities = HostedActivities(
                registry,
                self.life.activities,
                process,
                nursery,
                workers=scenario.workers,
                is_dead=lambda: process.is_dead,
            )
            ownership: Ownership = await open_ownership(
                parts.broker(broker),
                member=Member(name=self.name, token=f"token-{self.name}", incarnation=new_id()),
                wall=lambda: world.now() + self.skew_s,
                replay=self.replay,
                activities=self.activities,
                shards=scenario.shards,
                verifiers=verifiers,
                shard_type=parts.shard,
                ownership_type=parts.ownership,
                lease_s=scenario.lease_s,
            )
            await nursery.start(ownership.run)
            await self.leave.wait()
            with trio.move_on_after(DRAIN_S):
                await ownership.leave()
            nursery.cancel_scope.cancel()


class Life:
    """One life. `live` it once.

    Args:
        parts: what the supervisors are made of; the table of fixes puts broken ones in.
        keep_trace: whether every message is written down.
        patience_s: so long may clients wait, and runs take to end once the faults have stopped.
        paranoid: whether every finished commit is replayed once more; None: as the environment says (``PARANOID=1``).
    """

    def __init__(
        self,
        scenario: Scenario,
        parts: Parts | None = None,
        *,
        keep_trace: bool = False,
        patience_s: float = PATIENCE_S,
        paranoid: bool | None = None,
    ) -> None:
        self.scenario = scenario
        self.paranoid = is_paranoid() if paranoid is None else paranoid
        self.verifiers: list[Verifiers] = []
        self.patience_s = patience_s
        self.parts = parts or Parts()
        self.registry = Registry.of(DEFINITIONS)
        self.world = World(scenario.seed)
        self.world.server.faults = scenario.fault_plan()
        self.activities = ActivityWorld(Random(scenario.seed), plan=plan_of, on_begin=self._begun)
        self.injected: Counter[str] = Counter()
        self.told: list[Told] = []
        self.trace = Trace(self.world, keep=keep_trace)
        self._anomalies: list[str] = []
        self._seats = [Seat(self, index, skew_s) for index, skew_s in enumerate(scenario.skews)]
        self._clients: list[ClientProcess] = []
        self._in_peace = False

    def live(self) -> Report:
        """From the first start to the last acknowledgement."""
        with seeded(self.scenario.seed), self._errors_noticed():
            try:
                self._live()
            except ProcessFailed as failed:
                self._anomalies.append(f"{failed}: {failed.__cause__!r}")
                self.trace.failed(failed)
            finally:
                self.world.close()
        self.injected.update(getattr(self.world.server, "injected", {}))
        if doubted := sum(it.doubted for it in self.verifiers):
            self._anomalies.append(f"{doubted} replays in another process went differently")
        runs = 0
        if not self._anomalies:
            verdict = judge(self._evidence(), outcome_of=outcome_of, expected_of=expected_of)
            self._anomalies += verdict.anomalies
            runs = len(verdict.runs)
        return Report(
            self.scenario,
            self._anomalies,
            self.injected,
            runs,
            len(self.activities.witnesses),
            self.world.now() - EPOCH,
            self.trace,
            sum(it.passed for it in self.verifiers),
        )

    def _live(self) -> None:
        world, scenario = self.world, self.scenario
        for seat in self._seats:
            seat.start()
        for plan in scenario.clients:
            client = ClientProcess(world, plan, scenario, self.told, len(self._clients))
            self._clients.append(client)
            world.scheduler.call_at(EPOCH + plan.at, client.start)
        for disturbance in scenario.disturbances:
            world.scheduler.call_at(EPOCH + disturbance.at, partial(self._disturb, disturbance))
        last = max((it.at + it.seconds for it in scenario.disturbances), default=0.0)
        patience_s = self.patience_s
        world.run(lambda: world.now() >= EPOCH + last and all(it.ended for it in self._clients), patience_s=patience_s)
        self._make_peace()
        if not world.run(lambda: all(it.ended for it in self._clients), patience_s=patience_s):
            waiting = [it.name for it in self._clients if not it.ended]
            self._anomalies.append(f"clients still wait: {waiting}; runs still open: {self._open_runs()}")
            return
        if not self._slices(patience_s, lambda: not self._open_runs()):
            self._anomalies.append(f"runs still open long after the last fault: {self._open_runs()}")
            return
        # Whoever owns the shards next reads what lost acknowledgements left behind.
        for seat in self._seats:
            if seat.process is not None:
                seat.process.kill()
        self._slices(QUIET_S, lambda: not self._left())

    def _slices(self, patience_s: float, holds: Callable[[], bool]) -> bool:
        """Go on second by second until it holds: it is too dear to be looked at all the time."""
        for _ in range(int(patience_s)):
            if holds():
                return True
            self.world.run(lambda: False, patience_s=1.0)
        return holds()

    # --- what is done to it ---

    def _disturb(self, what: Disturbance) -> None:
        if self._in_peace:
            return
        world, seat = self.world, self._seats[what.target]
        server = world.server
        world.trace("fate", f"{what.kind} S{what.target} for {what.seconds:g} s")
        self.injected[what.kind] += 1
        ends = world.now() + what.seconds
        process = seat.process
        match what.kind:
            case "server_kill":
                server.kill()
                world.scheduler.call_at(ends, server.start)
            case "server_pause" if server.running:
                server.pause()
                world.scheduler.call_at(ends, self._resume_server)
            case "full":
                server.full = True
                world.scheduler.call_at(ends, self._make_room)
            case _ if process is None:
                pass
            case "kill":
                seat.restart_after = max(RESTART_S, what.seconds)
                process.kill()
            case "kill_at_send":
                seat.restart_after = max(RESTART_S, what.seconds)
                process.kill_at_send(what.count)
            case "terminate":
                process.enter(seat.leave.set)
            case "stall":
                process.stop()
                world.scheduler.call_at(ends, process.resume)
            case "unplug":
                process.drop_links(what.seconds)
            case "replay_kill" if seat.replay is not None:
                process.enter(partial(seat.replay.kill_child, what.count))
                if seat.verification is not None:
                    process.enter(seat.verification.kill_child)
            case "worker_kill" if seat.activities is not None:
                process.enter(partial(seat.activities.kill_worker, what.count))
            case _:
                pass

    def _resume_server(self) -> None:
        if self.world.server.paused:
            self.world.server.resume()

    def _make_room(self) -> None:
        self.world.server.full = False

    def _make_peace(self) -> None:
        """Faults stop, and everything that was stopped goes on."""
        self._in_peace = True
        world = self.world
        world.trace("fate", "peace")
        world.server.faults = FaultPlan(latency=(0.0, self.scenario.latency))
        self._make_room()
        self._resume_server()
        world.server.start()
        for process in list(world.processes):
            process.spare()
            if process.is_stopped:
                process.resume()

    # --- what is left of it ---

    def _stored(self, stream: str) -> list[Stored]:
        if self.world.server.stream_state(stream) is None:
            return []
        return self.world.server.page(stream, ">", 0, 10_000_000)

    def _open_runs(self) -> list[str]:
        subjects = Subjects(NAMESPACE, self.scenario.shards)
        last: dict[str, tuple[int, Event]] = {}
        for shard in range(self.scenario.shards):
            for stored in self._stored(subjects.history_stream(shard)):
                prefix, _, number = stored.subject.rpartition(".")
                events = decode_commit(stored.body).events  # none: it only remembers refused requests
                if events and int(number) > last.get(prefix, (0, None))[0]:
                    last[prefix] = int(number), events[-1]
        return [prefix for prefix, (_, event) in last.items() if not isinstance(event, TERMINAL_EVENTS)]

    def _left(self) -> list[str]:
        """What nobody should own any more, in words."""
        server, subjects = self.world.server, Subjects(NAMESPACE, self.scenario.shards)
        left: list[str] = []
        for stream in (*(subjects.inbox_stream(shard) for shard in range(subjects.shards)), subjects.tasks_stream):
            left += [f"{stored.subject} in {stream}" for stored in self._stored(stream)]
            if server.stream_state(stream) is not None:
                consumers = server.consumer_states(stream)
                if len(consumers) > 1:
                    left.append(f"consumers {[consumer.name for consumer in consumers]} of {stream}")
        left += [f"dead letter {stored.subject}" for stored in self._stored(subjects.dead_stream)]
        for stored in self._stored(subjects.projection_stream):
            record = decode_record(stored.body)
            if record.status in ("running", "blocked"):
                left.append(f"{record.workflow_id} is listed as {record.status}")
        return left

    def _evidence(self) -> Evidence:
        subjects = Subjects(NAMESPACE, self.scenario.shards)
        return Evidence(
            registry=self.registry,
            histories=[
                stored for shard in range(subjects.shards) for stored in self._stored(subjects.history_stream(shard))
            ],
            ran=[
                Ran(it.workflow_id, it.key.run_id, it.key.activity_id, it.key.attempt)
                for it in self.activities.witnesses
            ],
            told=self.told,
            left=self._left(),
        )

    def _begun(self, witness: Witness) -> None:
        key = witness.key
        self.trace.line(f"{witness.workflow_id}", f"{witness.name} call {key.activity_id} attempt {key.attempt} runs")

    @contextmanager
    def _errors_noticed(self) -> Iterator[None]:
        """What the engine reports as its own fault is an anomaly."""
        handler = _ErrorHandler(self._anomalies)
        logger = logging.getLogger("durablefuture_trio")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _ErrorHandler(logging.Handler):
    def __init__(self, anomalies: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._anomalies = anomalies

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is None:
            return  # innocent runs may be suspected when their owners die one after the other
        text = f"reported: {record.getMessage()}"
        self._anomalies.append(f"{text} {record.exc_info[1]!r}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Ids and jitter from the seed, within the block."""
    state, source = random.getstate(), _ids.random_bytes
    random.seed(seed)
    _ids.random_bytes = Random(seed).randbytes
    try:
        yield
    finally:
        random.setstate(state)
        _ids.random_bytes = source
