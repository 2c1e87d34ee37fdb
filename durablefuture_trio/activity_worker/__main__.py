"""The activity process: ``python -m durablefuture_trio.activity_worker <fd>``, where fd is its end of a socketpair."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from durablefuture_trio.ports.child_process import detach_terminal, end_with_parent, limit_address_space
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import FRAME_VERSION, Hello, Ready, Refused, WorkerDown

if TYPE_CHECKING:
    from durablefuture_trio.activity_worker._outbox import Outbox
    from durablefuture_trio.activity_worker._worker import Worker
    from durablefuture_trio.authoring.registry import Registry

READ_BYTES = 64 * 1024  # a buffer from 128 KiB on is mapped and unmapped for each read: ten times the cost
EXIT_OK = 0
EXIT_USAGE = 2
EXIT_CONFIG = 78

_DEFAULT_CONCURRENCY = 100


def main(arguments: list[str]) -> int:
    """Serve the supervisor at the other end of the socketpair; returns the exit code."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        sys.stderr.write("this process is started by a supervisor: run durablefuture-supervisor instead\n")
        return EXIT_USAGE
    end_with_parent()
    detach_terminal()
    faulthandler.enable()
    with socket.socket(fileno=int(arguments[0])) as sock:
        os.set_inheritable(sock.fileno(), False)
        reader: FrameReader[WorkerDown] = FrameReader(WorkerDown)
        frames = _first_frames(sock, reader)
        if not frames:
            return EXIT_OK
        hello = frames.pop(0)
        if not isinstance(hello, Hello):
            sys.stderr.write(f"the first frame was {type(hello).__name__}, not Hello\n")
            return EXIT_USAGE
        if hello.version != FRAME_VERSION:
            text = f"frame version {hello.version} of the supervisor, {FRAME_VERSION} here: restart it after an upgrade"
            sock.sendall(encode_frames([Refused(problems=(text,))]))
            return EXIT_CONFIG
        return _serve(sock, reader, hello, frames)


def _first_frames(sock: socket.socket, reader: FrameReader[WorkerDown]) -> list[WorkerDown]:
    while data := sock.recv(READ_BYTES):
        if frames := reader.feed(data):
            return frames
    return []


def _serve(sock: socket.socket, reader: FrameReader[WorkerDown], hello: Hello, frames: list[WorkerDown]) -> int:
    sys.path[:] = hello.sys_path
    # Imported late: a child that is refused for its version needs none of it.
    import trio

    from durablefuture_trio.activity_worker._outbox import FrameLogHandler, Outbox
    from durablefuture_trio.activity_worker._worker import Worker
    from durablefuture_trio.authoring.registry import Registry
    from durablefuture_trio.errors import ConfigError

    outbox = Outbox(sock)
    root = logging.getLogger()
    root.addHandler(FrameLogHandler(outbox))
    root.setLevel(str(hello.settings.get("log_level") or "INFO").upper())
    try:
        registry = Registry.load(hello.modules, hello.pickled)
    except ConfigError as error:
        outbox.add(Refused(problems=error.problems))
        outbox.finish()
        return EXIT_CONFIG
    concurrency = int(hello.settings.get("concurrency") or _DEFAULT_CONCURRENCY)
    worker = Worker(sock, outbox, reader, registry.activities, concurrency)
    memory_limit_mb = hello.settings.get("memory_limit_mb")
    if memory_limit_mb is not None:
        limit_address_space(int(memory_limit_mb))
    gc.collect()
    gc.freeze()
    outbox.add(_ready(registry))
    trio.run(_run, worker, outbox, frames, instruments=[outbox])
    return EXIT_OK


def _ready(registry: Registry) -> Ready:
    return Ready(
        version=FRAME_VERSION,
        pid=os.getpid(),
        code_hash=registry.code_hash,
        workflows=tuple(registry.workflows),
        activities=tuple(registry.activities),
    )


async def _run(worker: Worker, outbox: Outbox, frames: list[WorkerDown]) -> None:
    try:
        await worker.run(frames)
    finally:
        outbox.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
