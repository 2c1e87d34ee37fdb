"""One child process: how it starts, how it ends, and what the supervisor knows of both."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.engine.attempts import ActivityKey, AttemptCompleted, RunActivity
from durablefuture_trio.ports.frames import FRAME_VERSION, Hello, Ready, WorkerUp
from durablefuture_trio.supervisor._channel import Outbox
from durablefuture_trio.supervisor._children import Child, ChildSpec, Ended, ExitStatus

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 20.0


def fake(mode: str = "", **changes: Any) -> ChildSpec:
    hello = Hello(version=FRAME_VERSION, name="c0", modules=(), sys_path=(), settings={"mode": mode})
    return ChildSpec(
        **{
            "module": "tests._support.fake_child",
            "hello": hello,
            "up_type": WorkerUp,
            "start_timeout_s": DEADLINE_S,
            "environment": {"PYTHONPATH": str(REPOSITORY)},
            **changes,
        }
    )


def activity(name: str, activity_id: int = 1, arguments: bytes = b"[]") -> RunActivity:
    return RunActivity(key=ActivityKey("r", activity_id, 1), workflow_id="w", name=name, arguments=Payload(arguments))


class Running:
    """A child that is being served in a nursery, with what it has sent."""

    def __init__(self, spec: ChildSpec, outbox: Outbox, exit_grace_s: float = 0.0) -> None:
        self.frames: list[Any] = []
        self.ready: Ready | None = None
        self.ended: Ended | None = None
        self._exit_grace_s = exit_grace_s
        self.child = Child(spec, outbox, self._on_ready, self.frames.append)

    def _on_ready(self, child: Child, ready: Ready) -> None:
        self.ready = ready

    async def run(self) -> Ended:
        with trio.fail_after(DEADLINE_S):
            self.ended = await self.child.run(lambda: self._exit_grace_s)
        return self.ended


def gone(pid: int) -> bool:
    """Whether there is no such process any more, not even as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_child_that_is_greeted_answers_ready_and_runs_what_it_is_sent(outbox: Outbox, eventually: Any) -> None:
    running = Running(fake(), outbox)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        assert running.ready is not None
        assert running.ready.pid == running.child.pid
        running.child.send(activity("echo", arguments=b"[1]"))
        await eventually(lambda: len(running.frames) == 2)
        outcome = running.frames[-1]
        assert isinstance(outcome, AttemptCompleted)
        assert outcome.result == Payload(b"[1]")
        nursery.cancel_scope.cancel()
    assert gone(running.child.pid)


async def test_the_lines_a_child_logs_come_out_of_logging(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    running = Running(fake(), outbox)
    with caplog.at_level(logging.INFO, "fake"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await eventually(lambda: running.ready)
            nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records if record.name == "fake"] == ["hello c0"]


async def test_frames_sent_together_share_one_write(outbox: Outbox, eventually: Any) -> None:
    running = Running(fake(), outbox)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        writes: list[int] = []
        plain_write = running.child._channel._write

        def counted() -> bool:
            writes.append(running.child.backlog_bytes)
            return plain_write()

        running.child._channel._write = counted  # type: ignore[method-assign]  # to count system calls
        for number in range(50):
            running.child.send(activity("echo", number))
        assert writes == []
        await eventually(lambda: len(running.frames) == 100)
        assert len(writes) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("die", Ended(status=ExitStatus(3), was_ready=False)),
        (
            "refuse",
            Ended(
                status=ExitStatus(-signal.SIGKILL),
                was_ready=False,
                problems=("shop.py:3: no such thing", "shop.py:9: nor this"),
            ),
        ),
        ("garbage", Ended(status=ExitStatus(-signal.SIGKILL), was_ready=False)),
    ],
)
async def test_a_child_that_does_not_become_ready_says_why(outbox: Outbox, mode: str, expected: Ended) -> None:
    running = Running(fake(mode), outbox)
    ended = await running.run()
    if mode == "refuse":  # it may exit by itself before it is killed
        assert ended.problems == expected.problems
        assert not ended.was_ready
    else:
        assert ended == expected
    assert gone(running.child.pid)


async def test_a_child_of_another_frame_version_is_refused_with_the_remedy(outbox: Outbox) -> None:
    ended = await Running(fake("old"), outbox).run()
    assert "restart the supervisor after an upgrade" in ended.problems[0]


