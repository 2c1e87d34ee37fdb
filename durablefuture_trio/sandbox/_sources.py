"""Which line of the user's code is behind a call."""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType

import trio

import durablefuture_trio

_OWN = tuple(
    os.path.join(os.path.dirname(os.path.abspath(str(module.__file__))), "") for module in (durablefuture_trio, trio)
)
_STDLIB = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
_verdicts: dict[str, bool] = {}


def _is_users(filename: str) -> bool:
    verdict = _verdicts.get(filename)
    if verdict is None:
        is_library = filename.startswith(_OWN) or filename.startswith("<frozen")
        is_stdlib = filename.startswith(_STDLIB) and "site-packages" not in filename
        verdict = _verdicts[filename] = not (is_library or is_stdlib)
    return verdict


def source_here(depth: int = 1) -> str:
    """``file:line`` of the innermost caller that is user code, up to the run loop; "" if none is."""
    frame: FrameType | None = sys._getframe(depth)  # noqa: SLF001 - the documented way to look at callers
    while frame is not None and frame.f_code.co_name != "unrolled_run":
        if _is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def source_of_task(task: trio.lowlevel.Task) -> str:
    """``file:line`` where the task stands that spawned `task`: for a call that was itself started as a task."""
    nursery = task.parent_nursery
    while nursery is not None:
        source = ""
        for frame, line in nursery.parent_task.iter_await_frames():
            if _is_users(frame.f_code.co_filename):
                source = f"{frame.f_code.co_filename}:{line}"
        if source:
            return source
        nursery = nursery.parent_task.parent_nursery
    return ""


def source_of_traceback(traceback: TracebackType | None) -> str:
    """``file:line`` of the innermost user code in a traceback; "" if there is none."""
    source = ""
    while traceback is not None:
        if _is_users(traceback.tb_frame.f_code.co_filename):
            source = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return source
