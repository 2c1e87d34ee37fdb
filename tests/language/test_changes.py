"""Code that changes while runs are open: what blocks, what heals, and how patches let old and new live together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from durablefuture_trio import activity, gather, workflow
from durablefuture_trio.client import Client
from durablefuture_trio.errors import RequestFailedError
from durablefuture_trio.history.events import ActivityScheduled, ChildStarted, MarkerRecorded, SignalReceived
from tests._support.language import Play


@activity
async def charge(number: int) -> int:
    return number


@activity
async def ship(number: int) -> int:
    return 10 * number


@activity
async def ship_by_drone(number: int) -> int:
    return 100 * number


@workflow.signal
def go() -> None: ...


ACTIVITIES = (charge, ship, ship_by_drone)


def version(fn: Callable[..., Awaitable[Any]]) -> Any:
    """A version of the workflow ``flow``."""
    return workflow(name="flow")(fn)


async def went() -> None:
    await workflow.signal_channel(go).receive()


# --- patches ----------------------------------------------------------------------------------------------------------


@version
async def before_the_patch() -> int:
    number = await charge(1)
    await went()
    return await ship(number)


@version
async def with_the_patch() -> int:
    number = await charge(1)
    await went()
    if workflow.patched("drone"):
        return await ship_by_drone(number)
    return await ship(number)


@version
async def with_the_patch_deprecated() -> int:
    number = await charge(1)
    await went()
    workflow.deprecate_patch("drone")
    return await ship_by_drone(number)


@version
async def without_a_word_of_it() -> int:
    number = await charge(1)
    await went()
    return await ship_by_drone(number)


def test_a_run_beyond_the_patch_keeps_the_old_side(play: Play) -> None:
    gate = play.gate()

    @activity(name="ship")
    async def held_ship(number: int) -> int:
        await gate.passed()
        return 10 * number

    async def scene(client: Client) -> int:
        handle = await client.start("flow", id="w", result_type=int, start_signal=(go, ()))
        await play.began("ship")
        await play.deploy(with_the_patch, charge, held_ship, ship_by_drone)
        gate.open()
        return await handle.result()

    played = play(scene, before_the_patch, charge, held_ship)
    assert played.result == 10
    assert played.events("w", MarkerRecorded) == []


def test_a_run_before_the_patch_takes_the_new_side(play: Play) -> None:
    async def scene(client: Client) -> int:
        handle = await client.start("flow", id="w", result_type=int)
        await play.recorded("w", ActivityScheduled)
        await play.deploy(with_the_patch, *ACTIVITIES)
        await handle.signal(go)
        return await handle.result()

    played = play(scene, before_the_patch, *ACTIVITIES)
    assert played.result == 100
    assert [event.patch for event in played.events("w", MarkerRecorded)] == ["drone"]


def test_a_patched_run_goes_on_under_the_deprecated_patch(play: Play) -> None:
    gate = play.gate()

    @activity(name="ship_by_drone")
    async def held(number: int) -> int:
        await gate.passed()
        return 100 * number

    async def scene(client: Client) -> int:
        handle = await client.start("flow", id="w", result_type=int, start_signal=(go, ()))
        await play.began("ship_by_drone")
        await play.deploy(with_the_patch_deprecated, charge, held)
        gate.open()
        return await handle.result()

    played = play(scene, with_the_patch, charge, ship, held)
    assert played.result == 100
    assert len(played.events("w", MarkerRecorded)) == 1


def test_a_run_under_the_deprecated_patch_goes_on_without_a_word_of_it(play: Play) -> None:
    gate = play.gate()

    @activity(name="ship_by_drone")
    async def held(number: int) -> int:
        await gate.passed()
        return 100 * number

    async def scene(client: Client) -> int:
        handle = await client.start("flow", id="w", result_type=int, start_signal=(go, ()))
        await play.began("ship_by_drone")
        await play.deploy(without_a_word_of_it, charge, held)
        gate.open()
        return await handle.result()

    played = play(scene, with_the_patch_deprecated, charge, held)
    assert played.result == 100
    assert [event.deprecated for event in played.events("w", MarkerRecorded)] == [True]


def test_a_patch_answers_the_same_all_through_a_run(play: Play) -> None:
    @workflow
    async def flow() -> list[bool]:
        answers = []
        for number in range(4):
            answers.append(workflow.patched("loop"))
            await charge(number)
        return answers

    played = play.run(flow, charge)
    assert played.result == [True] * 4
    assert len(played.events("w", MarkerRecorded)) == 1


def test_a_loop_that_began_before_the_patch_stays_with_its_answer(play: Play) -> None:
    gate = play.gate()

    @activity(name="charge")
    async def held(number: int) -> int:
        if number == 1:
            await gate.passed()
        return number

    @version
    async def old() -> list[bool]:
        for number in range(3):
            await held(number)
        return []

    @version
    async def new() -> list[bool]:
        answers = []
        for number in range(3):
            answers.append(workflow.patched("loop"))
            await held(number)
        return answers

    async def scene(client: Client) -> list[bool]:
        handle = await client.start("flow", id="w", result_type=list[bool])
        await play.began("charge", 2)
        await play.deploy(new, held)
        gate.open()
        return await handle.result()

    assert play(scene, old, held).result == [False, False, False]


def test_two_patches_know_their_own_names(play: Play) -> None:
    @version
    async def old() -> str:
        await charge(1)
        if workflow.patched("first"):
            await went()
        return "old"

    @version
    async def new() -> str:
        await charge(1)
        if workflow.patched("first"):
            await went()
        return f"second: {workflow.patched('second')}"

    async def scene(client: Client) -> str:
        handle = await client.start("flow", id="w", result_type=str)
        await play.recorded("w", MarkerRecorded)
        await play.deploy(new, charge)
        await handle.signal(go)
        return await handle.result()

    played = play(scene, old, charge)
    assert played.result == "second: True"
    assert [event.patch for event in played.events("w", MarkerRecorded)] == ["first", "second"]


# --- nondeterminism ---------------------------------------------------------------------------------------------------


@version
async def right() -> list[int]:
    numbers = [await charge(1), await charge(2)]
    await went()
    return [*numbers, await ship(3)]


@version
async def renamed() -> list[int]:
    numbers = [await ship(1), await charge(2)]
    await went()
    return [*numbers, await ship(3)]


@version
async def reordered() -> list[int]:
    await went()
    return [await charge(1), await charge(2), await ship(3)]


@version
async def missing() -> list[int]:
    numbers = [await charge(1)]
    await went()
    return [*numbers, 0, await ship(3)]


@version
async def extra() -> list[int]:
    first = list(await gather(charge.submit(1), ship.submit(7)))
    await went()
    return [*first, await ship(3)]


@version
async def a_child_instead() -> list[int]:
    numbers = [await child(1), await charge(2)]
    await went()
    return [*numbers, await ship(3)]


@version
async def a_sleep_in_between() -> list[int]:
    numbers = [await charge(1)]
    await trio.sleep(3600)
    numbers.append(await charge(2))
    await went()
    return [*numbers, await ship(3)]


@version
async def ended_early() -> list[int]:
    return [await charge(1)]


@workflow
async def child(number: int) -> int:
    await went()
    return number


WRONG = [renamed, reordered, missing, extra, a_child_instead, a_sleep_in_between, ended_early]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.fn.__name__)
def test_wrong_code_blocks_the_run_and_right_code_heals_it(play: Play, wrong: Any) -> None:
    async def scene(client: Client) -> list[object]:
        handle = await client.start("flow", id="w", result_type=list[int])
        await play.recorded("w", ActivityScheduled, 2)
        await trio.sleep(1)
        await play.deploy(wrong, child, *ACTIVITIES)
        with trio.move_on_after(60):
            await handle.signal(go)
        blocked = ""
        with pytest.raises(RequestFailedError) as caught:
            await handle.query("anything")
        blocked = str(caught.value)
        assert "blocked" in blocked
        scheduled = len(play.events("w", ActivityScheduled))
        await play.deploy(right, child, *ACTIVITIES)
        return [scheduled, await handle.result()]

    played = play(scene, right, child, *ACTIVITIES, spare=("supervisor", "worker"), times=2)
    assert played.result == [2, [1, 2, 30]]
    assert played.calls("charge") == 2
    assert played.calls("ship") == 1


def test_a_blocked_run_says_what_was_recorded_what_was_asked_for_and_where(play: Play) -> None:
    async def scene(client: Client) -> list[bool]:
        handle = await client.start("flow", id="w", result_type=list[int])
        await play.recorded("w", ActivityScheduled, 2)
        await trio.sleep(1)
        await play.deploy(renamed, *ACTIVITIES)
        with pytest.raises(RequestFailedError) as caught:
            await handle.query("anything")
        await handle.terminate()
        return [word in str(caught.value) for word in ("charge", "ship", "test_changes.py")]

    assert play(scene, right, *ACTIVITIES, spare=("supervisor", "worker")).result == [True, True, True]


def test_signals_that_come_while_a_run_is_blocked_are_kept(play: Play) -> None:
    @version
    async def good() -> int:
        channel = workflow.signal_channel("number", type=int)
        await charge(1)
        return sum([await channel.receive() for _ in range(5)])

    @version
    async def bad() -> int:
        channel = workflow.signal_channel("number", type=int)
        await ship(1)
        return sum([await channel.receive() for _ in range(5)])

    async def scene(client: Client) -> int:
        handle = await client.start("flow", id="w", result_type=int)
        await play.recorded("w", ActivityScheduled)
        await trio.sleep(1)
        await play.deploy(bad, *ACTIVITIES)
        for number in range(5):
            await handle.signal("number", number)
        await play.deploy(good, *ACTIVITIES)
        return await handle.result()

    played = play(scene, good, *ACTIVITIES)
    assert played.result == 10
    assert len(played.events("w", SignalReceived)) == 5


def test_a_changed_child_blocks_its_parent(play: Play) -> None:
    @workflow
    async def other(number: int) -> int:
        return -number

    @version
    async def good() -> int:
        return await workflow.start_child(child, 4, id="c")

    @version
    async def bad() -> int:
        return await workflow.start_child(other, 4, id="c")

    async def scene(client: Client) -> list[object]:
        handle = await client.start("flow", id="w", result_type=int)
        await play.recorded("w", ChildStarted)
        await play.deploy(bad, child, other)
        with pytest.raises(RequestFailedError, match="blocked"):
            await handle.query("anything")
        await client.handle("c").signal(go)
        await play.deploy(good, child, other)
        return [await handle.result()]

    assert play(scene, good, child, other).result == [4]


def test_a_workflow_that_is_unknown_waits_for_the_code_that_has_it(play: Play) -> None:
    async def scene(client: Client) -> int:
        handle = await client.start("late", 3, id="w", result_type=int)
        await trio.sleep(5)

        @workflow
        async def late(number: int) -> int:
            return await charge(number)

        await play.deploy(late, *ACTIVITIES)
        return await handle.result()

    assert play(scene, child, *ACTIVITIES).result == 3


COUNT = 0


def test_code_that_reads_a_global_another_run_has_changed_is_found_out(play: Play) -> None:
    """In one process it may go well for long; where a replay goes differently, the run is blocked and not wrong."""

    @version
    async def careless() -> int:
        global COUNT
        COUNT += 1
        number = COUNT
        await (charge(1) if number % 2 else ship(1))
        await went()
        return number

    @version
    async def careful() -> int:
        await charge(1)
        await went()
        return 1

    async def scene(client: Client) -> str:
        global COUNT
        COUNT = 0
        handle = await client.start("flow", id="w", result_type=int)
        await play.recorded("w", ActivityScheduled)
        await trio.sleep(1)
        COUNT = 1  # another run was here
        await play.restart()
        with pytest.raises(RequestFailedError) as caught:
            await handle.query("anything")
        await play.deploy(careful, *ACTIVITIES)
        await handle.signal(go)
        assert await handle.result() == 1
        return "blocked" if "blocked" in str(caught.value) else ""

    if play.mode != "live":
        pytest.skip("this code goes differently at every replay, which is what is tested")
    assert play(scene, careless, *ACTIVITIES).result == "blocked"
