"""The real activity process, at the other end of a real socketpair."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from durablefuture_trio.codec import encode_arguments
from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    ActivityKey,
    AttemptCompleted,
    AttemptFailed,
    CancelAttempt,
    Hello,
    LogLine,
    Ready,
    RunActivity,
    WorkerUp,
)

ACTIVITIES = "tests._support.worker_activities"
RUN_ID = "a" * 32
DEADLINE_S = 20.0


def hello(modules: Sequence[str] = (ACTIVITIES,), *, pickled: bytes = b"", **settings: Any) -> Hello:
    """A greeting with this process's import path."""
    return Hello(
        version=FRAME_VERSION,
        name="m0/default-0",
        modules=tuple(modules),
        sys_path=tuple(sys.path),
        pickled=pickled,
        settings=settings,
    )


def run_activity(
    name: str, *arguments: Any, activity_id: int = 1, attempt: int = 1, payload: Payload | None = None, **limits: Any
) -> RunActivity:
    """A frame that runs an attempt."""
    return RunActivity(
        key=ActivityKey(RUN_ID, activity_id, attempt),
        workflow_id="order-7",
        name=name,
        arguments=encode_arguments(arguments) if payload is None else payload,
        **limits,
    )


class WorkerProcess:
    """The child and this side's end of the socket."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.process = process
        self.logs: list[LogLine] = []
        self._reader: FrameReader[WorkerUp] = FrameReader(WorkerUp)
        self._frames: list[WorkerUp] = []

    async def send(self, *frames: msgspec.Struct) -> None:
        """Send frames in one write."""
        await self.send_bytes(encode_frames(frames))

    async def send_bytes(self, data: bytes) -> None:
        """Send raw bytes."""
        while data:
            data = data[await self.sock.send(data) :]

    async def next_frame(self) -> WorkerUp | None:
        """The next frame of any kind; None at the end of the file."""
        with trio.fail_after(DEADLINE_S):
            while not self._frames:
                data = await self.sock.recv(1 << 16)
                if not data:
                    return None
                self._frames = self._reader.feed(data)
        return self._frames.pop(0)

    async def next_answer(self) -> Any:
        """The next frame that is no log line; log lines are kept in `logs`."""
        while isinstance(frame := await self.next_frame(), LogLine):
            self.logs.append(frame)
        return frame

    async def outcome_of(self, run: RunActivity) -> AttemptCompleted | AttemptFailed:
        """Run one attempt and return its outcome."""
        await self.send(run)
        outcome = await self.next_answer()
        assert outcome.key == run.key
        assert isinstance(outcome, (AttemptCompleted, AttemptFailed))
        return outcome

    async def failure_of(self, run: RunActivity) -> AttemptFailed:
        """Run one attempt that has to fail."""
        outcome = await self.outcome_of(run)
        assert isinstance(outcome, AttemptFailed), outcome
        return outcome

    async def wait_for_log(self, text: str) -> LogLine:
        """The first log line (of those not seen yet) with `text` in it. Other frames must not come before."""
        while True:
            frame = await self.next_frame()
            assert isinstance(frame, LogLine), frame
            self.logs.append(frame)
            if text in frame.message:
                return frame

    async def cancel(self, run: RunActivity) -> None:
        """Ask an attempt to end."""
        await self.send(CancelAttempt(key=run.key))

    async def exit_code(self) -> int:
        """Wait for the end of the process."""
        with trio.fail_after(DEADLINE_S):
            return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


def _spawn(arguments: Iterable[str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "durablefuture_trio.activity_worker", *(arguments or [str(theirs.fileno())])],
            pass_fds=(theirs.fileno(),),
            process_group=0,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    return ours, process


@asynccontextmanager
async def spawn_worker(arguments: Iterable[str] = ()) -> AsyncIterator[WorkerProcess]:
    """Start the process and say nothing to it; it is killed and reaped at the end."""
    ours, process = _spawn(arguments)
    worker = WorkerProcess(ours, process)
    try:
        yield worker
    finally:
        process.kill()
        process.wait()
        worker.sock.close()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@asynccontextmanager
async def ready_worker(greeting: Hello | None = None) -> AsyncIterator[WorkerProcess]:
    """Start the process and wait until it is ready."""
    async with spawn_worker() as worker:
        await worker.send(greeting or hello())
        ready = await worker.next_answer()
        assert isinstance(ready, Ready), ready
        yield worker
