"""The durable options of an activity, as the history records them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Literal

import msgspec

DEFAULT_START_TO_CLOSE_S = 600.0
"""Applied when a call has neither ``start_to_close_timeout`` nor ``schedule_to_close_timeout``."""

Isolation = Literal["shared", "process"]


def seconds(value: float | timedelta) -> float:
    """A duration in seconds, from a number of seconds or a timedelta."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How failed attempts of an activity are repeated.

    Attempt ``n`` (from 1) that fails is followed, after
    ``min(maximum_interval, initial_interval * backoff_coefficient ** (n - 1))`` seconds, by attempt ``n + 1``.

    Attributes:
        initial_interval: seconds before the second attempt.
        backoff_coefficient: factor between consecutive intervals, at least 1.
        maximum_interval: longest interval in seconds; None is 100 times the initial one.
        maximum_attempts: attempts in all, the first included; None is no limit.
        non_retryable_error_types: names of failure types (or of their base classes) that end the retries at once.
        jitter: a random share, 0 to 1, of each interval taken off it.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float | None = None
    maximum_attempts: int | None = None
    non_retryable_error_types: tuple[str, ...] = ()
    jitter: float = 0.0

    def __post_init__(self) -> None:
        put = msgspec.structs.force_setattr
        put(self, "initial_interval", seconds(self.initial_interval))
        if self.maximum_interval is not None:
            put(self, "maximum_interval", seconds(self.maximum_interval))
        kinds: object = self.non_retryable_error_types
        if isinstance(kinds, str) or not isinstance(kinds, Iterable):
            raise ValueError(f"non_retryable_error_types must be a tuple of names, not {kinds!r}")
        names = tuple(kind.__name__ if isinstance(kind, type) else str(kind) for kind in kinds)
        put(self, "non_retryable_error_types", names)
        if not self.initial_interval > 0:
            raise ValueError(f"initial_interval must be above 0 seconds, not {self.initial_interval!r}")
        if not self.backoff_coefficient >= 1:
            raise ValueError(f"backoff_coefficient must be at least 1, not {self.backoff_coefficient!r}")
        if self.maximum_interval is not None and not self.maximum_interval >= self.initial_interval:
            raise ValueError(
                f"maximum_interval ({self.maximum_interval!r} s) must not be below initial_interval "
                f"({self.initial_interval!r} s)"
            )
        if self.maximum_attempts is not None and self.maximum_attempts < 1:
            raise ValueError(f"maximum_attempts must be at least 1 (None: no limit), not {self.maximum_attempts!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must lie between 0 and 1, not {self.jitter!r}")


class ActivityOptionsRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The options of one activity call, merged and in seconds. Recorded with its first ActivityScheduled and never
    looked up in today's code again."""

    task_queue: str = "default"
    start_to_close_timeout: float | None = None
    schedule_to_close_timeout: float | None = None
    schedule_to_start_timeout: float | None = None
    heartbeat_timeout: float | None = None
    retry_policy: RetryPolicy = RetryPolicy()
    priority: int = 0
    fairness_key: str = ""
    abandon_on_cancel: bool = False
    isolation: Isolation = "shared"
