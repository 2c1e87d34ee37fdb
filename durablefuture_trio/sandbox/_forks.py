"""The process of a verifier: each history is replayed in a fork of its own, as in a process that has just begun.

What an earlier run has left behind in modules (a counter, a cache, a flag) is part of no history, and a process that
has replayed the same runs as the one it is to be compared with may have it too. A fork starts from what the imports
made. It costs one to two milliseconds.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from typing import Protocol

from durablefuture_trio.ports.activation_page import ActivationPage
from durablefuture_trio.ports.child_process import end_with_parent
from durablefuture_trio.ports.frames import Blocked, Bye, Evict, LoadRun, LogLine, Missing, SandboxDown, SandboxUp
from durablefuture_trio.sandbox._host import ReplayHost


class Answers(Protocol):
    """What goes up."""

    def extend(self, frames: list[SandboxUp]) -> None: ...

    def flush(self) -> None: ...


def replay_in_forks(
    host: ReplayHost,
    page: ActivationPage | None,
    frames: list[SandboxDown] | None,
    batches: Iterator[list[SandboxDown]],
    answers: Answers,
) -> None:
    """Serve `LoadRun` until the end; nothing is cached, so whatever else is asked of a run finds it missing.

    Args:
        host: has replayed nothing, and never does in this process.
        frames: those that have come already.
        batches: those that come.
    """
    _silence_prints()
    histories: dict[str, list[LoadRun]] = {}
    while frames is not None:
        for frame in frames:
            match frame:
                case Bye():
                    return
                case Evict():
                    histories.pop(frame.run_id, None)
                case LoadRun():
                    if frame.first:
                        histories[frame.run_id] = []
                    if (chunks := histories.get(frame.run_id)) is not None:
                        chunks.append(frame)
                    if frame.last:
                        _replay_in_fork(host, page, histories.pop(frame.run_id, [frame]), answers)
                case _:
                    if (exchange := getattr(frame, "exchange", None)) is not None:
                        answers.extend([Missing(exchange=exchange, run_id=getattr(frame, "run_id", ""))])
        answers.flush()
        frames = next(batches, None)


def _replay_in_fork(host: ReplayHost, page: ActivationPage | None, chunks: list[LoadRun], answers: Answers) -> None:
    answers.flush()  # or the fork would send it once more
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _replay_and_exit(host, page, chunks, answers, parent)
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        answers.extend(
            [
                Blocked(
                    exchange=chunks[-1].exchange,
                    run_id=chunks[-1].run_id,
                    kind="crashed",
                    message=f"The process that replayed the history of this run to verify it {how}.",
                )
            ]
        )


def _replay_and_exit(
    host: ReplayHost, page: ActivationPage | None, chunks: list[LoadRun], answers: Answers, parent: int
) -> None:
    code = 1
    try:
        end_with_parent()
        if os.getppid() == parent:
            for frame in chunks:
                if page is not None:
                    page.exchange = frame.exchange
                # The process that runs the workflow has logged what there is to say about its history.
                answers.extend([answer for answer in host.handle(frame) if not isinstance(answer, LogLine)])
            answers.flush()
            code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # Neither this process' other work nor the finally blocks of the run are its business.
        os._exit(code)


def _silence_prints() -> None:
    """What workflow code prints it has printed when it ran."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
