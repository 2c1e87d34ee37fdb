"""One end of a socketpair to a child, on the Trio side: frames in, frames out, no task per frame."""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec
import trio

from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames

READ_BYTES = 64 * 1024  # a buffer from 128 KiB on is mapped and unmapped for each read: ten times the cost
BACKLOG_LIMIT_BYTES = 256 * 1024 * 1024
"""What may wait for a child that does not read. Past it the child is taken for broken."""

_READS_IN_ONE_GO = 16

Up = TypeVar("Up")


class Outbox(trio.abc.Instrument):
    """Writes what was sent to children during one turn of the Trio loop right before the loop waits for I/O.

    So frames that are sent together, by whatever callbacks ran in that turn, share one write, and the child reads them
    in one go: that is what makes a message of a batch ten times cheaper than a single one. Being an instrument it
    needs no task to be woken, which would cost more than the write.
    """

    def __init__(self) -> None:
        self._dirty: list[FrameChannel[Any]] = []

    def add(self, channel: FrameChannel[Any]) -> None:
        """Have `channel` flushed at the end of this turn."""
        self._dirty.append(channel)

    def before_io_wait(self, timeout: float) -> None:
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for channel in dirty:
                channel.flush()


class Reading(Enum):
    """What a read has left behind."""

    MORE = "more may be there"
    DRY = "nothing more at the moment"
    END = "the peer has closed"


class FrameChannel(Generic[Up]):
    """Frames over a non-blocking socket.

    Args:
        sock: connected, owned by the channel from now on.
        up_type: the union of frames that may arrive.
        outbox: of the Trio run that all methods are called in.
        on_frame: called with every frame, in order.
    """

    def __init__(self, sock: socket.socket, up_type: Any, outbox: Outbox, on_frame: Callable[[Up], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader: FrameReader[Up] = FrameReader(up_type)
        self._outbox = outbox
        self._on_frame = on_frame
        self._out = bytearray()
        self._queued = False
        self._stuck = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._closed = False

    @property
    def backlog_bytes(self) -> int:
        """Bytes sent that the socket has not taken yet."""
        return len(self._out)

    def send(self, frame: msgspec.Struct) -> None:
        """Queue a frame; it is written at the end of this turn of the loop. Never blocks.

        What is sent to a child that is gone is dropped: its end is reported by the reading side.

        Raises:
            FrameError: the frame is too long.
        """
        data = encode_frames((frame,))
        if self._closed:
            return
        self._out += data
        if not self._queued:
            self._queued = True
            self._outbox.add(self)

    def flush(self) -> None:
        """Write what the socket takes; the rest is left to `write_rest`."""
        if self._closed or self._write():
            self._queued = False
        else:
            # Called right before the loop sleeps, when it is too late to reschedule a task; the token's wake-up is not.
            self._token.run_sync_soon(self._stuck.set)

    async def write_rest(self) -> None:
        """Serve the channel's backlog for ever: the task that waits while the socket is full."""
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            while not self._closed:
                await trio.lowlevel.wait_writable(self._sock)
                if self._write():
                    break
            self._queued = False

    def _write(self) -> bool:
        """True when nothing is left to be written."""
        out = self._out
        try:
            while out:
                del out[: self._sock.send(out)]
        except BlockingIOError:
            return False
        except OSError:  # the child is gone
            out.clear()
        return True

    async def read(self) -> None:
        """Handle frames until the peer closes.

        Raises:
            FrameError: the peer sent what is no frame.
        """
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            if self.read_available() is Reading.END:
                return

    def read_available(self) -> Reading:
        """Handle what has arrived by now, without waiting (but not for ever: others want to run too)."""
        for _ in range(_READS_IN_ONE_GO):
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                return Reading.DRY
            except OSError:  # reset: the peer is gone, with data of ours unread
                return Reading.END
            if not data:
                return Reading.END
            for frame in self._reader.feed(data):
                self._on_frame(frame)
            if len(data) < READ_BYTES:
                return Reading.DRY
        return Reading.MORE

    def close(self) -> None:
        """Close the socket; the peer sees the end of the file."""
        if not self._closed:
            self._closed = True
            self._out.clear()
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
