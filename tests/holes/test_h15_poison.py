"""What nobody can read, and what the engine itself breaks on, stops one run and not the shard."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.engine.requests import Inbound, StartRequest
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.memory_broker import AppendFate
from durablefuture_trio.ports.broker import Append, Delivery
from durablefuture_trio.protocol.envelope import inbound
from durablefuture_trio.supervisor._caution import Caution, Suspect
from durablefuture_trio.supervisor._shard import Shard
from tests._support.cluster import Supervisor
from tests._support.holes import SUBJECTS, Stage, one_long_step, one_step, stage


class Fragile(Shard):
    """Expects every message to be one of its own kind."""

    def _decode(self, delivery: Delivery) -> Inbound | None:
        return inbound(delivery)


async def put_garbage(scene: Stage) -> None:
    broker = scene.server.connect("elsewhere")
    await broker.append(Append(subject=SUBJECTS.inbox("w", "start"), body=b"\xc1 nothing of ours"))


async def test_h15_an_unreadable_message_becomes_a_dead_letter_and_the_shard_goes_on(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        await scene.start("A")
        await put_garbage(scene)
        assert await scene.client.run(one_step, id="other") == "done"
        await scene.until(5)
        assert scene.waiting() == 0
        letter = scene.server.last("DF_test_D", "df.test.d.0", confirmed=True)
        assert letter is not None
        assert letter.body == b"\xc1 nothing of ours"
        assert letter.headers["Df-Subject"] == SUBJECTS.inbox("w", "start")
        assert letter.headers["Df-Reason"]


async def test_h15_a_dead_letter_is_stored_before_the_message_is_acknowledged(autojump_clock: MockClock) -> None:
    async with stage() as scene:
        await scene.start("A")
        scene.faults.next_append(AppendFate(lands_after=None), "df.test.d.>")
        await put_garbage(scene)
        await scene.until(10)
        assert scene.waiting() == 1, "it was acknowledged, and nobody will ever see it"
        await scene.takeover("A", "B")
        await scene.until(30)
        assert (scene.waiting(), scene.waiting("D")) == (0, 1)


async def test_h15_without_dead_letters_an_unreadable_message_brings_the_supervisor_down(
    autojump_clock: MockClock,
) -> None:
    async def life() -> None:
        async with stage(shard=Fragile) as scene:
            await scene.start("A")
            await put_garbage(scene)
            await scene.until(5)

    with pytest.raises(ExceptionGroup):
        await life()


class PoisonedOwner(RunOwner):
    """Has a defect that one workflow id brings out, until somebody mends it."""

    is_mended: ClassVar[bool] = False

    def delivered(self, message: Inbound, now: float) -> None:
        if self.workflow_id == "poison" and not self.is_mended:
            raise ZeroDivisionError("a defect of the engine")
        super().delivered(message, now)


class WithoutBoundary(Shard):
    """Handles a run as if nothing could go wrong in it."""

    def _notify(self, owner: RunOwner, notification: Callable[[], None]) -> None:
        notification()


async def test_h15_a_defect_that_one_run_brings_out_stops_only_that_run(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(owner=PoisonedOwner) as scene:
        await scene.start("A")
        results: list[str] = []

        async def poisoned() -> None:
            results.append(await scene.client.run(one_step, id="poison"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poisoned)
            await scene.until(3)
            assert await scene.client.run(one_step, id="other") == "done"
            assert results == []
            monkeypatch.setattr(PoisonedOwner, "is_mended", True)
            nursery.cancel_scope.deadline = trio.current_time() + 200
        assert results == ["done"]
        await scene.until(scene.now + 10)
        assert scene.waiting() == 0


async def test_h15_without_a_boundary_a_defect_of_one_run_brings_the_supervisor_down(
    autojump_clock: MockClock,
) -> None:
    async def life() -> None:
        async with stage(owner=PoisonedOwner, shard=WithoutBoundary) as scene:
            await scene.start("A")
            await scene.client.start(one_step, id="poison")

    with pytest.raises(ExceptionGroup) as caught:
        await life()
    assert caught.group_contains(ZeroDivisionError)


# --- what brings the whole supervisor down ---------------------------------------------------------------------------


class DeadlyOwner(RunOwner):
    """One workflow id kills the process of whoever is about to load it."""

    kill: ClassVar[Callable[[], None]]

    def delivered(self, message: Inbound, now: float) -> None:
        if self.workflow_id == "poison":
            type(self).kill()
            return
        super().delivered(message, now)


class RecklessShard(Shard):
    """Loads everything at once, whoever died before."""

    async def _read_inbox(self, epoch: int) -> None:
        self._caution = Reckless(self._broker, self._subjects, self.number)
        await super()._read_inbox(epoch)


class Reckless(Caution):
    def suspects(self, now: float) -> list[Suspect]:
        return []

    def is_advised(self, workflow_ids: object) -> bool:
        return False


async def whoever_loads_it_dies(shard: type[Shard], monkeypatch: pytest.MonkeyPatch) -> tuple[bool, int]:
    """Supervisors are started again whenever one dies. Returns whether a run beside the deadly one completed within two
    minutes, and how many lives that took."""
    async with stage(owner=DeadlyOwner, shard=shard) as scene:
        deaths = 0

        def kill() -> None:
            nonlocal deaths
            deaths += 1
            supervisor = scene.cluster.supervisors["A"]
            supervisor.broker.kill()
            supervisor.scope.cancel()

        monkeypatch.setattr(DeadlyOwner, "kill", kill, raising=False)

        async def keep_alive() -> None:
            while True:
                supervisor = scene.cluster.supervisors["A"] = Supervisor(scene.cluster, "A", None, 0.0)
                await supervisor.run()
                await trio.sleep(1)

        done = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_alive)
            await trio.sleep(1)
            request = StartRequest(workflow_id="poison", workflow="one_step", arguments=codec.encode_arguments(()))
            await scene.put(request)
            with trio.move_on_after(120):
                await trio.sleep(3)
                done = await scene.client.run(one_step, id="other") == "done"
            nursery.cancel_scope.cancel()
        return done, deaths


async def test_h15_a_run_that_kills_whoever_loads_it_costs_a_few_lives_and_not_the_shard(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, deaths = await whoever_loads_it_dies(Shard, monkeypatch)
    assert done
    assert deaths <= 5


async def test_h15_loading_it_again_and_again_kills_every_supervisor(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, deaths = await whoever_loads_it_dies(RecklessShard, monkeypatch)
    assert deaths > 20
    assert not done


class Remembering(RunOwner):
    """Remembers who was told that a start must be the first of its id."""

    assumed_fresh: ClassVar[list[bool]] = []

    def __init__(self, *args: Any, may_assume_fresh: bool, **options: Any) -> None:
        self.assumed_fresh.append(may_assume_fresh)
        super().__init__(*args, may_assume_fresh=may_assume_fresh, **options)


async def test_h15_a_start_that_waited_is_not_taken_for_the_first_of_its_id_by_who_loads_runs_one_by_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Remembering, "assumed_fresh", [])
    async with stage(owner=Remembering) as scene:
        await scene.start("A")
        await scene.client.start(one_long_step, 1000.0, id="w")
        assert Remembering.assumed_fresh == [True]
        for dies, heir in pairwise("ABCDE"):
            await scene.takeover(dies, heir)
            await trio.sleep(1)
        assert Remembering.assumed_fresh == [True, False, False, False, False]
