"""The real child process, as its supervisor sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durablefuture_trio.authoring._workflow import workflow
from durablefuture_trio.authoring.registry import pickle_definitions
from durablefuture_trio.codec import decode_value
from durablefuture_trio.ports.activation_page import PAGE_BYTES, ActivationPage
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activate,
    Activated,
    Blocked,
    Bye,
    Evicted,
    Hello,
    Loaded,
    LogLine,
    Missing,
    Ready,
    Refused,
)
from tests._support.sandbox import START, SandboxProcess, Story, one

WORKFLOWS = "tests._support.sandbox_workflows"
ROOT = Path(__file__).parents[2]


def ready_child(**options: object) -> SandboxProcess:
    child = SandboxProcess([WORKFLOWS], **options)  # type: ignore[arg-type]  # passed on
    assert isinstance(child.receive(), Ready)
    return child


def story_in(child: SandboxProcess, workflow_name: str, *arguments: object, run_id: str = "run-1") -> Story:
    return Story(child, workflow_name, arguments, run_id=run_id)


def eventually(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@contextmanager
def memory_files(*names: str) -> Iterator[list[int]]:
    fds = [os.memfd_create(name) for name in names]
    for fd in fds:
        os.ftruncate(fd, PAGE_BYTES)
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


# --- getting ready ----------------------------------------------------------------------------------------------------


def test_the_child_runs_a_workflow_with_activity_calls_from_start_to_result_and_replays_it() -> None:
    with SandboxProcess([WORKFLOWS]) as child:
        ready = child.receive()
        assert isinstance(ready, Ready)
        assert (ready.version, ready.pid) == (FRAME_VERSION, child.process.pid)
        assert "total" in ready.workflows
        assert "add" in ready.activities
        assert len(ready.code_hash) == 64
        story = story_in(child, "total", 2)
        (schedule,) = story.start()
        assert (schedule.call, schedule.name, schedule.arguments.data) == (1, "add", b"[0,0]")  # type: ignore[union-attr]
        story.complete(1, 0)
        (complete,) = story.complete(2, 1)
        assert complete.result.data == b"1"  # type: ignore[union-attr]
        assert story.replay() == Loaded(exchange=1, run_id="run-1", unmatched=(), wake_at=None)


def test_definitions_that_cannot_be_imported_come_with_the_greeting() -> None:
    @workflow
    async def local() -> str:
        return "from a closure"

    with SandboxProcess([], pickled=pickle_definitions([local])) as child:
        assert one([child.receive()], Ready).workflows == ("local",)
        (command,) = story_in(child, "local").start()
        assert decode_value(command.result, str) == "from a closure"  # type: ignore[union-attr]


def test_a_module_that_cannot_be_imported_is_refused_with_the_problem() -> None:
    with SandboxProcess(["shop.workflows"]) as child:
        (problem,) = one([child.receive()], Refused).problems
        assert "shop.workflows" in problem
        assert child.process.wait(10) == 78


def test_another_frame_version_is_refused() -> None:
    child = SandboxProcess([], hello=Hello(version=FRAME_VERSION + 1, name="x", modules=(), sys_path=()))
    with child:
        (problem,) = one([child.receive()], Refused).problems
        assert str(FRAME_VERSION + 1) in problem


def test_the_child_loads_neither_asyncio_nor_nats() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import durablefuture_trio.sandbox.__main__, durablefuture_trio.sandbox._logs\n"
        "import durablefuture_trio.authoring.registry\n"
        "print([name for name in ('asyncio', 'nats', 'trio_asyncio', 'cloudpickle') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout == "[]\n"


def test_the_surroundings_are_the_same_everywhere() -> None:
    with ready_child(environment={"TZ": "Asia/Tokyo"}) as child:
        (command,) = story_in(child, "surroundings").start()
        assert decode_value(command.result, list[str]) == ["UTC", "0", str(START), str(START)]  # type: ignore[union-attr]


# --- its end ----------------------------------------------------------------------------------------------------------


def test_the_child_exits_at_the_end_of_the_file_without_running_code_of_cached_runs() -> None:
    with ready_child() as child:
        story_in(child, "total", 2).start()
        child.sock.close()
        assert child.process.wait(10) == 0


def test_bye_ends_the_child() -> None:
    with ready_child() as child:
        child.send(Bye())
        assert child.process.wait(10) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_child_dies_with_its_parent_even_in_the_middle_of_an_activation() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; sys.path.insert(0, '.')\n"
            "from tests._support.sandbox import SandboxProcess, Story, START\n"
            f"child = SandboxProcess([{WORKFLOWS!r}]); child.receive()\n"
            "print(child.process.pid, flush=True)\n"
            "Story(child, 'spin').start()\n",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    eventually(lambda: cpu_of(pid) > 0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")


def cpu_of(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_sigint_does_not_end_up_in_workflow_code() -> None:
    with ready_child() as child:
        story = story_in(child, "total", 2)
        story.start()
        child.process.send_signal(signal.SIGINT)
        story.complete(1, 0)


# --- what a supervisor watches ----------------------------------------------------------------------------------------


def test_a_deadlocked_activation_shows_on_the_page_and_leaves_its_stack() -> None:
    with memory_files("page", "stack") as (page_fd, stack_fd):
        settings = {"activity_fd": page_fd, "stack_fd": stack_fd}
        page = ActivationPage(page_fd)
        with ready_child(settings=settings, pass_fds=(page_fd, stack_fd)) as child:
            assert not page.read().busy
            story_in(child, "total", 2).start()
            eventually(lambda: page.read().counter == 2)
            stimulus = story_in(child, "spin", run_id="run-2").started()
            child.send(Activate(exchange=77, run_id="run-2", activation=1, stimulus=stimulus))
            eventually(lambda: page.read().busy)
            state = page.read()
            assert (state.counter, state.exchange) == (3, 77)
            eventually(lambda: cpu_of(child.process.pid) - state.cpu_ns / 1e9 > 0.2)
            assert page.read() == state
            child.process.send_signal(signal.SIGUSR1)
            eventually(lambda: b"sandbox_workflows.py" in os.pread(stack_fd, 65536, 0))
            assert b"in spin" in os.pread(stack_fd, 65536, 0)
            child.process.kill()
            child.process.wait()
        page.close()


def test_a_workflow_that_hoards_memory_is_blocked_and_the_others_go_on() -> None:
    with ready_child(settings={"memory_limit_mb": 200}) as child:
        good = story_in(child, "total", 2)
        good.start()
        greedy = story_in(child, "hoard", run_id="run-2")
        with pytest.raises(AssertionError) as caught:
            greedy.start()
        blocked = caught.value.args[0]
        assert isinstance(blocked, Blocked)
        assert blocked.kind == "crashed"
        assert "memory_limit_mb" in blocked.message
        assert child.receive() == Evicted(run_id="run-1")
        assert isinstance(good.replay(), Loaded)
        good.complete(1, 0)


def test_a_child_that_exits_in_an_activation_is_named_by_the_page() -> None:
    with memory_files("page") as (page_fd,):
        page = ActivationPage(page_fd)
        with ready_child(settings={"activity_fd": page_fd}, pass_fds=(page_fd,)) as child:
            stories = [story_in(child, "total", 1), story_in(child, "exit_now", run_id="run-2")]
            child.send(
                *(
                    Activate(exchange=number, run_id=story.run_id, activation=1, stimulus=story.started())
                    for number, story in enumerate(stories, start=1)
                )
            )
            assert child.process.wait(10) == 3
            assert page.read().busy
            assert page.read().exchange == 2
        page.close()


# --- many questions at once -------------------------------------------------------------------------------------------


def test_questions_sent_together_are_answered_in_order() -> None:
    with ready_child(settings={"cached_workflows": 2000}) as child:
        stories = [story_in(child, "total", 1, run_id=f"run-{number}") for number in range(1000)]
        child.send(
            *(
                Activate(exchange=number, run_id=story.run_id, activation=1, stimulus=story.started())
                for number, story in enumerate(stories)
            )
        )
        answers = [child.receive() for _ in stories]
        assert [(type(answer), answer.exchange) for answer in answers] == [  # type: ignore[union-attr]
            (Activated, number) for number in range(1000)
        ]


def test_runs_beyond_the_cache_are_evicted_and_missing_later() -> None:
    with ready_child(settings={"cached_workflows": 1}) as child:
        first, second = story_in(child, "total", 2), story_in(child, "total", 2, run_id="run-2")
        first.start()
        second.start()
        with pytest.raises(AssertionError) as caught:
            first.complete(1, 0)
        assert isinstance(caught.value.args[0], Missing)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_log_records_of_workflow_code_come_up_as_frames_and_not_again_when_history_is_replayed() -> None:
    with ready_child() as child:
        story = story_in(child, "chatty")
        story.start()
        line = one(story.frames, LogLine)
        assert (line.level, line.logger, line.message, line.run_id) == ("WARNING", "shop", "before 1", "run-1")
        story.complete(1, "HEY")
        assert one(story.frames, LogLine).message == "after"
        story.replay()
        assert not [frame for frame in story.frames if isinstance(frame, LogLine)]
        child.sock.close()
        assert child.process.stderr is not None
        assert b"to standard output" in child.process.stderr.read()
