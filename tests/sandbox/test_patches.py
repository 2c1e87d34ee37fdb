"""The life of a change in a workflow's code: before it, patched, deprecated, removed; histories of each stage against
the code of the others."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from durablefuture_trio import activity, gather, workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine.commands import Command, RecordMarker, ScheduleActivity
from durablefuture_trio.history.events import MarkerRecorded
from durablefuture_trio.ports.frames import Blocked, Loaded, LoadRun
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import Story, body_of
from tests._support.stories import result_of

PATCH = "ship-by-drone"


@activity
async def charge() -> str:
    return ""


@activity
async def ship() -> str:
    return ""


@activity
async def drone() -> str:
    return ""


async def before() -> str:
    await charge()
    return await ship()


async def patched() -> str:
    await charge()
    if workflow.patched(PATCH):
        return await drone()
    return await ship()


async def deprecated() -> str:
    await charge()
    workflow.deprecate_patch(PATCH)
    return await drone()


async def removed() -> str:
    await charge()
    return await drone()


STAGES: dict[str, Any] = {"before": before, "patched": patched, "deprecated": deprecated, "removed": removed}


def host_with(body: Any) -> ReplayHost:
    return ReplayHost(Registry.of([workflow(name="order")(body)]).workflows)


def story_of(stage: str) -> Story:
    """A run of the code of a stage, which has come past the change."""
    story = Story(host_with(STAGES[stage]), "order")
    story.start()
    story.complete(1, "charged")
    return story


def asked(commands: list[Command]) -> list[str]:
    return [
        command.name if isinstance(command, ScheduleActivity) else getattr(command, "patch", type(command).__name__)
        for command in commands
    ]


def test_a_new_run_takes_the_new_side_and_records_it() -> None:
    story = story_of("patched")
    assert asked(story.commands) == [PATCH, "drone"]
    marker = story.commands[0]
    assert isinstance(marker, RecordMarker)
    assert (marker.deprecated, marker.source.startswith(f"{__file__}:")) == (False, True)


def test_code_without_the_old_side_records_the_patch_as_deprecated() -> None:
    story = story_of("deprecated")
    assert asked(story.commands) == [PATCH, "drone"]
    assert isinstance(story.commands[0], RecordMarker)
    assert story.commands[0].deprecated


COMPATIBLE = {
    ("before", "before"), ("before", "patched"),
    ("patched", "patched"), ("patched", "deprecated"),
    ("deprecated", "patched"), ("deprecated", "deprecated"), ("deprecated", "removed"),
    ("removed", "deprecated"), ("removed", "removed"),
}  # fmt: skip
"""History of the first, code of the second. A history of removed code has no marker, so code that has both sides takes
the old one: back to it there is no way."""


@pytest.mark.parametrize("code", STAGES)
@pytest.mark.parametrize("history", STAGES)
def test_each_stage_replays_the_histories_it_may_meet_and_blocks_on_the_others(history: str, code: str) -> None:
    story = story_of(history)
    answer = story.replay(host := host_with(STAGES[code]))
    if (history, code) in COMPATIBLE:
        assert isinstance(answer, Loaded), answer
        assert answer.unmatched == ()
        story.host = host
        story.complete(2, "shipped")
        assert result_of(story) == "shipped"
    else:
        assert isinstance(answer, Blocked)
        assert answer.kind == "nondeterminism"


def test_a_run_that_has_not_come_to_the_change_takes_the_new_side_when_it_does() -> None:
    for code in ("patched", "deprecated"):
        story = Story(host_with(before), "order")
        story.start()
        story.host = host_with(STAGES[code])
        assert isinstance(story.replay(), Loaded)
        assert asked(story.complete(1, "")) == [PATCH, "drone"]


async def loop() -> list[bool]:
    seen = []
    for _ in range(3):
        await charge()
        seen.append(workflow.patched(PATCH))
    return seen


def test_within_a_run_the_answer_never_changes_and_is_recorded_once() -> None:
    story = Story(host_with(loop), "order")
    story.start()
    for call in (1, 2, 3):
        assert isinstance(story.replay(), Loaded)
        story.complete(call, "")
    assert result_of(story) == [True, True, True]
    assert sum(isinstance(event, MarkerRecorded) for event in story.events) == 1


async def loop_before() -> list[bool]:
    for _ in range(3):
        await charge()
    return []


def test_a_run_that_took_the_old_side_stays_on_it_beyond_its_history() -> None:
    story = Story(host_with(loop_before), "order")
    story.start()
    story.complete(1, "")
    story.host = host_with(loop)
    assert isinstance(story.replay(), Loaded)
    story.complete(2, "")
    assert isinstance(story.replay(), Loaded)
    story.complete(3, "")
    assert result_of(story) == [False, False, False]
    assert not any(isinstance(event, MarkerRecorded) for event in story.events)


async def two_patches() -> list[bool]:
    both = [workflow.patched("one")]
    await charge()
    both.append(workflow.patched("two"))
    await charge()
    return both


def test_patches_are_told_apart_by_their_ids() -> None:
    async def only_one() -> list[bool]:
        both = [workflow.patched("one")]
        await charge()
        await charge()
        return both

    story = Story(host_with(only_one), "order")
    story.start()
    story.complete(1, "")
    story.host = host_with(two_patches)
    assert isinstance(story.replay(), Loaded)
    story.complete(2, "")
    assert result_of(story) == [True, False]


def test_the_marker_stands_in_its_place_among_the_commands() -> None:
    async def body() -> None:
        futures = [charge.submit()]
        workflow.patched(PATCH)
        futures.append(ship.submit())
        await gather(*futures)

    story = Story(host_with(body), "order")
    assert asked(story.start()) == ["charge", PATCH, "ship"]


# --- histories whose writer died --------------------------------------------------------------------------------------


def test_a_run_of_whose_activation_nothing_is_recorded_takes_the_new_side() -> None:
    story = Story(host_with(before), "order")
    story.start()
    story.complete(1, "")
    cut = body_of(story.run_id, story.commits[1][:1], number=2, finished=False)
    answer = story.replay(host_with(patched), bodies=(story.bodies()[0], cut))
    assert isinstance(answer, Loaded)
    assert asked(list(answer.unmatched)) == [PATCH, "drone"]


def test_a_run_that_was_blocked_from_its_first_step_on_takes_the_new_side() -> None:
    async def at_once() -> str:
        return await drone() if workflow.patched(PATCH) else await ship()

    story = Story(host_with(at_once), "order")
    started = body_of(story.run_id, [story.started()], number=1, finished=False)
    answer = story.replay(bodies=(started,))
    assert isinstance(answer, Loaded)
    assert asked(list(answer.unmatched)) == [PATCH, "drone"]


def test_a_run_of_whose_activation_something_is_recorded_stays_on_the_old_side() -> None:
    async def old() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(charge)
            nursery.start_soon(ship)

    async def new() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(charge)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(drone if workflow.patched(PATCH) else ship)

    story = Story(host_with(old), "order")
    story.start()
    cut = body_of(story.run_id, story.commits[0][:2], number=1, finished=False)
    answer = story.replay(host_with(new), bodies=(cut,))
    assert isinstance(answer, Loaded)
    assert asked(list(answer.unmatched)) == ["ship"]


@pytest.mark.parametrize("recorded", [0, 1, 2])
def test_a_run_whose_code_has_come_past_what_is_recorded_takes_the_new_side(recorded: int) -> None:
    async def body() -> None:
        futures = [charge.submit(), charge.submit()]
        futures.append(drone.submit() if workflow.patched(PATCH) else ship.submit())
        await gather(*futures)

    story = Story(host_with(body), "order")
    everything = asked(story.start())
    cut = body_of(story.run_id, story.commits[0][: 1 + recorded], number=1, finished=False)
    answer = story.replay(host_with(body), bodies=(cut,))
    assert isinstance(answer, Loaded)
    assert asked(list(answer.unmatched)) == everything[recorded:] == ["charge", "charge", PATCH, "drone"][recorded:]


def test_what_follows_in_a_later_chunk_counts_as_recorded() -> None:
    story = story_of("before")
    host = host_with(patched)
    first = body_of(story.run_id, story.commits[0], number=1)
    stimulus = body_of(story.run_id, story.commits[1][:1], number=2, finished=False)
    rest = body_of(story.run_id, story.commits[1][1:], number=3)
    host.handle(LoadRun(exchange=1, run_id=story.run_id, commits=(first, stimulus), first=True))
    (answer,) = host.handle(LoadRun(exchange=2, run_id=story.run_id, commits=(rest,), last=True))
    assert isinstance(answer, Loaded), answer
    assert answer.unmatched == ()


# --- misuse -----------------------------------------------------------------------------------------------------------


def test_ids_have_to_be_text_and_a_run_has_to_be_there() -> None:
    for helper in (workflow.patched, workflow.deprecate_patch):
        for wrong, error in ((5, TypeError), ("", ValueError)):
            with pytest.raises(error, match="the id of a patch"):
                helper(wrong)  # type: ignore[operator, arg-type] # wrong on purpose
        with pytest.raises(RuntimeError, match="only in the code of a running workflow"):
            helper(PATCH)  # type: ignore[operator] # a method like any other
