"""The replay process: ``python -m durablefuture_trio.sandbox <fd>``, where fd is its end of a socketpair.

A blocking loop: read frames, apply them, answer. It ends at the end of the file, on `Bye`, or with its parent.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from durablefuture_trio.errors import ConfigError
from durablefuture_trio.ports.activation_page import ActivationPage
from durablefuture_trio.ports.frame_codec import FrameReader, encode_frames
from durablefuture_trio.ports.frames import (
    FRAME_VERSION,
    Activate,
    Bye,
    Hello,
    LoadRun,
    Query,
    Ready,
    Refused,
    SandboxDown,
    SandboxUp,
    ValidateUpdate,
)

if TYPE_CHECKING:
    from durablefuture_trio.sandbox._host import ReplayHost

READ_BYTES = 64 * 1024  # a buffer from 128 KiB on is mapped and unmapped for each read: ten times the cost
HELD_BACK_ANSWERS = 64
"""Answers held back at most, so that the owner goes on while a large batch is worked off."""

YOUNG_OBJECTS = 20_000
"""Container objects made since the last collection that call for the next one, between batches."""

FULL_COLLECTION_AFTER = 25
"""Young collections before a full one, at least; and as in CPython the heap must have grown by a quarter."""


class _Answers:
    """What goes up, batch by batch."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames: list[SandboxUp] = []

    def add(self, frame: SandboxUp) -> None:
        self._frames.append(frame)

    def extend(self, frames: list[SandboxUp]) -> None:
        self._frames.extend(frames)
        if len(self._frames) >= HELD_BACK_ANSWERS:
            self.flush()

    def flush(self) -> None:
        if self._frames:
            frames, self._frames = self._frames, []
            self._sock.sendall(encode_frames(frames))


class _Collector:
    """Garbage collection between batches: never while a run is stepped, see `_trio_driver`."""

    def __init__(self) -> None:
        self._young = 0
        self._old_objects = 0
        gc.disable()
        gc.collect()
        gc.freeze()

    def collect_if_due(self) -> None:
        if gc.get_count()[0] < YOUNG_OBJECTS:
            return
        self._young += 1
        if self._young < FULL_COLLECTION_AFTER or self._young * YOUNG_OBJECTS * 4 < self._old_objects:
            gc.collect(1)
            return
        gc.collect()
        self._young = 0
        self._old_objects = len(gc.get_objects(generation=2))


def _frames_of(sock: socket.socket) -> Iterator[list[SandboxDown]]:
    reader = FrameReader[SandboxDown](SandboxDown)
    while data := sock.recv(READ_BYTES):
        yield reader.feed(data)


def _setting(hello: Hello, name: str) -> int | None:
    value = hello.settings.get(name)
    return None if value is None else int(value)


def _serve(sock: socket.socket) -> int:
    batches = _frames_of(sock)
    first = next((batch for batch in batches if batch), None)
    if first is None:
        return 0
    hello = first.pop(0)
    if not isinstance(hello, Hello):
        raise SystemExit(f"the first frame was {type(hello).__name__}, not Hello")
    answers = _Answers(sock)
    if hello.version != FRAME_VERSION:
        answers.add(Refused(problems=(f"frame version {hello.version} of the supervisor, {FRAME_VERSION} here",)))
        answers.flush()
        return 78
    return _serve_runs(hello, first, batches, answers)


def _serve_runs(hello: Hello, first: list[SandboxDown], batches: Iterator[list[SandboxDown]], answers: _Answers) -> int:
    # time-machine imports pytest where it is installed, which costs more than everything else here together.
    blocked = "pytest" not in sys.modules
    if blocked:
        sys.modules["pytest"] = None  # type: ignore[assignment] # the documented way to make an import fail
    from durablefuture_trio.ports.child_process import limit_address_space
    from durablefuture_trio.sandbox import _guards, _logs, _process
    from durablefuture_trio.sandbox._forks import replay_in_forks
    from durablefuture_trio.sandbox._host import DEFAULT_CACHED_WORKFLOWS, ReplayHost

    if blocked:
        del sys.modules["pytest"]
    _process.fix_surroundings()
    _guards.install_guards()
    root = logging.getLogger()
    root.addHandler(_logs.FrameLogHandler(answers.add))
    root.setLevel(str(hello.settings.get("log_level") or "INFO").upper())
    sys.path[:] = hello.sys_path
    from durablefuture_trio.authoring.registry import Registry

    try:
        registry = Registry.load(hello.modules, hello.pickled)
    except ConfigError as error:
        answers.add(Refused(problems=error.problems))
        answers.flush()
        return 78
    stack_fd = _setting(hello, "stack_fd")
    if stack_fd is not None:
        _process.dump_stacks_on_signal(stack_fd, _logs.stacks_of_the_run_being_stepped)
    page_fd = _setting(hello, "activity_fd")
    page = None if page_fd is None else ActivationPage(page_fd)
    cached = _setting(hello, "cached_workflows")
    host = ReplayHost(
        registry.workflows,
        cached_workflows=DEFAULT_CACHED_WORKFLOWS if cached is None else cached,
        strict_code=registry.code_hash if hello.settings.get("verifier") else "",
        watch=page,
    )
    collector = _Collector()
    memory_limit_mb = _setting(hello, "memory_limit_mb")
    if memory_limit_mb is not None:
        limit_address_space(memory_limit_mb)
    answers.add(
        Ready(
            version=FRAME_VERSION,
            pid=os.getpid(),
            code_hash=registry.code_hash,
            workflows=tuple(registry.workflows),
            activities=tuple(registry.activities),
        )
    )
    answers.flush()
    if hello.settings.get("verifier"):
        replay_in_forks(host, page, first, batches, answers)
    else:
        _loop(host, page, collector, first, batches, answers)
    return 0


def _loop(
    host: ReplayHost,
    page: ActivationPage | None,
    collector: _Collector,
    frames: list[SandboxDown] | None,
    batches: Iterator[list[SandboxDown]],
    answers: _Answers,
) -> None:
    while frames is not None:
        for frame in frames:
            if isinstance(frame, Bye):
                answers.flush()
                return
            if page is not None and isinstance(frame, Activate | LoadRun | Query | ValidateUpdate):
                page.exchange = frame.exchange
            answers.extend(host.handle(frame))
        answers.flush()
        # With the answers gone there is time to tidy up.
        host.close_evicted()
        collector.collect_if_due()
        frames = next(batches, None)


def main() -> None:
    """Serve the socket whose file descriptor is the only argument."""
    from durablefuture_trio.ports.child_process import end_with_parent

    end_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        try:
            code = _serve(sock)
        except (BrokenPipeError, ConnectionResetError):  # the supervisor is gone
            code = 0
    # The interpreter's own end would run the finally blocks of cached runs, without guards.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