async def test_a_child_that_is_not_ready_in_time_is_killed(outbox: Outbox) -> None:
    running = Running(fake("mute", start_timeout_s=0.3), outbox)
    ended = await running.run()
    assert ended == Ended(status=ExitStatus(-signal.SIGKILL), was_ready=False, late=True)
    assert gone(running.child.pid)


@pytest.mark.parametrize(
    ("name", "words"),
    [("crash", "was killed by SIGSEGV"), ("exit", "exited with code 7"), ("fork", "exited with code 7")],
)
async def test_the_end_of_a_child_is_told_in_words_even_when_its_children_hold_the_socket(
    outbox: Outbox, name: str, words: str, eventually: Any
) -> None:
    running = Running(fake(), outbox)
    running.child.send(activity("echo"))
    running.child.send(activity(name, 2))
    ended = await running.run()
    assert str(ended.status) == words
    assert ended.was_ready
    assert any(isinstance(frame, AttemptCompleted) for frame in running.frames), "what came before the end counts"
    assert gone(running.child.pid)
    await eventually(lambda: no_process_of_group(running.child.pid))


def no_process_of_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_cancelled_idle_child_is_given_its_grace_and_exits_by_itself(outbox: Outbox, eventually: Any) -> None:
    running = Running(fake(), outbox, exit_grace_s=DEADLINE_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        nursery.cancel_scope.cancel()
    assert running.child._process.returncode == 0


async def test_a_cancelled_child_that_does_not_heed_the_bye_is_killed_after_its_grace(
    outbox: Outbox, eventually: Any
) -> None:
    running = Running(fake("deaf"), outbox, exit_grace_s=0.2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        nursery.cancel_scope.cancel()
    assert running.child._process.returncode == -signal.SIGKILL


async def test_a_child_that_does_not_read_never_blocks_the_sender_and_gets_everything_once_it_reads(
    outbox: Outbox, eventually: Any
) -> None:
    running = Running(fake(), outbox)
    big = b"[" + b"1," * 500_000 + b"1]"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        running.child.signal(signal.SIGSTOP)
        started = time.monotonic()
        for number in range(20):
            running.child.send(activity("echo", number, big))
        await trio.testing.wait_all_tasks_blocked()
        assert time.monotonic() - started < 5
        assert running.child.backlog_bytes > 18_000_000
        running.child.signal(signal.SIGCONT)
        await eventually(lambda: sum(isinstance(frame, AttemptCompleted) for frame in running.frames) == 20)
        assert running.child.backlog_bytes == 0
        nursery.cancel_scope.cancel()


async def test_a_child_that_never_reads_is_killed_when_too_much_waits_for_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr("durablefuture_trio.supervisor._children.BACKLOG_LIMIT_BYTES", 10_000_000)
    running = Running(fake("deaf"), outbox)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run)
        await eventually(lambda: running.ready)
        for number in range(20):
            running.child.send(activity("echo", number, b"x" * 1_000_000))
        await eventually(lambda: running.ended)
    assert running.ended is not None
    assert running.ended.status == ExitStatus(-signal.SIGKILL)


async def test_a_child_ends_when_its_supervisor_is_gone(outbox: Outbox, eventually: Any) -> None:
    """The supervisor's death closes the socket; nothing else tells the child."""
    code = """
import os, sys, trio
from durablefuture_trio.ports.frames import FRAME_VERSION, Hello, WorkerUp
from durablefuture_trio.supervisor._channel import Outbox
from durablefuture_trio.supervisor._children import Child, ChildSpec
async def main():
    outbox = Outbox(); trio.lowlevel.add_instrument(outbox)
    hello = Hello(version=FRAME_VERSION, name="c", modules=(), sys_path=())
    spec = ChildSpec(module="tests._support.fake_child", hello=hello, up_type=WorkerUp, start_timeout_s=20)
    def ready(child, frame):
        print(child.pid, flush=True)
        os.kill(os.getpid(), 9)
    await Child(spec, outbox, ready, print).run(lambda: 0.0)
trio.run(main)
"""
    done = await trio.run_process(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_stdout=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    await eventually(lambda: gone(int(done.stdout)))
