from __future__ import annotations

import pytest

from durablefuture_trio.codec.payload import Payload
from durablefuture_trio.history.events import ActivityCompleted
from durablefuture_trio.ports import frame_codec
from durablefuture_trio.ports.frame_codec import FrameError, FrameReader, encode_frames
from durablefuture_trio.ports.frames import Activate, Bye, Evict, LoadRun, SandboxDown, SandboxUp

FRAMES: list[SandboxDown] = [
    Evict(run_id="r"),
    LoadRun(exchange=1, run_id="r", commits=(b"abc", b"d" * 70_000), first=True, last=True),
    Activate(
        exchange=2,
        run_id="r",
        activation=2,
        stimulus=ActivityCompleted(id=4, at=1.5, activity_id=1, attempt=1, result=Payload(b"1")),
    ),
    Bye(),
]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 70_010, 10**6])
def test_frames_arrive_whole_however_the_stream_is_cut(step: int) -> None:
    data = encode_frames(FRAMES)
    reader = FrameReader[SandboxDown](SandboxDown)
    got: list[SandboxDown] = []
    for start in range(0, len(data), step):
        got += reader.feed(data[start : start + step])
    assert got == FRAMES
    assert reader.pending_bytes == 0


def test_half_a_frame_is_kept_and_counted() -> None:
    data = encode_frames([Bye(), Evict(run_id="r")])
    reader = FrameReader[SandboxDown](SandboxDown)
    assert reader.feed(data[:-3]) == [Bye()]
    assert reader.pending_bytes > 0
    assert reader.feed(bytearray(data[-3:])) == [Evict(run_id="r")]
    assert reader.pending_bytes == 0


def test_a_reused_read_buffer_does_not_change_frames_already_read() -> None:
    buffer = bytearray(encode_frames([FRAMES[1]]))
    reader = FrameReader[SandboxDown](SandboxDown)
    (frame,) = reader.feed(buffer)
    buffer[:] = b"\xff" * len(buffer)
    assert frame == FRAMES[1]


def test_an_endless_length_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(FrameError, match="announced a frame of 4294967295 bytes"):
        FrameReader[SandboxDown](SandboxDown).feed(b"\xff\xff\xff\xff")


def test_a_frame_of_the_other_direction_is_refused() -> None:
    with pytest.raises(FrameError, match="cannot be read"):
        FrameReader[SandboxUp](SandboxUp).feed(encode_frames([Bye()]))


def test_a_frame_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_codec, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="LoadRun frame has"):
        encode_frames([FRAMES[1]])
