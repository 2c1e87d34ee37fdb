"""The replay process as a value: which question gets which answer."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from durablefuture_trio import codec
from durablefuture_trio.authoring._activity import activity
from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import Registry
from durablefuture_trio.engine.commands import CompleteWorkflow, ScheduleActivity
from durablefuture_trio.history.commit import SCHEMA_VERSION
from durablefuture_trio.history.events import ActivityScheduled
from durablefuture_trio.ports.frames import (
    Blocked,
    Bye,
    Evict,
    Evicted,
    Loaded,
    LoadRun,
    LogLine,
    Missing,
)
from durablefuture_trio.sandbox import _host, _trio_driver
from durablefuture_trio.sandbox._host import ReplayHost
from tests._support.sandbox import CODE_HASH, Story, body_of, one


@activity
async def step(number: int) -> Any:
    return number


@activity
async def other(number: int) -> Any:
    return number


@workflow
async def three_steps() -> int:
    for number in range(3):
        await step(number)
    return 3


def host_of(*definitions: Any, **options: Any) -> ReplayHost:
    return ReplayHost(Registry.of(definitions or (three_steps,)).workflows, **options)


def story_in(host: ReplayHost, run_id: str = "run-1") -> Story:
    return Story(host, "three_steps", run_id=run_id)


# --- activation and the cache -----------------------------------------------------------------------------------------


def test_a_run_that_is_not_cached_is_missing() -> None:
    story = story_in(host_of())
    story.start()
    story.host = host_of()
    stimulus = story.commits[0][0]
    story.activations = 1
    assert isinstance(story.ask(stimulus), Missing)  # type: ignore[arg-type]


def test_a_run_at_another_activation_is_missing_and_dropped() -> None:
    host = host_of()
    story = story_in(host)
    story.start()
    story.activations = 2
    with pytest.raises(AssertionError) as caught:
        story.complete(1)
    assert isinstance(caught.value.args[0], Missing)
    assert host.cached == ()


def test_a_second_start_of_a_cached_run_begins_anew() -> None:
    host = host_of()
    story = story_in(host)
    story.start()
    story.complete(1)
    again = story_in(host)
    (schedule,) = again.start()
    assert isinstance(schedule, ScheduleActivity)
    assert schedule.call == 1
    again.complete(1)


def test_the_least_recently_used_run_makes_room_and_is_reported() -> None:
    host = host_of(cached_workflows=2)
    stories = [story_in(host, f"run-{number}") for number in range(3)]
    stories[0].start()
    stories[1].start()
    stories[0].complete(1)
    stories[2].start()
    assert one(stories[2].frames, Evicted).run_id == "run-1"
    assert host.cached == ("run-0", "run-2")


def test_a_cache_of_no_runs_still_gets_work_done() -> None:
    host = host_of(cached_workflows=0)
    story = story_in(host)
    story.start()
    assert one(story.frames, Evicted).run_id == "run-1"
    for call in (1, 2, 3):
        assert isinstance(story.replay(), Loaded)
        assert host.cached == ("run-1",)
        commands = story.complete(call)
    assert isinstance(commands[-1], CompleteWorkflow)
    assert host.cached == ()


def test_runs_loaded_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "MAX_LOADED_AHEAD", 2)
    host = host_of(cached_workflows=1)
    for number in range(5):
        story = story_in(host_of(), f"run-{number}")
        story.start()
        story.replay(host)
    assert host.cached == ("run-3", "run-4")


def test_an_evicted_run_is_forgotten_and_not_answered() -> None:
    host = host_of()
    story = story_in(host)
    story.start()
    assert host.handle(Evict(run_id="run-1")) == []
    assert host.handle(Evict(run_id="run-1")) == []
    assert host.cached == ()


def test_a_finished_run_leaves_the_cache() -> None:
    host = host_of()
    story = story_in(host)
    story.start()
    for call in (1, 2, 3):
        story.complete(call)
    assert host.cached == ()
    assert story.wake_at is None


def test_bye_is_for_the_process() -> None:
    assert host_of().handle(Bye()) == []


# --- what blocks a run ------------------------------------------------------------------------------------------------


def blocked_by(story: Story) -> Blocked:
    with pytest.raises(AssertionError) as caught:
        story.start()
    answer = caught.value.args[0]
    assert isinstance(answer, Blocked)
    assert story.host.cached == ()
    return answer


def test_an_unknown_workflow_blocks_and_the_registered_ones_are_named() -> None:
    answer = blocked_by(Story(host_of(), "order"))
    assert answer.kind == "unknown_workflow"
    assert answer.message == (
        "workflow 'order' is not registered here. Registered are: three_steps. Add the module that defines it to "
        "`modules`, or run a supervisor that has it."
    )


def test_arguments_that_cannot_be_rebuilt_block() -> None:
    @workflow
    async def typed(count: int) -> None: ...

    answer = blocked_by(Story(host_of(typed), "typed", ["not a number"]))
    assert answer.kind == "undecodable"
    assert "$[0]" in answer.message


def test_a_memory_error_blocks_instead_of_failing() -> None:
    @workflow
    async def greedy() -> None:
        async with trio.open_nursery():
            raise MemoryError

    answer = blocked_by(Story(host_of(greedy), "greedy"))
    assert answer.kind == "crashed"
    assert "memory_limit_mb" in answer.message


def test_misuse_of_trio_blocks_this_run_alone() -> None:
    @workflow
    async def misuser() -> None:
        async def crash() -> None:
            raise ValueError("in a system task")

        trio.lowlevel.spawn_system_task(crash)
        await trio.sleep(1)

    host = host_of(misuser, three_steps)
    good = story_in(host)
    good.start()
    with pytest.raises(AssertionError) as caught:
        Story(host, "misuser", run_id="run-2").start()
    answer = caught.value.args[0]
    assert answer.kind == "crashed"
    assert "trio.lowlevel" in answer.message
    assert "in a system task" in answer.stack
    good.complete(1)


def test_after_a_block_the_run_can_be_loaded_with_right_code() -> None:
    story = story_in(host_of())
    story.start()
    assert isinstance(story.replay(host_of(misnamed := _renamed("elsewhere"))), Blocked)
    assert misnamed.name == "elsewhere"
    assert isinstance(story.replay(host_of()), Loaded)


def _renamed(name: str) -> Any:
    @workflow(name=name)
    async def main() -> None: ...

    return main


# --- replay -----------------------------------------------------------------------------------------------------------


def changed(body: Any) -> ReplayHost:
    return ReplayHost({"three_steps": workflow(name="three_steps")(body)})


def test_changed_code_blocks_with_both_sides_and_the_line() -> None:
    async def body() -> None:
        await step(0)
        await other(1)

    story = story_in(host_of())
    story.start()
    story.complete(1)
    answer = story.replay(changed(body))
    assert isinstance(answer, Blocked)
    assert (answer.kind, answer.recorded, answer.produced) == (
        "nondeterminism",
        "schedule activity 2 'step'",
        "schedule activity 2 'other'",
    )
    assert answer.source.startswith(f"{__file__}:")


def test_code_that_asks_for_less_or_more_blocks() -> None:
    async def less() -> None:
        await trio.sleep_forever()

    async def more() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(step, 0)
            nursery.start_soon(step, 1)

    story = story_in(host_of())
    story.start()
    assert one([story.replay(changed(less))], Blocked).produced == ""
    assert one([story.replay(changed(more))], Blocked).recorded == ""


def test_an_outcome_of_a_call_that_is_not_open_blocks() -> None:
    story = story_in(host_of())
    story.start()
    story.complete(1)
    again = body_of("run-1", [msgspec.structs.replace(story.commits[1][0], id=4)], number=3, finished=False)
    answer = story.replay(bodies=(*story.bodies(), again))
    assert isinstance(answer, Blocked)
    assert answer.kind == "nondeterminism"
    assert "activity call 1" in answer.message


def test_other_arguments_are_logged_and_block_if_it_was_this_very_code_that_wrote_others() -> None:
    async def body() -> None:
        await step(77)
        await trio.sleep_forever()

    story = story_in(host_of())
    story.start()
    assert isinstance(story.replay(changed(body)), Loaded)
    assert "77" in one(story.frames, LogLine).message
    strict = changed(body)
    strict._strict_code = "written by other code"
    assert isinstance(story.replay(strict), Loaded)
    strict._strict_code = CODE_HASH
    assert one([story.replay(strict)], Blocked).kind == "nondeterminism"


def test_a_history_comes_in_chunks_and_is_answered_after_the_last() -> None:
    story = story_in(host_of())
    story.start()
    story.complete(1)
    story.complete(2)
    bodies = story.bodies()
    host = host_of()

    def load(exchange: int, commits: tuple[bytes, ...], **place: bool) -> list[Any]:
        return host.handle(LoadRun(exchange=exchange, run_id="run-1", commits=commits, **place))

    assert load(1, bodies[:1], first=True) == []
    assert host.cached == ()
    assert load(2, bodies[1:2]) == []
    assert load(3, bodies[2:], last=True) == [Loaded(exchange=3, run_id="run-1", unmatched=(), wake_at=None)]
    story.host = host
    assert isinstance(story.complete(3)[-1], CompleteWorkflow)


def test_a_load_that_fails_in_the_middle_is_answered_after_the_last_chunk() -> None:
    story = story_in(host_of())
    story.start()
    host = host_of()
    assert host.handle(LoadRun(exchange=1, run_id="run-1", commits=(b"rubbish",), first=True)) == []
    assert host.handle(LoadRun(exchange=2, run_id="run-1", commits=story.bodies())) == []
    (answer,) = host.handle(LoadRun(exchange=3, run_id="run-1", commits=(), last=True))
    assert isinstance(answer, Blocked)
    assert (answer.exchange, answer.kind) == (3, "history")


def test_a_load_that_was_stopped_by_an_evict_is_missing_at_its_end() -> None:
    story = story_in(host_of())
    story.start()
    host = host_of()
    host.handle(LoadRun(exchange=1, run_id="run-1", commits=story.bodies(), first=True))
    host.handle(Evict(run_id="run-1"))
    assert host.handle(LoadRun(exchange=2, run_id="run-1", commits=(), last=True)) == [
        Missing(exchange=2, run_id="run-1")
    ]


def test_a_corrupt_commit_blocks_and_its_number_is_named() -> None:
    story = story_in(host_of())
    story.start()
    answer = story.replay(bodies=(*story.bodies(), b"\x00rubbish"))
    assert isinstance(answer, Blocked)
    assert answer.kind == "history"
    assert "run-1" in answer.message
    assert "number 2" in answer.message


def test_a_commit_of_a_newer_schema_blocks_and_says_to_run_a_newer_program() -> None:
    story = story_in(host_of())
    story.start()
    newer: dict[str, Any] = msgspec.msgpack.decode(story.bodies()[0])
    newer["schema"] = SCHEMA_VERSION + 1
    answer = story.replay(bodies=(msgspec.msgpack.encode(newer),))
    assert isinstance(answer, Blocked)
    assert answer.kind == "history"
    assert "newer durablefuture-trio" in answer.message


def test_commits_of_another_run_and_histories_without_a_beginning_block() -> None:
    story = story_in(host_of())
    story.start()
    story.complete(1)
    foreign = body_of("run-9", story.commits[1], number=2)
    for bodies, words in (
        ((story.bodies()[0], foreign), "belongs to run run-9"),
        (story.bodies()[1:], "before WorkflowStarted"),
        ((story.bodies()[0], story.bodies()[0]), "second WorkflowStarted"),
    ):
        answer = story.replay(bodies=bodies)
        assert isinstance(answer, Blocked)
        assert answer.kind == "history"
        assert words in answer.message
        assert story.host.cached == ()


def test_a_closed_history_is_replayed_and_not_kept() -> None:
    story = story_in(host_of())
    story.start()
    for call in (1, 2, 3):
        story.complete(call)
    answer = story.replay()
    assert answer == Loaded(exchange=1, run_id="run-1", unmatched=(), wake_at=None)
    assert story.host.cached == ()


def test_owner_events_in_a_history_are_passed_over() -> None:
    story = story_in(host_of())
    story.start()
    retry = ActivityScheduled(id=3, at=story.at, activity_id=1, attempt=2)
    bodies = (*story.bodies(), body_of("run-1", [retry], number=2))
    assert isinstance(story.replay(bodies=bodies), Loaded)


# --- dropping runs ----------------------------------------------------------------------------------------------------

last_words: list[str] = []


@workflow
async def clingy() -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_clinging)
            with trio.fail_after(1000):
                await step(0)
    finally:
        last_words.append("main left")
        try:
            await step(1)
            last_words.append("an activity was called")
        finally:
            Path("/tmp/never-written").write_text("x")  # noqa: ASYNC240 - what must not be done
            last_words.append("a file was written")


async def _clinging() -> None:
    for _ in range(20):
        try:
            await trio.sleep_forever()
        finally:
            last_words.append("child left")
            await trio.sleep(5)
            last_words.append("slept on")


def test_what_a_dropped_run_does_on_its_way_out_has_no_effect(capfd: pytest.CaptureFixture[str]) -> None:
    last_words.clear()
    host = host_of(clingy, three_steps)
    bystander = story_in(host, "run-2")
    bystander.start()
    story = Story(host, "clingy")
    story.start()
    host.handle(Evict(run_id="run-1"))
    host.close_evicted()
    gc.collect()
    assert sorted(set(last_words)) == ["child left", "main left"]
    assert _trio_driver._unclosable == []
    bystander.complete(1)
    assert capfd.readouterr().err == ""


def test_a_coroutine_that_never_ends_is_kept_rather_than_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    stay = True

    @workflow
    async def stubborn() -> None:
        while stay:
            try:
                await trio.sleep_forever()
            except BaseException:  # what the test is about
                continue

    monkeypatch.setattr(_trio_driver, "_unclosable", kept := [])
    host = host_of(stubborn)
    Story(host, "stubborn").start()
    host.close()
    (coroutine,) = kept
    stay = False
    kept.clear()
    _trio_driver._end_coroutine(coroutine)  # freed as it is, it would complain about its nursery, which is in pieces
    assert kept == []


def test_a_memory_error_outside_of_user_code_blocks_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of()
    story, bystander = story_in(host), story_in(host, "run-2")
    story.start()
    bystander.start()
    with monkeypatch.context() as patch:
        patch.setattr(codec, "decode_value", _out_of_memory)
        with pytest.raises(AssertionError) as caught:
            story.complete(1)
    assert caught.value.args[0].kind == "crashed"
    assert "memory_limit_mb" in caught.value.args[0].message
    assert isinstance(bystander.replay(), Loaded)
    assert isinstance(bystander.complete(1)[0], ScheduleActivity)


def test_a_memory_error_makes_half_of_the_cache_go_and_reports_it() -> None:
    @workflow
    async def greedy() -> None:
        raise MemoryError

    host = host_of(greedy, three_steps)
    for number in range(4):
        story_in(host, f"run-{number}").start()
    story = Story(host, "greedy", run_id="run-9")
    assert isinstance(story.ask(story.started()), Blocked)
    assert [frame.run_id for frame in story.frames if isinstance(frame, Evicted)] == ["run-0", "run-1"]
    assert host.cached == ("run-2", "run-3")


def _out_of_memory(*_arguments: Any) -> Any:
    raise MemoryError


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_the_last_words_of_an_abandoned_generator_reach_no_activity_function() -> None:
    ran = []

    @activity
    async def undo() -> None:
        ran.append("the function itself")

    async def rows() -> Any:
        try:
            yield 1
        finally:
            with trio.CancelScope(shield=True):
                await undo()

    @workflow
    async def reader() -> None:
        generator = rows()
        await anext(generator)
        await trio.sleep(10)

    host = host_of(reader)
    Story(host, "reader").start()
    host.close()
    story = Story(host, "reader")
    story.start()
    story.fire()
    assert ran == []


@pytest.mark.parametrize("end", ["dropped", "finished", "blocked"])
def test_the_memory_of_a_run_is_free_at_once_without_garbage_collection(end: str) -> None:
    @workflow
    async def nested() -> None:
        with trio.move_on_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(step, 1)
                with trio.CancelScope(shield=True):
                    await step(2)
                if end == "blocked":
                    raise MemoryError
                nursery.cancel_scope.cancel()

    gc.collect()
    gc.disable()
    try:
        host = host_of(nested)
        story = Story(host, "nested")
        story.start()
        run = weakref.ref(host._runs["run-1"])
        assert run() is not None
        if end == "finished":
            story.complete(1)
            assert isinstance(story.cancelled(2)[0], CompleteWorkflow)
        elif end == "blocked":
            story.complete(1)
            with pytest.raises(AssertionError, match="memory_limit_mb"):
                story.cancelled(2)
        else:
            host.handle(Evict(run_id="run-1"))
        host.close_evicted()
        assert run() is None
    finally:
        gc.enable()
