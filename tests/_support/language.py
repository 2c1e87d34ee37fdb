"""Workflow tests that are written once and performed under every kind of fate.

A *scene* is what a client does: an async function of one argument, a real client. It is performed over simulated
supervisors (production owners, leases, protocol and replay hosts over the model of JetStream, in virtual time), as
often as the mode asks for. Whatever the mode: the scene returns the same, every history replays from scratch, no
message is left over, and no call, update or request has two outcomes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Literal
from zlib import crc32

import trio

from durablefuture_trio.client import Client
from durablefuture_trio.history.events import TERMINAL_EVENTS, Event
from durablefuture_trio.memory_broker import FaultPlan
from simulator.world import ProcessFailed
from tests._support.language_elsewhere import Bundle, bundle
from tests._support.language_stage import ATTEMPT_S, RESTART_S, Fate, Performance, R, Scene, Stage, Victim

Mode = Literal["live", "replay", "killed"]

KILLED_TIMES = int(os.environ.get("LANGUAGE_TIMES", "4"))
"""How often a scene is performed with everything killed, unless the test says otherwise."""

PATIENCE_S = 2000.0
"""Virtual seconds a scene may take, and runs may take to end after it."""

BLOWS = 10
LATENCIES: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.002), (0.0, 0.02))


def fates_of(mode: Mode, *, salt: str = "", spare: Iterable[Victim] = (), times: int = KILLED_TIMES) -> list[Fate]:
    """The performances of a mode. `salt`: so that not all tests are hit at the same messages."""
    match mode:
        case "live":
            return [Fate("live")]
        case "replay":
            return [Fate("replay", cached_workflows=0, paranoid=True)]
        case "killed":
            first = crc32(salt.encode()) % 1_000_000 * 10
            return [_random_fate(seed, frozenset(spare)) for seed in range(first, first + times)]


def _random_fate(seed: int, spare: frozenset[Victim]) -> Fate:
    rng = Random(f"fate {seed}")
    victims: tuple[Victim, ...] = ("supervisor", "supervisor", "supervisor", "replay", "worker")
    # A lease that cannot be renewed in time is as good as the death of its supervisor.
    lossy = seed % 2 == 0 and "supervisor" not in spare
    return Fate(
        name=f"killed, seed {seed}",
        seed=seed,
        seats=1 if "supervisor" in spare else rng.choice((1, 1, 2)),
        shards=rng.choice((1, 2)),
        cached_workflows=rng.choice((0, 1, 1000, 1000)),
        replays=rng.choice((1, 2)),
        replay_latency=rng.choice(LATENCIES),
        faults=FaultPlan(
            latency=(0.0, 0.002),
            lost_puback=0.02 if lossy else 0.0,
            late_append=0.02 if lossy else 0.0,
            lost_ack=0.1 if lossy else 0.0,
            late_ack=0.1 if lossy else 0.0,
            stale_read=0.1 if lossy else 0.0,
            double_fire=0.2 if lossy else 0.0,
        ),
        blows=BLOWS,
        victims=tuple(victim for victim in victims if victim not in spare),
    )


class Gate:
    """Holds attempts of activities up until the scene lets them pass. Closed at the beginning of each performance."""

    def __init__(self) -> None:
        self.is_open = False

    def open(self) -> None:
        """Let everybody pass."""
        self.is_open = True

    async def passed(self) -> None:
        """For activities: wait until it is open."""
        while not self.is_open:  # noqa: ASYNC110 - an Event of one Trio program wakes nobody in another
            await trio.sleep(0.01)


class Play:
    """What the fixture `play` is: call it with a scene and the definitions that the supervisors have.

    Within a scene it also moves the supervisors: `deploy`, `restart`, `outage`.

    Attributes:
        replays_elsewhere: the histories are to be replayed in another process; not so where a test has changed a limit
            of this one.
    """

    def __init__(self, mode: Mode, salt: str = "") -> None:
        self.mode = mode
        self._salt = salt
        self.performances: list[Performance[Any]] = []
        self.bundles: list[Bundle] = []
        self.replays_elsewhere = True
        self._gates: list[Gate] = []
        self._stage: Stage | None = None

    def __call__(
        self,
        scene: Scene[R],
        *definitions: Any,
        spare: Iterable[Victim] = (),
        open_runs: Iterable[str] = (),
        patience_s: float = PATIENCE_S,
        attempt_s: float = ATTEMPT_S,
        times: int = KILLED_TIMES,
    ) -> Performance[R]:
        """Perform the scene as the mode asks for.

        Args:
            definitions: of workflows and activities.
            spare: what is not killed: a worker's death is a failed attempt, which some retry policies do not stand.
            open_runs: ids of workflows that the scene leaves open.
            patience_s: virtual seconds.
            attempt_s: virtual seconds an attempt of an activity takes beside what it does itself.
            times: how often it is performed in the mode "killed".

        Returns:
            The performance (the last one; they all had the same result).

        Raises:
            AssertionError: a promise was broken; the words have the histories.
            Exception: whatever the scene raised.
        """
        first: Performance[R] | None = None
        fates = fates_of(self.mode, salt=self._salt, spare=spare, times=times)
        if self.mode != "live":
            fates = [*fates_of("live"), *fates]
        for fate in fates:
            performance = self._perform(scene, definitions, fate, frozenset(open_runs), patience_s, attempt_s)
            if first is None:
                first = performance
            elif performance.result != first.result:
                raise AssertionError(f"{fate.name}: {performance.result!r}, and undisturbed {first.result!r}")
        return self.performances[-1]

    def run(self, flow: Any, *definitions: Any, args: Sequence[Any] = (), **options: Any) -> Performance[Any]:
        """Perform the shortest of scenes: one run of a workflow, under the id ``"w"``; the result is the run's.

        Args:
            definitions: what else there is.
            args: of the workflow.
            options: as for a scene.
        """

        async def scene(client: Client) -> Any:
            return await client.run(flow, *args, id="w")

        return self(scene, flow, *definitions, **options)

    def _perform(
        self,
        scene: Scene[R],
        definitions: Sequence[Any],
        fate: Fate,
        open_runs: frozenset[str],
        patience_s: float,
        attempt_s: float,
    ) -> Performance[R]:
        for gate in self._gates:
            gate.is_open = False
        stage = self._stage = Stage(definitions, fate, attempt_s=attempt_s)
        try:
            performance = stage.perform(scene, open_runs=open_runs, patience_s=patience_s)
        except ProcessFailed as failed:
            error = failed.__cause__ or failed
            error.add_note(f"performed as {fate.name}, kills: {dict(stage.blows)}")
            raise error from None
        except BaseException as error:
            error.add_note(f"performed as {fate.name}")
            raise
        finally:
            self._stage = None
        self.performances.append(performance)
        self.bundles = [bundle(f"{self._salt}, {fate.name}", stage.registry, performance.runs, open_runs)]
        return performance

    @property
    def stage(self) -> Stage:
        """The stage of the performance that goes on."""
        assert self._stage is not None, "only within a scene"
        return self._stage

    def gate(self) -> Gate:
        """A gate for activities of this test; made outside of the scene."""
        gate = Gate()
        self._gates.append(gate)
        return gate

    # --- for scenes ---

    async def deploy(self, *definitions: Any) -> None:
        """Replace the code: all supervisors are killed and come back with these definitions."""
        self.stage.restart(definitions)
        await trio.sleep(2 * RESTART_S)

    async def restart(self) -> None:
        """Kill all supervisors; they come back."""
        self.stage.restart()
        await trio.sleep(2 * RESTART_S)

    async def outage(self, seconds: float) -> None:
        """No supervisor runs for so long. (Long times pass at once then: nobody renews leases.)"""
        self.stage.dark(True)
        await trio.sleep(seconds)
        self.stage.dark(False)

    def events(self, workflow_id: str, kind: type[Any] | tuple[type[Any], ...] = object) -> list[Any]:
        """The events of the latest run of an id, as stored at this moment; none if there is no run."""
        runs = [run for run in self.stage.runs() if run.workflow_id == workflow_id]
        return [event for event in runs[-1].events if isinstance(event, kind)] if runs else []

    async def recorded(self, workflow_id: str, kind: type[Any], count: int = 1) -> None:
        """Wait until the latest run of the id has so many events of this kind."""
        await self.until(lambda: len(self.events(workflow_id, kind)) >= count)

    async def closed(self, workflow_id: str) -> Event:
        """Wait until the latest run of the id has closed; gives its last event."""
        await self.until(lambda: bool(self.events(workflow_id, TERMINAL_EVENTS)))
        last: Event = self.events(workflow_id)[-1]
        return last

    async def began(self, activity: str, count: int = 1) -> None:
        """Wait until so many calls of an activity have begun to run."""
        await self.until(
            lambda: len({it.key.activity_id for it in self.stage.activities.witnesses if it.name == activity}) >= count
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds; the scene's patience is the limit."""
        while not holds():  # noqa: ASYNC110 - what it looks at is in other processes
            await trio.sleep(0.02)
