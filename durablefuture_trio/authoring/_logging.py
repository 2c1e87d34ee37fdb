"""Loggers that know the run or the attempt they are used in."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from durablefuture_trio.authoring._activity_context import current_activity
from durablefuture_trio.authoring._runtime import current_run


class WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's ids to every record, and is silent while recorded history is repeated."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("durablefuture_trio.workflow"), {})

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the standard library's name
        run = current_run.get()
        return not (run is not None and run.replaying()) and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        run = current_run.get()
        if run is not None:
            info = run.info
            ids = {"workflow": info.workflow, "workflow_id": info.workflow_id, "run_id": info.run_id}
            kwargs["extra"] = {**ids, **(kwargs.get("extra") or {})}
        return msg, kwargs


class ActivityLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the attempt's ids to every record."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("durablefuture_trio.activity"), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        context = current_activity.get()
        if context is not None:
            ids = {
                "activity": context.activity,
                "workflow_id": context.workflow_id,
                "run_id": context.run_id,
                "activity_id": context.activity_id,
                "attempt": context.attempt,
            }
            kwargs["extra"] = {**ids, **(kwargs.get("extra") or {})}
        return msg, kwargs
