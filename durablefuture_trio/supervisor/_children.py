"""Child processes: spawned, greeted, listened to, and always reaped.

Children are spawned with a fresh interpreter from the thread of the Trio run. That blocks for about a millisecond, and
is right: `trio.lowlevel.open_process` spawns from a cached worker thread, and what the kernel ties to the spawning
thread (a parent-death signal) would then end the child when that thread is retired, 10 s later.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from durablefuture_trio.ports.frame_codec import FrameError
from durablefuture_trio.ports.frames import FRAME_VERSION, Bye, Hello, LogLine, Ready, Refused
from durablefuture_trio.supervisor._channel import BACKLOG_LIMIT_BYTES, FrameChannel, Outbox, Reading

log = logging.getLogger("durablefuture_trio.supervisor.children")

_EXIT_AFTER_END_S = 1.0
"""A child that has closed its socket is given this long to exit before it is killed."""

_REAP_S = 5.0
"""A process killed by SIGKILL that is still there after this sits in an uninterruptible system call."""


@dataclass(frozen=True)
class ChildSpec:
    """What to start.

    Attributes:
        module: run as ``python -m <module> <fd>``.
        hello: the first frame down.
        up_type: the union of frames the child may send.
        start_timeout_s: how long the child may take to answer `Ready`.
        environment: variables over those of this process.
        inherited_fds: file descriptors the child gets beside its socket.
    """

    module: str
    hello: Hello
    up_type: Any
    start_timeout_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited_fds: tuple[int, ...] = ()


class ExitStatus(msgspec.Struct, frozen=True):
    """How a process ended. ``returncode`` as in `subprocess`: negative for a signal; None: it could not be reaped."""

    returncode: int | None

    @property
    def signal_name(self) -> str:
        """E.g. ``"SIGSEGV"``; empty when no signal ended it."""
        if self.returncode is None or self.returncode >= 0:
            return ""
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:  # a real-time signal
            return f"signal {-self.returncode}"

    def __str__(self) -> str:
        if self.returncode is None:
            return "does not die of SIGKILL"
        return f"was killed by {self.signal_name}" if self.signal_name else f"exited with code {self.returncode}"


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a child.

    Attributes:
        was_ready: it had answered `Ready`.
        problems: what it refused to start for.
        late: it was killed because it did not get ready in time.
    """

    status: ExitStatus
    was_ready: bool
    problems: tuple[str, ...] = ()
    late: bool = False


