"""What goes up to the supervisor: frames of one turn of the Trio loop share one write."""

from __future__ import annotations

import logging
import socket
import threading

import trio

from durablefuture_trio.authoring._activity_context import current_activity
from durablefuture_trio.ports.frame_codec import encode_frames
from durablefuture_trio.ports.frames import LogLine, WorkerUp

_MOST_FRAMES = 64
"""Frames that are held back for others to join them, at most."""

_MOST_TURNS = 3
"""Turns of the loop a frame is held back while there is something else to run, at most."""

LOG_BACKLOG_BYTES = 8 * 1024 * 1024
"""Log lines are dropped (and counted) while more than this waits for a supervisor that does not read."""


class Outbox(trio.abc.Instrument):
    """Collects frames and writes them right before the loop waits for I/O.

    Being an instrument it needs no task to be woken, which would cost more than the write itself. While tasks are
    runnable frames wait a little, so that the results of a batch go up together.

    Args:
        sock: connected; made non-blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frames: list[WorkerUp] = []
        self._rest = bytearray()
        self._turns = 0
        self._dropped = 0
        self._loop_thread = threading.get_ident()
        self._token: trio.lowlevel.TrioToken | None = None
        self._writable_wanted: trio.Event | None = None

    def add(self, frame: WorkerUp) -> None:
        """Have `frame` written soon. Never blocks; any thread may call it."""
        self._frames.append(frame)
        if self._token is not None and threading.get_ident() != self._loop_thread:
            self._wake()

    def add_log(self, line: LogLine) -> None:
        """The same for a log line, which is dropped when too much waits already."""
        if len(self._rest) > LOG_BACKLOG_BYTES:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            text = f"{dropped} log lines were dropped, because the supervisor did not read them"
            self.add(LogLine(level="WARNING", logger="durablefuture_trio.activity_worker", message=text))
        self.add(line)

    def before_io_wait(self, timeout: float) -> None:
        if not self._frames:
            return
        if timeout == 0 and self._turns < _MOST_TURNS and len(self._frames) < _MOST_FRAMES:
            self._turns += 1
            return
        self._turns = 0
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes; the rest is left to `serve`."""
        if self._frames:
            frames, self._frames = self._frames, []
            data = encode_frames(frames)
            if self._rest:
                self._rest += data
                return
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the supervisor is gone; the reader finds out too
                return
            if sent == len(data):
                return
            self._rest += data[sent:]
            self._wake()

    async def serve(self) -> None:
        """Write for ever what the socket did not take at once."""
        self._token = trio.lowlevel.current_trio_token()
        self._loop_thread = threading.get_ident()
        while True:
            self._writable_wanted = trio.Event()
            if not self._rest:
                await self._writable_wanted.wait()
            while self._rest:
                await trio.lowlevel.wait_writable(self._sock)
                self._write_rest()

    def finish(self) -> None:
        """Write everything, waiting for the peer; when the loop is over."""
        self._sock.setblocking(True)
        frames, self._frames = self._frames, []
        try:
            self._sock.sendall(bytes(self._rest) + encode_frames(frames))
        except OSError:  # the supervisor is gone
            return
        finally:
            self._rest.clear()

    def _write_rest(self) -> None:
        try:
            del self._rest[: self._sock.send(self._rest)]
        except BlockingIOError:
            return
        except OSError:  # the supervisor is gone; the reader finds out too
            self._rest.clear()

    def _wake(self) -> None:
        # Called from another thread, or right before the loop sleeps, when it is too late to reschedule a task.
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._look_at_rest, idempotent=True)
            except trio.RunFinishedError:
                return  # `finish` writes it

    def _look_at_rest(self) -> None:
        if self._rest and self._writable_wanted is not None:
            self._writable_wanted.set()


class FrameLogHandler(logging.Handler):
    """Sends log records up as frames, with the run of the attempt they come from.

    Args:
        outbox: takes the frames.
    """

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        context = current_activity.get()
        try:
            message = self.format(record)
            self._outbox.add_log(
                LogLine(
                    level=record.levelname,
                    logger=record.name,
                    message=message.encode("utf-8", "backslashreplace").decode(),
                    run_id="" if context is None else context.run_id,
                )
            )
        except Exception:  # noqa: BLE001 - logging's own rule: a record that cannot be passed on is reported, not raised
            self.handleError(record)
