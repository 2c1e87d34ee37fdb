"""What a replay process tells people: log records as frames, and where the tasks of a stuck run stand."""

from __future__ import annotations

import logging
from collections.abc import Callable

from durablefuture_trio.ports.frames import LogLine
from durablefuture_trio.sandbox._deterministic import STATE
from durablefuture_trio.sandbox._run import WorkflowRun


class FrameLogHandler(logging.Handler):
    """Turns log records into frames. While history is repeated they were logged before, and are dropped.

    Args:
        send: takes the frames.
    """

    def __init__(self, send: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._send = send
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, unless it comes from a replay."""
        run = STATE.run
        run_id = ""
        if isinstance(run, WorkflowRun):
            if run.replaying():
                return
            run_id = run.info.run_id
        try:
            message = self.format(record)
        except Exception:  # noqa: BLE001 - logging's own rule: a record that cannot be formatted is reported, not raised
            self.handleError(record)
            return
        self._send(LogLine(level=record.levelname, logger=record.name, message=message, run_id=run_id))


def stacks_of_the_run_being_stepped() -> str:
    """Where its tasks stand; "" between activations."""
    run = STATE.run
    return run.task_stacks() if isinstance(run, WorkflowRun) else ""
