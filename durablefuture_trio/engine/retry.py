"""Retry arithmetic: whether a failed attempt is followed by another, and when. Decided by the owner alone."""

from __future__ import annotations

from zlib import crc32

from durablefuture_trio.codec.payload import Failure
from durablefuture_trio.history.events import FailureReason
from durablefuture_trio.history.options import RetryPolicy
from durablefuture_trio.history.state import ActivityState

MAX_FREE_IN_A_ROW = 3
"""So many losses that were not the attempt's own fault are forgiven one after the other."""

_DEFAULT_INTERVAL_CAP = 100.0


def backoff_s(policy: RetryPolicy, failed: int, jitter_unit: float = 0.0) -> float:
    """Seconds to wait after the `failed`-th failed attempt (from 1). `jitter_unit` is a random number in [0, 1)."""
    cap = policy.maximum_interval
    if cap is None:
        cap = policy.initial_interval * _DEFAULT_INTERVAL_CAP
    try:
        interval = min(cap, policy.initial_interval * policy.backoff_coefficient ** (failed - 1))
    except OverflowError:
        interval = cap
    return interval * (1.0 - policy.jitter * jitter_unit)


def is_retryable(policy: RetryPolicy, failure: Failure) -> bool:
    """Whether the failure's flag, its type and the bases of its type leave room for another attempt.

    The failures inside an exception group of one are looked at in its place.
    """
    if failure.non_retryable:
        return False
    names = policy.non_retryable_error_types
    if not names:
        return True
    return failure.type not in names and not any(base in names for base in failure.mro)


def call_deadline(activity: ActivityState) -> float | None:
    """When the whole call has to be over (``schedule_to_close``), in Unix seconds; None: it has no such limit."""
    limit = activity.options.schedule_to_close_timeout
    return None if limit is None else activity.scheduled_at + limit


def is_free(activity: ActivityState, reason: FailureReason) -> bool:
    """Whether a failed attempt does not count: its worker was lost with it or beside it.

    Never with ``maximum_attempts == 1``, which people use to say at most once.
    """
    return (
        reason == "lost"
        and activity.free_in_a_row < MAX_FREE_IN_A_ROW
        and activity.options.retry_policy.maximum_attempts != 1
    )


def retry_at(
    activity: ActivityState, *, run_id: str, reason: FailureReason, failure: Failure, at: float
) -> float | None:
    """When the next attempt is due after this one failed at `at`; None: the failure is final."""
    if activity.cancel_requested:
        return None
    policy = activity.options.retry_policy
    if is_free(activity, reason):
        # The first loss is repaired at once; one that takes its worker along each time is slowed down.
        lost = activity.free_in_a_row
        due = at if lost == 0 else at + backoff_s(policy, lost)
    else:
        failed = activity.counted + 1
        if policy.maximum_attempts is not None and failed >= policy.maximum_attempts:
            return None
        if not is_retryable(policy, failure):
            return None
        unit = crc32(f"{run_id}/{activity.activity_id}/{activity.attempt}".encode()) / 2**32
        delay = failure.next_retry_delay
        due = at + (backoff_s(policy, failed, unit) if delay is None else max(0.0, delay))
    deadline = call_deadline(activity)
    if deadline is not None and due >= deadline:
        return None
    return due
