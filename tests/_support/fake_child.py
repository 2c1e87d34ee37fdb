"""A child process that speaks the frames and does what the names it is given say: for tests of the supervisor's side.

Run as ``python -m tests._support.fake_child <fd>``. It is a plain blocking loop, so that nothing but the frames and
signals under test happens. Run ids and activity names choose the behaviour by their first word, e.g. ``crash-7``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.ports.activation_page import ActivationPage
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activate,
    Activated,
    AttemptCompleted,
    AttemptFailed,
    AttemptStarted,
    Bye,
    CancelAttempt,
    Evict,
    Evicted,
    Hello,
    Loaded,
    LoadRun,
    LogLine,
    Missing,
    Ready,
    Refused,
    RunActivity,
)

Down = Hello | LoadRun | Activate | Evict | Bye | RunActivity | CancelAttempt


class FakeChild:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._cached: dict[str, int] = {}
        self._attempts: dict[Any, RunActivity] = {}
        self._page: ActivationPage | None = None

    def send(self, *frames: msgspec.Struct) -> None:
        self._sock.sendall(encode_frames(frames))

    def run(self) -> None:
        reader: FrameReader[Down] = FrameReader(Down)
        while data := self._sock.recv(65536):
            for frame in reader.feed(data):
                if isinstance(frame, Bye):
                    return
                self.handle(frame)

    def handle(self, frame: Down) -> None:
        match frame:
            case Hello():
                self.hello(frame)
            case Activate():
                self.activate(frame)
            case LoadRun():
                self.load(frame)
            case Evict():
                self._cached.pop(frame.run_id, None)
            case RunActivity():
                self.run_activity(frame)
            case CancelAttempt():
                attempt = self._attempts.get(frame.key)
                if attempt is not None and not attempt.name.startswith("stubborn"):
                    self.fail(attempt, "cancelled")

    def hello(self, hello: Hello) -> None:
        mode = str(hello.settings.get("mode", ""))
        if mode == "refuse":
            self.send(Refused(problems=("shop.py:3: no such thing", "shop.py:9: nor this")))
        elif mode == "die":
            sys.exit(3)
        elif mode == "mute":
            time.sleep(600)
        elif mode == "garbage":
            self._sock.sendall(b"\0\0\0\3abc")
            time.sleep(600)
        elif mode == "old":
            self.send(Ready(version=FRAME_VERSION + 1, pid=os.getpid(), code_hash="h", workflows=(), activities=()))
            time.sleep(600)
        elif mode == "deaf":
            self.ready()
            time.sleep(600)
        else:
            stack_fd, page_fd = hello.settings.get("stack_fd"), hello.settings.get("activity_fd")
            if isinstance(stack_fd, int) and isinstance(page_fd, int):
                faulthandler.register(signal.SIGUSR1, file=stack_fd)
                self._page = ActivationPage(page_fd)
            self.send(LogLine(level="info", logger="fake", message=f"hello {hello.name}"))
            self.ready()

    def ready(self) -> None:
        self.send(Ready(version=FRAME_VERSION, pid=os.getpid(), code_hash="h", workflows=("w",), activities=("a",)))

    def misbehave(self, word: str) -> None:
        match word:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(7)
            case "spin":
                self.spin_for_ever()
            case "block":
                time.sleep(600)
            case "slow":
                until = time.process_time() + 0.3
                while time.process_time() < until:
                    pass
            case "fork":  # a process of its own that holds the socket open
                if os.fork() == 0:
                    time.sleep(600)
                os._exit(7)

    def spin_for_ever(self) -> None:
        while True:
            pass

    def busy(self, exchange: int, word: str) -> None:
        """Do what the word says, as an activation that the page shows."""
        if self._page is not None:
            self._page.exchange = exchange
            self._page.begin()
        self.misbehave(word)
        if self._page is not None:
            self._page.end()

    def activate(self, frame: Activate) -> None:
        if frame.activation != 1 and self._cached.get(frame.run_id) != frame.activation - 1:
            self._cached.pop(frame.run_id, None)
            self.send(Missing(exchange=frame.exchange, run_id=frame.run_id))
            return
        self.busy(frame.exchange, frame.run_id.split("-")[0])
        self._cached[frame.run_id] = frame.activation
        if frame.run_id.startswith("lru"):
            del self._cached[frame.run_id]
            self.send(Evicted(run_id=frame.run_id))
        self.send(Activated(exchange=frame.exchange, run_id=frame.run_id, commands=(), wake_at=float(os.getpid())))

    def load(self, frame: LoadRun) -> None:
        if frame.first:
            self._cached[frame.run_id] = 0
        for _ in frame.commits:
            self.busy(frame.exchange, frame.commits[0].decode())
        self._cached[frame.run_id] += len(frame.commits)
        if frame.last:
            self.send(Loaded(exchange=frame.exchange, run_id=frame.run_id, unmatched=(), wake_at=float(os.getpid())))

    def run_activity(self, run: RunActivity) -> None:
        self._attempts[run.key] = run
        self.send(AttemptStarted(key=run.key, started_at=time.time()))
        word = run.name.split("-")[0]
        self.misbehave(word)
        if word in ("hold", "stubborn"):
            return
        if word == "raise":
            self.fail(run, "error")
        else:
            self.send(AttemptCompleted(key=run.key, started_at=time.time(), result=run.arguments))
            self._attempts.pop(run.key)

    def fail(self, run: RunActivity, reason: Any) -> None:
        self._attempts.pop(run.key)
        failure = Failure(type="Boom", message="boom")
        self.send(AttemptFailed(key=run.key, started_at=time.time(), reason=reason, failure=failure))


if __name__ == "__main__":
    FakeChild(socket.socket(fileno=int(sys.argv[1]))).run()
