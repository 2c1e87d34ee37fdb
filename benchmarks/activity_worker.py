"""What one activity attempt costs in its process: ``python benchmarks/activity_worker.py``.

Drives a real child over a real socketpair with a blocking loop, so that the figures are the child's plus two system
calls of this side.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from durablefuture_trio import activity
from durablefuture_trio.codec import encode_arguments
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    ActivityKey,
    AttemptCompleted,
    Bye,
    Hello,
    Ready,
    RunActivity,
    WorkerUp,
)


@activity
async def nothing() -> None: ...


@activity
async def add(first: int, second: float, name: str) -> float:
    return first + second


@activity
def in_a_thread() -> None: ...


class Peer:
    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "durablefuture_trio.activity_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
            )
        self.reader: FrameReader[WorkerUp] = FrameReader(WorkerUp)
        here = os.path.dirname(os.path.abspath(__file__))
        hello = Hello(version=FRAME_VERSION, name="benchmark", modules=("activity_worker",), sys_path=(here, *sys.path))
        self.send([hello])
        self.receive(1, Ready)

    def send(self, frames: Sequence[object]) -> None:
        self.sock.sendall(encode_frames(frames))  # type: ignore[arg-type]  # structs

    def receive(self, count: int, kind: type) -> None:
        while count:
            for frame in self.reader.feed(self.sock.recv(256 * 1024)):
                if not isinstance(frame, kind):
                    raise SystemExit(f"unexpected {frame}")
                count -= 1


def attempts(name: str, count: int, arguments: tuple[object, ...]) -> list[RunActivity]:
    payload = encode_arguments(arguments)
    return [
        RunActivity(
            key=ActivityKey("0" * 32, index, 1), workflow_id="w", name=name, arguments=payload, start_to_close=600.0
        )
        for index in range(count)
    ]


def child_cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(peer: Peer, name: str, batch: int, total: int, arguments: tuple[object, ...] = ()) -> None:
    frames = attempts(name, batch, arguments)
    trips: list[float] = []
    cpu = child_cpu_s(peer.process.pid)
    began = time.perf_counter()
    for _ in range(total // batch):
        start = time.perf_counter()
        peer.send(frames)
        peer.receive(batch, AttemptCompleted)
        trips.append(time.perf_counter() - start)
    took = time.perf_counter() - began
    cpu = child_cpu_s(peer.process.pid) - cpu
    trips.sort()
    print(
        f"{name:12} batches of {batch:4}: {trips[len(trips) // 2] / batch * 1e6:7.1f} us each (median), "
        f"{total / took:8.0f}/s, {cpu / total * 1e6:6.1f} us of the child's CPU"
    )


def main() -> None:
    peer = Peer()
    for _ in range(2):
        measure(peer, "nothing", 1, 10_000)
        measure(peer, "nothing", 10, 20_000)
        measure(peer, "nothing", 100, 50_000)
        measure(peer, "add", 1, 10_000, (1, 2.5, "x"))
        measure(peer, "in_a_thread", 1, 5_000)
        measure(peer, "in_a_thread", 100, 10_000)
    peer.send([Bye()])
    if peer.process.wait(10) != 0:
        raise SystemExit("the child did not end well")


if __name__ == "__main__":
    main()
