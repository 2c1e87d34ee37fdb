"""Replay processes: every question is answered, whatever dies, and the right run is blamed."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import trio

from durablefuture_trio.history.events import TimerFired
from durablefuture_trio.ports.frames import Activated, Loaded, Missing
from durablefuture_trio.supervisor._replay_pool import SandboxReplayPool
from durablefuture_trio.supervisor.settings import SandboxSettings, Settings, SupervisorSettings

pytestmark = pytest.mark.usefixtures("fake_children")


def settings(processes: int = 1, **sandbox: Any) -> Settings:
    return Settings(
        supervisor=SupervisorSettings(roles=("workflows",)),
        sandbox=SandboxSettings(processes=processes, **sandbox),
    )


class Asker:
    """Asks a pool about runs and keeps the answers in the order they came."""

    def __init__(self, pool: SandboxReplayPool | None) -> None:
        assert pool is not None
        self.pool = pool
        self.answers: list[Any] = []

    def activate(self, run_id: str, activation: int = 1) -> None:
        self.pool.activate(run_id, activation, TimerFired(id=activation, at=1.0, deadline=1.0), self.answers.append)

    def load(self, run_id: str, *commits: bytes) -> None:
        for number, commit in enumerate(commits):
            self.pool.load(
                run_id,
                (commit,),
                first=number == 0,
                last=number == len(commits) - 1,
                on_answer=self.answers.append,
            )

    def kinds(self) -> list[str]:
        return [type(answer).__name__ for answer in self.answers]


async def test_a_run_is_activated_again_and_again_in_the_process_that_holds_it(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(processes=2)) as children:
        asker = Asker(children.replay)
        for activation in (1, 2, 3):
            for run in range(10):
                asker.activate(f"run-{run}", activation)
        assert asker.answers == [], "an answer never comes from within the question"
        await eventually(lambda: len(asker.answers) == 30)
        assert set(asker.kinds()) == {"Activated"}
        pids = {(answer.run_id, answer.wake_at) for answer in asker.answers}
        assert len(pids) == 10, "each run stayed in one process"
        assert len({pid for _, pid in pids}) == 2, "and both processes had runs"
        assert children.replay.cached("run-3")
        assert children.replay.code_hash == "h"


async def test_a_run_that_is_not_cached_is_missing_until_it_is_loaded(open_children: Any, eventually: Any) -> None:
    async with open_children(settings()) as children:
        asker = Asker(children.replay)
        asker.activate("run", 3)
        await eventually(lambda: asker.answers)
        assert isinstance(asker.answers[0], Missing)
        assert not children.replay.cached("run")
        asker.load("run", b"commit-1", b"commit-2")
        asker.activate("run", 3)
        await eventually(lambda: len(asker.answers) == 3)
        assert asker.kinds() == ["Missing", "Loaded", "Activated"]
        assert children.replay.cached("run")


async def test_an_evicted_run_is_gone_and_its_answers_are_not_delivered(open_children: Any, eventually: Any) -> None:
    async with open_children(settings()) as children:
        asker = Asker(children.replay)
        asker.activate("run", 1)
        children.replay.evict("run")
        asker.activate("run", 2)
        await eventually(lambda: asker.answers)
        assert asker.kinds() == ["Missing"]
        asker.activate("lru-run", 1)  # this child drops it by itself
        await eventually(lambda: len(asker.answers) == 2)
        assert not children.replay.cached("lru-run")


async def test_the_run_that_brings_its_process_down_is_blocked_and_all_others_are_missing(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        asker = Asker(children.replay)
        for run in ("good-1", "crash-1", "good-2", "good-3"):
            asker.activate(run)
        await eventually(lambda: len(asker.answers) == 4)
        assert asker.kinds() == ["Activated", "Blocked", "Missing", "Missing"]
        blocked = asker.answers[1]
        assert (blocked.run_id, blocked.kind) == ("crash-1", "crashed")
        assert "SIGSEGV" in blocked.message
        assert not any(children.replay.cached(run) for run in ("good-1", "crash-1", "good-2"))
        asker.activate("good-2")  # waits for the next process
        await eventually(lambda: len(asker.answers) == 5)
        assert isinstance(asker.answers[4], Activated)


async def test_a_crash_while_history_is_replayed_blocks_that_run_even_between_two_chunks(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        asker, pool = Asker(children.replay), children.replay
        first_child = pool.slots[0].child
        pool.load("run", (b"crash",), first=True, last=False)
        await eventually(lambda: pool.slots[0].child not in (None, first_child))
        pool.load("run", (b"commit-2",), first=False, last=True, on_answer=asker.answers.append)
        assert asker.answers == []
        await eventually(lambda: asker.answers)
        assert (asker.answers[0].run_id, asker.answers[0].kind) == ("run", "crashed")
        asker.load("run", b"commit-1")
        await eventually(lambda: len(asker.answers) == 2)
        assert isinstance(asker.answers[1], Loaded)


async def test_a_kill_from_outside_is_excused_once_and_the_second_one_in_a_row_blocks_the_run(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings()) as children:
        asker, slot = Asker(children.replay), children.replay.slots[0]

        async def killed_while_running() -> None:
            asker.activate("block-1")
            await eventually(lambda: slot.child is not None)
            child = slot.child
            child.kill()
            await eventually(lambda: slot.child not in (None, child))

        await killed_while_running()
        await killed_while_running()
        assert asker.kinds() == ["Missing", "Blocked"]


async def test_while_one_process_is_down_its_runs_go_to_another(open_children: Any, eventually: Any) -> None:
    async with open_children(settings(processes=2)) as children:
        asker, pool = Asker(children.replay), children.replay
        victim, other = pool.slots
        run = next(f"run-{n}" for n in range(100) if pool._slot_of(f"run-{n}") is victim)
        dead = victim.child
        dead.kill()
        await eventually(lambda: victim.child is not dead)
        asker.activate(run)
        await eventually(lambda: asker.answers)
        assert asker.answers[0].wake_at in (float(other.child.pid), float(victim.child.pid if victim.child else 0))


async def test_an_activation_that_does_not_end_is_killed_with_its_stack_in_view(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(activation_timeout=0.2)) as children:
        asker = Asker(children.replay)
        pid = children.replay.slots[0].child.pid
        asker.activate("good-1")
        asker.activate("spin-1")
        asker.activate("good-2")
        await eventually(lambda: len(asker.answers) == 3)
        assert asker.kinds() == ["Activated", "Blocked", "Missing"]
        blocked = asker.answers[1]
        assert (blocked.run_id, blocked.kind) == ("spin-1", "deadlock")
        assert "spin_for_ever" in blocked.stack
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_an_activation_that_blocks_without_computing_is_killed_at_the_wider_bound(
    open_children: Any, eventually: Any
) -> None:
    async with open_children(settings(activation_timeout=0.1)) as children:
        asker = Asker(children.replay)
        started = time.monotonic()
        asker.activate("block-1")
        await eventually(lambda: asker.answers)
        assert asker.answers[0].kind == "deadlock"
        assert time.monotonic() - started > 0.45


async def test_a_stopped_process_is_killed_too_although_it_cannot_write_its_stack(
    open_children: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durablefuture_trio.supervisor._replay_slot._STACK_WAIT_S", 0.1)
    async with open_children(settings(activation_timeout=0.1)) as children:
        asker = Asker(children.replay)
        children.replay.slots[0].child.signal(signal.SIGSTOP)
        asker.activate("run-1")
        await eventually(lambda: asker.answers)
        assert (asker.answers[0].kind, asker.answers[0].stack) == ("deadlock", "")


async def test_many_slow_activations_and_a_long_replay_are_no_deadlock(open_children: Any, eventually: Any) -> None:
    async with open_children(settings(activation_timeout=0.5, replay_timeout=2.0)) as children:
        asker = Asker(children.replay)
        for run in range(4):
            asker.activate(f"slow-{run}")  # 0.3 s of CPU each
        asker.load("run", b"slow", b"slow", b"slow")
        await eventually(lambda: len(asker.answers) == 5)
        assert set(asker.kinds()) == {"Activated", "Loaded"}


async def test_nobody_looks_after_deadlocks_while_nothing_is_owed(open_children: Any, eventually: Any) -> None:
    async with open_children(settings(activation_timeout=0.08)) as children:
        pool = children.replay
        asker = Asker(pool)
        asker.activate("run-1")
        await eventually(lambda: asker.answers)
        await eventually(lambda: not pool._watch_wanted.is_set())
        looks: list[float] = []
        pool.slots[0].look = lambda interval_s: looks.append(interval_s) or False
        with trio.move_on_after(0.3):
            await trio.sleep_forever()
        assert looks == []
