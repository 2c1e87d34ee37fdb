"""An owner small enough to see through: it turns what a replay host answers into a history."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from durablefuture_trio import codec
from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.engine.commands import Command
from durablefuture_trio.engine.decide import decide_command
from durablefuture_trio.errors import HistoryError
from durablefuture_trio.history.commit import Commit, decode_commit, encode_commit
from durablefuture_trio.history.events import (
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ChildCompleted,
    ChildEnd,
    ChildFailed,
    ChildStarted,
    ChildStartFailed,
    Event,
    ExternalResolved,
    FailureReason,
    MarkerRecorded,
    Stimulus,
    TimerFired,
    WorkflowStarted,
)
from durablefuture_trio.history.state import RunState
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activate,
    Activated,
    Blocked,
    Hello,
    Loaded,
    LoadRun,
    Missing,
    SandboxDown,
    SandboxUp,
)

START = 1_800_000_000.0

S = TypeVar("S", bound=msgspec.Struct)


def one(frames: Iterable[Any], kind: type[S]) -> S:
    """The only frame of this kind."""
    (found,) = [frame for frame in frames if isinstance(frame, kind)]
    return found


class Host(Protocol):
    """What answers questions about runs."""

    def handle(self, frame: SandboxDown) -> list[SandboxUp]: ...


class Story:
    """One run and its history, written as an owner would write it: a commit for each activation.

    Args:
        host: activates the stimuli; a `ReplayHost` or a `SandboxProcess`.
        workflow: registered name.
        arguments: of the run.
    """

    def __init__(
        self,
        host: Host,
        workflow: str,
        arguments: Sequence[Any] = (),
        *,
        run_id: str = "run-1",
        at: float = START,
    ) -> None:
        self.host = host
        self.run_id = run_id
        self.workflow_id = "wf-1"
        self.at = at
        self.events: list[Event] = []
        self.commits: list[tuple[Event, ...]] = []
        self.activations = 0
        self.wake_at: float | None = None
        self.frames: list[SandboxUp] = []
        self.commands: list[Command] = []
        self._workflow = workflow
        self._arguments = codec.encode_arguments(tuple(arguments))

    def start(self) -> list[Command]:
        return self.apply(self.started())

    def started(self) -> WorkflowStarted:
        """The first stimulus."""
        return WorkflowStarted(
            id=1,
            at=self.at,
            workflow_id=self.workflow_id,
            run_id=self.run_id,
            workflow=self._workflow,
            arguments=self._arguments,
        )

    def complete(self, call: int, result: Any = None, *, after: float = 0.0) -> list[Command]:
        return self.apply(
            ActivityCompleted(
                id=self.next_id, at=self.at + after, activity_id=call, attempt=1, result=codec.encode_value(result)
            )
        )

    def fail(
        self, call: int, message: str = "no", *, reason: FailureReason = "error", after: float = 0.0, attempt: int = 1
    ) -> list[Command]:
        return self.apply(
            ActivityFailed(
                id=self.next_id,
                at=self.at + after,
                activity_id=call,
                attempt=attempt,
                reason=reason,
                failure=Failure(type="ValueError", message=message),
            )
        )

    def cancelled(self, call: int, *, after: float = 0.0) -> list[Command]:
        return self.apply(ActivityCancelled(id=self.next_id, at=self.at + after, activity_id=call, attempt=1))

    def child_started(self, call: int, run_id: str = "child-run", *, after: float = 0.0) -> list[Command]:
        return self.apply(ChildStarted(id=self.next_id, at=self.at + after, call=call, run_id=run_id))

    def child_start_failed(
        self, call: int, message: str = "in use", *, error: str = "WorkflowAlreadyStartedError"
    ) -> list[Command]:
        failure = Failure(type=error, message=message)
        return self.apply(ChildStartFailed(id=self.next_id, at=self.at, call=call, failure=failure))

    def child_completed(self, call: int, result: Any = None, *, after: float = 0.0) -> list[Command]:
        return self.apply(
            ChildCompleted(id=self.next_id, at=self.at + after, call=call, result=codec.encode_value(result))
        )

    def child_failed(
        self,
        call: int,
        message: str = "no",
        *,
        how: ChildEnd = "failed",
        error: str = "ValueError",
        after: float = 0.0,
    ) -> list[Command]:
        failure = Failure(type=error, message=message)
        return self.apply(ChildFailed(id=self.next_id, at=self.at + after, call=call, how=how, failure=failure))

    def external_resolved(
        self, call: int, failure: Failure | None = None, *, result: Payload | None = None
    ) -> list[Command]:
        return self.apply(ExternalResolved(id=self.next_id, at=self.at, call=call, failure=failure, result=result))

    def fire(self, *, late: float = 0.0) -> list[Command]:
        """The next timer fires."""
        assert self.wake_at is not None
        return self.apply(TimerFired(id=self.next_id, at=self.wake_at + late, deadline=self.wake_at))

    def later(self, seconds: float) -> list[Command]:
        """A wake-up for no reason, `seconds` on."""
        return self.apply(TimerFired(id=self.next_id, at=self.at + seconds, deadline=self.at + seconds))

    @property
    def next_id(self) -> int:
        return len(self.events) + 1

    def ask(self, stimulus: Stimulus) -> Activated | Blocked | Missing:
        """Have a stimulus activated, without writing it down."""
        self.frames = self.host.handle(
            Activate(exchange=self.next_id, run_id=self.run_id, activation=self.activations + 1, stimulus=stimulus)
        )
        (answer,) = [frame for frame in self.frames if isinstance(frame, Activated | Blocked | Missing)]
        return answer

    def apply(self, stimulus: Stimulus) -> list[Command]:
        """Activate a stimulus and commit it with the commands it led to."""
        answer = self.ask(stimulus)
        assert isinstance(answer, Activated), answer
        self.activations += 1
        self.at = stimulus.at
        self.wake_at = answer.wake_at
        self.commands = list(answer.commands)
        recorded: list[Event] = [stimulus]
        for command in answer.commands:
            recorded.append(event_of(command, self.next_id + len(recorded), stimulus.at))
        self.events += recorded
        self.commits.append(tuple(recorded))
        return self.commands

    def bodies(self) -> tuple[bytes, ...]:
        """The history as stored."""
        return tuple(body_of(self.run_id, events, number=n) for n, events in enumerate(self.commits, start=1))

    def replay(self, host: Host | None = None, bodies: Sequence[bytes] | None = None) -> Loaded | Blocked:
        """Load the history, into this host or another one."""
        commits = tuple(bodies or self.bodies())
        events = [event for body in commits for event in events_in(body)]
        patches = tuple(sorted({event.patch for event in events if isinstance(event, MarkerRecorded)}))
        self.frames = (host or self.host).handle(
            LoadRun(exchange=1, run_id=self.run_id, commits=commits, first=True, last=True, patches=patches)
        )
        (answer,) = [frame for frame in self.frames if isinstance(frame, Loaded | Blocked)]
        return answer


def event_of(command: Command, event_id: int, at: float) -> Event:
    """The event a command becomes."""
    state = RunState.__new__(RunState)
    state.last_event_id = event_id - 1
    return decide_command(state, command, at)


def events_in(body: bytes) -> tuple[Event, ...]:
    """The events of a commit as stored; none if it cannot be read."""
    try:
        return decode_commit(body, subject="test", sequence=1).events
    except HistoryError:
        return ()


CODE_HASH = "the code that wrote it"


def body_of(run_id: str, events: Sequence[Event], *, number: int, finished: bool = True) -> bytes:
    """A commit as stored."""
    return encode_commit(
        Commit(
            run_id=run_id,
            commit_id=f"{run_id}/{number}",
            first_n=1,
            finished=finished,
            consumed=number,
            code_hash=CODE_HASH,
            events=tuple(events),
        )
    )


class SandboxProcess:
    """A real replay process and the parent's end of its socketpair, blocking with a deadline.

    Args:
        modules: to register.
        settings: of its `Hello`.
        environment: over this process' environment.
    """

    def __init__(
        self,
        modules: Sequence[str] = (),
        *,
        settings: dict[str, str | int | float | bool | None] | None = None,
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        pickled: bytes = b"",
        hello: Hello | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(timeout_s)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "durablefuture_trio.sandbox", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), *pass_fds),
                env={**os.environ, "PYTHONHASHSEED": "0", **(environment or {})},
                cwd=Path(__file__).parents[2],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self._reader = FrameReader[SandboxUp](SandboxUp)
        self._frames: list[SandboxUp] = []
        self.send(
            hello
            or Hello(
                version=FRAME_VERSION,
                name="test/replay-0",
                modules=tuple(modules),
                sys_path=tuple(sys.path),
                pickled=pickled,
                settings=settings or {},
            )
        )

    def send(self, *frames: SandboxDown) -> None:
        self.sock.sendall(encode_frames(frames))

    def receive(self) -> SandboxUp:
        """The next frame. Raises EOFError when the child has gone."""
        while not self._frames:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError(self.process.wait(10))
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def handle(self, frame: SandboxDown) -> list[SandboxUp]:
        """As `ReplayHost.handle`, for a frame that is answered: everything up to the answer."""
        self.send(frame)
        frames = [self.receive()]
        while not isinstance(frames[-1], Activated | Blocked | Missing | Loaded):
            frames.append(self.receive())
        return frames

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        self.sock.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            self.process.stdout.close()
            self.process.stderr.close()