class Child:
    """A running child process. It is spawned at once; `run` has to be called to serve and to reap it.

    Args:
        spec: what to start.
        outbox: of the Trio run.
        on_ready: called when the child is usable.
        on_frame: called with every later frame but log lines, in order.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        spec: ChildSpec,
        outbox: Outbox,
        on_ready: Callable[[Child, Ready], None],
        on_frame: Callable[[Any], None],
    ) -> None:
        self.name = spec.hello.name
        self._spec = spec
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._greeted = trio.Event()
        self._ready = False
        self._problems: tuple[str, ...] = ()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _spawn(spec, theirs)
        except OSError:
            ours.close()
            raise
        self.pid = self._process.pid
        self._exit_watch = _ExitWatch(self.pid)
        self._channel: FrameChannel[Any] = FrameChannel(ours, spec.up_type, outbox, self._handle)
        self._channel.send(spec.hello)

    @property
    def backlog_bytes(self) -> int:
        """Bytes sent to the child that it has not read."""
        return self._channel.backlog_bytes

    def send(self, frame: msgspec.Struct) -> None:
        """Send a frame; never blocks. What is sent to a child that is gone is lost, and its end reported as ever.

        Raises:
            FrameError: the frame is too long.
        """
        self._channel.send(frame)
        if self._channel.backlog_bytes > BACKLOG_LIMIT_BYTES:
            log.error("%s does not read what it is sent (%d bytes wait): killed", self.name, self.backlog_bytes)
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the child's process group: it and whatever it has started."""
        self.signal(signal.SIGKILL, group=True)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal; nothing happens when the child is gone. Until it is reaped its id cannot be another's."""
        if self._process.returncode is None:
            try:
                (os.killpg if group else os.kill)(self.pid, number)
            except ProcessLookupError:
                log.debug("%s was gone already", self.name)

    def _handle(self, frame: Any) -> None:
        if isinstance(frame, LogLine):
            _log_line(self.name, frame)
        elif self._ready:
            self._on_frame(frame)
        elif isinstance(frame, Ready) and frame.version == FRAME_VERSION:
            self._ready = True
            self._greeted.set()
            self._on_ready(self, frame)
        elif isinstance(frame, Ready):
            self._refuse(
                (
                    f"{self.name} speaks version {frame.version} of the frames, this process {FRAME_VERSION}: "
                    "restart the supervisor after an upgrade",
                )
            )
        elif isinstance(frame, Refused):
            self._refuse(frame.problems)
        else:
            raise FrameError(f"{self.name} sent a {type(frame).__name__} before it was ready")

    def _refuse(self, problems: tuple[str, ...]) -> None:
        self._problems = problems
        self._greeted.set()

    async def run(self, exit_grace_s: Callable[[], float]) -> Ended:
        """Serve the child until it has ended and is reaped.

        Args:
            exit_grace_s: asked when this is cancelled: seconds the child gets to exit by itself after a `Bye`.
        """
        late = ended = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._channel.write_rest)
                nursery.start_soon(self._end_with_process, nursery.cancel_scope)
                nursery.start_soon(self._end_with_socket, nursery.cancel_scope)
                with trio.move_on_after(self._spec.start_timeout_s) as starting:
                    await self._greeted.wait()
                late = starting.cancelled_caught
                if late or self._problems:
                    nursery.cancel_scope.cancel()
            ended = True
        finally:
            if not ended:
                await self._say_bye(exit_grace_s())
            await self._reap()
        status = ExitStatus(self._process.returncode)
        return Ended(status=status, was_ready=self._ready, problems=self._problems, late=late)

    async def _end_with_socket(self, scope: trio.CancelScope) -> None:
        try:
            await self._channel.read()
        except FrameError as error:
            log.error("%s is killed: %s", self.name, error)
            self.kill()
        await trio.sleep(_EXIT_AFTER_END_S)  # the other task ends this as soon as the process has
        scope.cancel()

    async def _end_with_process(self, scope: trio.CancelScope) -> None:
        """Processes of the child's own may hold its socket open, so the end of the file alone says too little."""
        await self._exit_watch.wait()
        try:
            while self._channel.read_available() is Reading.MORE:
                await trio.lowlevel.checkpoint()
        except FrameError as error:
            log.error("%s died in the middle of its last frame: %s", self.name, error)
        scope.cancel()

    async def _say_bye(self, grace_s: float) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(grace_s):
            if grace_s > 0:
                self._channel.send(Bye())
                self._channel.flush()
                await self._exit_watch.wait()

    async def _reap(self) -> None:
        """Kill what is left of the process group and collect the exit status, in this order: as long as the child is
        not reaped, its id (and so its group's) cannot have been given to another process."""
        with trio.CancelScope(shield=True):
            self.kill()
            with trio.move_on_after(_REAP_S):
                await self._exit_watch.wait()
            if self._process.poll() is None:
                log.error("%s (pid %d) does not die of SIGKILL", self.name, self.pid)
        self._exit_watch.close()
        self._channel.close()


def _spawn(spec: ChildSpec, theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", spec.module, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), *spec.inherited_fds),
        env={**os.environ, **spec.environment},
        process_group=0,
    )


class _ExitWatch:
    """Waits for the end of a child without reaping it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = False
        self._fd = os.pidfd_open(pid) if sys.platform == "linux" else -1

    async def wait(self) -> None:
        if self._over:
            return
        if self._fd >= 0:
            await trio.lowlevel.wait_readable(self._fd)
        else:
            await _wait_kqueue(self._pid)
        self._over = True

    def close(self) -> None:
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._over = True


async def _wait_kqueue(pid: int) -> None:
    """The same where there are no pidfds, on macOS and the BSDs."""
    if sys.platform != "linux":
        import select

        kqueue = trio.lowlevel.current_kqueue()
        event = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT)
        try:
            kqueue.control([event], 0)
        except ProcessLookupError:  # a zombie already
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            event.flags = select.KQ_EV_DELETE
            kqueue.control([event], 0)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_kevent(pid, select.KQ_FILTER_PROC, abort)


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def _log_line(name: str, line: LogLine) -> None:
    logger = logging.getLogger(line.logger or log.name)
    extra = {"child": name, "run_id": line.run_id}
    logger.log(_LEVELS.get(line.level.lower(), logging.INFO), "%s", line.message, extra=extra)
