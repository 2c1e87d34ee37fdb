"""Frames as bytes: a 4-byte big-endian length, then one MessagePack struct; any number of them after each other.

Sans I/O, used by both ends: `encode_frames` makes what one write carries, a `FrameReader` takes what reads return.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import msgspec

from durablefuture_trio.errors import DurableFutureError
from durablefuture_trio.ports.frames import MAX_FRAME_BYTES

T = TypeVar("T")

_PREFIX_BYTES = 4
_encoder = msgspec.msgpack.Encoder()


class FrameError(DurableFutureError):
    """The peer sent what is no frame, or a frame is too long to be sent. The connection cannot be used any more."""


def encode_frames(frames: Iterable[msgspec.Struct]) -> bytes:
    """The bytes of `frames`, one after the other, for a single write.

    Raises:
        FrameError: one of them is longer than `MAX_FRAME_BYTES`.
    """
    out = bytearray()
    for frame in frames:
        start = len(out)
        out += b"\0\0\0\0"
        _encoder.encode_into(frame, out, -1)
        size = len(out) - start - _PREFIX_BYTES
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a {type(frame).__name__} frame has {size} bytes; the limit is {MAX_FRAME_BYTES}")
        out[start : start + _PREFIX_BYTES] = size.to_bytes(_PREFIX_BYTES, "big")
    return bytes(out)


class FrameReader(Generic[T]):
    """Turns a stream of bytes into frames, however the stream was cut.

    Args:
        frame_type: the union of frames the peer may send, e.g. ``SandboxDown``.
    """

    def __init__(self, frame_type: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(frame_type)
        self._rest = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[T]:
        """Take what a read returned; gives the frames that are complete now, in order.

        Raises:
            FrameError: a length is over `MAX_FRAME_BYTES`, or the bytes are none of the frames expected.
        """
        buffered = bool(self._rest)
        if buffered:
            self._rest += data
        # With nothing left over from before, frames are decoded out of the caller's bytes without a copy.
        with memoryview(self._rest if buffered else data) as view:
            frames, used = self._decode(view)
            if not buffered and used < len(view):
                self._rest += view[used:]
        if buffered:
            del self._rest[:used]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet; not 0 at end of file means the peer died in mid-write."""
        return len(self._rest)

    def _decode(self, view: memoryview) -> tuple[list[T], int]:
        frames: list[T] = []
        position = 0
        while len(view) - position >= _PREFIX_BYTES:
            size = int.from_bytes(view[position : position + _PREFIX_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"the peer announced a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
            end = position + _PREFIX_BYTES + size
            if end > len(view):
                break
            try:
                frames.append(self._decoder.decode(view[position + _PREFIX_BYTES : end]))
            except (msgspec.MsgspecError, ValueError) as error:
                raise FrameError(f"the peer sent a frame that cannot be read: {error}") from error
            position = end
        return frames, position
