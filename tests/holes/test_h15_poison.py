"""What nobody can read, and what the engine itself breaks on, stops one run and not the shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import trio
from trio.testing import MockClock

from durablefuture_trio.engine.requests import Inbound
from durablefuture_trio.engine.run_owner import RunOwner
from durablefuture_trio.memory_broker import AppendFate
from durablefuture_trio.ports.broker import Append, Delivery
from durablefuture_trio.protocol.envelope import inbound
from durablefuture_trio.supervisor._shard import Shard
from tests._support.holes import SUBJECTS, Stage, one_step, stage


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
