"""What an activity knows about the attempt it runs in. Set by the worker, for the task or thread of the attempt."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec


class ActivityInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of an activity.

    Attributes:
        activity: the registered name.
        workflow_id, run_id: the run that called it.
        activity_id: the number of the call in the run.
        attempt: which attempt this is, from 1.
        deadline: Unix seconds at which the attempt times out; None: never.
        idempotency_key: the same for all attempts of the call, another for every other call.
    """

    activity: str
    workflow_id: str
    run_id: str
    activity_id: int
    attempt: int
    deadline: float | None = None

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.activity_id}"

    @property
    def deadline_at(self) -> datetime | None:
        """`deadline` as an aware datetime."""
        return None if self.deadline is None else datetime.fromtimestamp(self.deadline, UTC)


current_activity: ContextVar[ActivityInfo | None] = ContextVar("durablefuture_current_activity", default=None)
