"""One attempt of an activity: what is handed out, and what comes back."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from durablefuture_trio.codec.payload import Failure, Payload
from durablefuture_trio.history.events import FailureReason, TimeoutKind


class ActivityKey(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of one call of one run."""

    run_id: str
    activity_id: int
    attempt: int


class RunActivity(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Run one attempt.

    Attributes:
        start_to_close: seconds the attempt may take once it runs.
        deadline: Unix seconds at which the attempt has to be over; ``timeout`` says by which limit.
    """

    key: ActivityKey
    workflow_id: str
    name: str
    arguments: Payload
    start_to_close: float | None = None
    deadline: float | None = None
    timeout: TimeoutKind | None = None
    heartbeat_timeout: float | None = None


class AttemptCompleted(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """The attempt returned."""

    key: ActivityKey
    started_at: float
    result: Payload


class AttemptFailed(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """The attempt ended without a result."""

    key: ActivityKey
    started_at: float
    reason: FailureReason
    failure: Failure
    timeout: TimeoutKind | None = None


AttemptOutcome: TypeAlias = AttemptCompleted | AttemptFailed
