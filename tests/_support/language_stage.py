"""A simulated cluster for one performance of a scene, and what fate has in store for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Generic, Literal, TypeVar

import trio

from durablefuture_trio._ids import new_id
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.client import Client, open_client
from durablefuture_trio.client._connect import find_namespace
from durablefuture_trio.errors import DurableFutureError
from durablefuture_trio.history.events import Event
from durablefuture_trio.memory_broker import FaultPlan
from durablefuture_trio.ports.broker import Stored
from durablefuture_trio.protocol.lease import Member
from durablefuture_trio.protocol.projection import decode_record
from durablefuture_trio.protocol.subjects import Subjects
from durablefuture_trio.supervisor._verifier import Verifiers
from simulator.life import seeded
from simulator.pools import ActivityWorld, HostedActivities, HostedReplay, HostedVerification, Witness
from simulator.supervisor import NAMESPACE, is_paranoid, open_ownership
from simulator.world import SimulatedProcess, World
from tests._support.language_history import RunHistory, flaws, read_runs

Victim = Literal["supervisor", "replay", "worker"]
R = TypeVar("R")
Scene = Callable[[Client], Awaitable[R]]

RESTART_S = 0.1
QUIET_S = 60.0
ATTEMPT_S = 0.01


@dataclass(frozen=True)
class Fate:
    """What one performance is up against.

    Attributes:
        seed: of all chance.
        blows: how many kills there are, at messages of their own.
        paranoid: every finished commit is replayed once more by another host.
    """

    name: str
    seed: int = 0
    seats: int = 1
    shards: int = 2
    cached_workflows: int = 1000
    replays: int = 1
    replay_latency: tuple[float, float] = (0.0, 0.0)
    faults: FaultPlan = field(default_factory=FaultPlan)
    blows: int = 0
    victims: tuple[Victim, ...] = ()
    paranoid: bool = field(default_factory=is_paranoid)


@dataclass
class Performance(Generic[R]):
    """What came of one performance.

    Attributes:
        result: what the scene returned.
        runs: every run that the history streams hold, oldest first for each workflow id.
        ran: every attempt of an activity that began.
        blows: what was killed, by kind.
        seconds: virtual seconds the scene took.
    """

    fate: Fate
    result: R
    runs: list[RunHistory]
    ran: list[Witness]
    blows: Counter[str]
    seconds: float

    def run(self, workflow_id: str, index: int = -1) -> RunHistory:
        """A run of this workflow id, by default the last one."""
        return [run for run in self.runs if run.workflow_id == workflow_id][index]

    def events(self, workflow_id: str, kind: type[Any] | None = None, index: int = -1) -> list[Any]:
        """The events of a run, or those of one kind."""
        return [event for event in self.run(workflow_id, index).events if kind is None or isinstance(event, kind)]

    def kinds(self, workflow_id: str, index: int = -1) -> list[str]:
        """What the events of a run are, without the bookkeeping of attempts that varies with who was killed."""
        return self.run(workflow_id, index).kinds

    def calls(self, name: str) -> int:
        """How many calls of an activity ran at least once."""
        return len({(it.key.run_id, it.key.activity_id) for it in self.ran if it.name == name})


class Seat:
    """The place of one supervisor: whoever dies there is started again, with the code that is deployed then."""

    def __init__(self, stage: Stage, index: int) -> None:
        self.name = f"S{index}"
        self._stage = stage
        self._replay: HostedReplay | None = None
        self._activities: HostedActivities | None = None
        self._verification: HostedVerification | None = None
        self.process: SimulatedProcess | None = None

    def start(self) -> None:
        """Start a supervisor here, unless one runs or none should."""
        stage = self._stage
        if self.process is None and not stage.is_dark:
            process = self.process = stage.world.spawn(self.name, self._serve)
            process.sends = partial(self._sends, process)  # type: ignore[method-assign]  # messages are when it is hit
            process.at_end(self._ended)

    def hit(self, victim: Victim, which: int) -> None:
        """Kill the supervisor, or one of its children."""
        process = self.process
        if process is None:
            return
        match victim:
            case "supervisor":
                process.kill()
            case "replay" if self._replay is not None:
                process.enter(partial(self._replay.kill_child, which))
            case "worker" if self._activities is not None:
                process.enter(partial(self._activities.kill_worker, which))
            case _:
                pass

    def _sends(self, process: SimulatedProcess) -> None:
        if not process.is_dead:
            self._stage.about_to_send(self)

    def _ended(self) -> None:
        if self._replay is not None:
            self._replay.close()
        if self._verification is not None:
            self._verification.close()
        self.process = self._replay = self._activities = self._verification = None
        world = self._stage.world
        world.scheduler.call_at(world.now() + RESTART_S, self.start)

    async def _serve(self, process: SimulatedProcess) -> None:
        stage = self._stage
        fate, world, registry = stage.fate, stage.world, stage.registry
        broker = process.connect()
        self._replay = HostedReplay(
            registry,
            process,
            cached_workflows=fate.cached_workflows,
            children=fate.replays,
            latency=fate.replay_latency,
            rng=stage.rng,
        )
        verifiers = None
        if fate.paranoid:
            self._verification = HostedVerification(registry, process)
            verifiers = self._verification.verifiers
            stage.verifiers.append(verifiers)
        async with trio.open_nursery() as nursery:
            self._activities = HostedActivities(
                registry, stage.activities, process, nursery, workers=2, is_dead=lambda: process.is_dead
            )
            ownership = await open_ownership(
                broker,
                member=Member(name=self.name, token=f"token-{self.name}", incarnation=new_id()),
                wall=world.now,
                replay=self._replay,
                activities=self._activities,
                shards=fate.shards,
                verifiers=verifiers,
            )
            await nursery.start(ownership.run)
            await trio.sleep_forever()


class Stage:
    """A server, supervisors and one client, for one performance."""

    def __init__(self, definitions: Iterable[Any], fate: Fate, *, attempt_s: float = ATTEMPT_S) -> None:
        self.fate = fate
        self.rng = Random(fate.seed)
        self.world = World(fate.seed)
        self.world.server.faults = fate.faults
        self.registry = Registry.of(definitions)
        self.activities = ActivityWorld(Random(fate.seed), duration=(attempt_s, attempt_s))
        self.blows: Counter[str] = Counter()
        self.is_dark = False
        self._is_peace = False
        self.reported: list[str] = []
        self.verifiers: list[Verifiers] = []
        self._is_code_changed = False
        self._seats = [Seat(self, index) for index in range(fate.seats)]
        self._next_blow_in = self._gap()

    def perform(self, scene: Scene[R], *, open_runs: frozenset[str], patience_s: float) -> Performance[R]:
        """Play the scene, and look at what is left."""
        with seeded(self.fate.seed), self._errors_noticed():
            try:
                return self._perform(scene, open_runs, patience_s)
            finally:
                self.world.close()

    def _perform(self, scene: Scene[R], open_runs: frozenset[str], patience_s: float) -> Performance[R]:
        world = self.world
        for seat in self._seats:
            seat.start()
        results: list[R] = []
        began = world.now()
        client = world.spawn("client", partial(self._client, scene, results))
        if not world.run(lambda: client.is_dead, patience_s=patience_s):
            raise AssertionError(f"the scene still waits; the histories are\n{self._told()}")
        seconds = world.now() - began
        self._make_peace()
        if not self._wait(patience_s, lambda: self._open_runs() <= open_runs):
            raise AssertionError(
                f"runs still open long after the scene: {self._open_runs() - open_runs}\n{self._told()}"
            )
        self._wait(1.0 if self.fate.paranoid else 0.0, lambda: False)
        for seat in self._seats:  # whoever owns the shards next reads what lost acknowledgements left behind
            seat.hit("supervisor", 0)
        self._wait(QUIET_S, lambda: not self._left(open_runs))
        runs = self.runs()
        found = [*self.reported, *(f"left behind: {item}" for item in self._left(open_runs))]
        if (doubted := sum(it.doubted for it in self.verifiers)) and not self._is_code_changed:
            found.append(f"{doubted} replays by another host went differently")
        found += flaws(runs, self.registry, self.activities.witnesses, open_runs)
        if found:
            raise AssertionError("\n".join([*found, self._told()]))
        return Performance(self.fate, results[0], runs, self.activities.witnesses, self.blows, seconds)

    async def _client(self, scene: Scene[R], results: list[R], process: SimulatedProcess) -> None:
        broker = process.connect()
        while True:
            try:
                subjects = await find_namespace(broker, NAMESPACE)
                break
            except DurableFutureError:
                await trio.sleep(0.1)
        async with open_client(broker, subjects, clock=self.world.now) as client:
            results.append(await scene(client))

    # --- what a scene may do to its supervisors ---

    def restart(self, definitions: Iterable[Any] | None = None) -> None:
        """Kill all supervisors; they come back, with other code if any is given."""
        if definitions is not None:
            self.registry = Registry.of(definitions)
            self._is_code_changed = True
        self._soon(self._kill_all)

    def dark(self, is_dark: bool) -> None:
        """Let no supervisor run, or all again."""
        self.is_dark = is_dark
        self._soon(self._kill_all if is_dark else self._start_all)

    def _soon(self, call: Callable[[], None]) -> None:
        # Not in the middle of the step of the scene's own process.
        self.world.scheduler.call_at(self.world.now(), call)

    def _kill_all(self) -> None:
        for seat in self._seats:
            seat.hit("supervisor", 0)

    def _start_all(self) -> None:
        for seat in self._seats:
            seat.start()

    # --- blows ---

    def _gap(self) -> int:
        return self.rng.choice((self.rng.randint(1, 5), self.rng.randint(4, 16), self.rng.randint(10, 40)))

    def about_to_send(self, seat: Seat) -> None:
        """A supervisor is about to send a message: its fate may strike."""
        if self._is_peace or sum(self.blows.values()) >= self.fate.blows or not self.fate.victims:
            return
        self._next_blow_in -= 1
        if self._next_blow_in <= 0:
            self._next_blow_in = self._gap()
            victim = self.rng.choice(self.fate.victims)
            self.blows[victim] += 1
            seat.hit(victim, self.rng.randrange(2))

    def _make_peace(self) -> None:
        self._is_peace = True
        self.world.server.faults = FaultPlan()
        self.is_dark = False
        self._start_all()

    # --- what is left ---

    def _wait(self, patience_s: float, holds: Callable[[], bool]) -> bool:
        """Go on in slices until it holds: it is too dear to be looked at all the time."""
        waited, slice_s = 0.0, 0.25
        while not holds():
            if waited >= patience_s:
                return False
            self.world.run(lambda: False, patience_s=slice_s)
            waited += slice_s
            slice_s = min(2 * slice_s, 10.0)
        return True

    def _stored(self, stream: str) -> list[Stored]:
        if self.world.server.stream_state(stream) is None:
            return []
        return self.world.server.page(stream, ">", 0, 10_000_000)

    @property
    def _subjects(self) -> Subjects:
        return Subjects(NAMESPACE, self.fate.shards)

    def runs(self) -> list[RunHistory]:
        """Every run that the history streams hold."""
        streams = (self._subjects.history_stream(shard) for shard in range(self.fate.shards))
        return read_runs(stored for stream in streams for stored in self._stored(stream))

    def _open_runs(self) -> frozenset[str]:
        return frozenset(run.workflow_id for run in self.runs() if run.terminal is None)

    def _left(self, open_runs: frozenset[str]) -> list[str]:
        subjects = self._subjects
        spared = tuple(f".{subjects.history_prefix(it).split('.')[-2]}." for it in open_runs)
        streams = (*(subjects.inbox_stream(shard) for shard in range(subjects.shards)), subjects.tasks_stream)
        left = [
            f"{stored.subject} in {stream}"
            for stream in streams
            for stored in self._stored(stream)
            if not any(token in f"{stored.subject}." for token in spared)
        ]
        left += [f"dead letter {stored.subject}" for stored in self._stored(subjects.dead_stream)]
        for stored in self._stored(subjects.projection_stream):
            record = decode_record(stored.body)
            if record.status in ("running", "blocked") and record.workflow_id not in open_runs:
                left.append(f"{record.workflow_id} is listed as {record.status}")
        return left

    def _told(self) -> str:
        """The histories, for people."""
        lines = [f"performed as {self.fate.name}, kills: {dict(self.blows)}"]
        for run in self.runs():
            lines.append(f"{run.workflow_id} run {run.run_id[:8]}:")
            shown = run.events if len(run.events) <= 80 else [*run.events[:40], *run.events[-40:]]
            lines += [f"  {_brief(event)}" for event in shown]
        return "\n".join(lines)

    @contextmanager
    def _errors_noticed(self) -> Iterator[None]:
        """What the engine reports as its own fault is a flaw; what it says of user code is not."""
        handler = _Notices(self.reported)
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


class _Notices(logging.Handler):
    def __init__(self, reported: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._reported = reported

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None:
            self._reported.append(f"reported: {record.getMessage()} {record.exc_info[1]!r}")


def _brief(event: Event) -> str:
    text = repr(event).replace(", encoding='json'", "")
    return text if len(text) <= 180 else f"{text[:180]}…"
