"""What activities really did: one line in a file when an attempt begins, one when it ends, whoever dies meanwhile.

Each line is one write to a file opened for appending, so lines of several processes never mix, and a line that was
written stays written when its process is killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from durablefuture_trio import activity

DIRECTORY_VARIABLE = "CHAOS_DIRECTORY"
"""Environment variable: where the witnesses and gates of a test are."""

_FILE = "witnesses.jsonl"


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that began or ended in a process. ``at`` is Unix seconds."""

    what: Literal["begin", "end"]
    activity: str
    workflow_id: str
    run_id: str
    activity_id: int
    attempt: int
    pid: int
    at: float

    @property
    def key(self) -> tuple[str, int, int]:
        return self.run_id, self.activity_id, self.attempt


@contextmanager
def witnessed() -> Iterator[None]:
    """Leave a line when the attempt begins, and one when it ends without an error."""
    _write("begin")
    yield
    _write("end")


def _write(what: Literal["begin", "end"]) -> None:
    info = activity.info()
    line = Witness(
        what=what,
        activity=info.activity,
        workflow_id=info.workflow_id,
        run_id=info.run_id,
        activity_id=info.activity_id,
        attempt=info.attempt,
        pid=os.getpid(),
        at=time.time(),
    )
    descriptor = os.open(directory() / _FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(line) + b"\n")
    finally:
        os.close(descriptor)


def directory() -> Path:
    """The directory of the running test; for activities."""
    return Path(os.environ[DIRECTORY_VARIABLE])


def read_witnesses(test_directory: Path) -> list[Witness]:
    """All lines so far, in the order they were written."""
    try:
        content = (test_directory / _FILE).read_bytes()
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Witness) for line in content.splitlines()]


def gate_path(test_directory: Path, name: str) -> Path:
    """The file whose existence lets activities pass that wait at the gate."""
    return test_directory / f"gate-{name}"
