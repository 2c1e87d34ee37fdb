"""The options of activities: checked where they are written, merged where the activity is called."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, TypedDict, Unpack

from durablefuture_trio.history.options import DEFAULT_START_TO_CLOSE_S, ActivityOptionsRecord, Isolation, RetryPolicy


class ActivityOptions(TypedDict, total=False):
    """The durable options of an activity. Durations are seconds or a timedelta; None means no limit.

    Keys:
        start_to_close_timeout: limit of one attempt. 600 seconds when neither this nor the next one is given.
        schedule_to_close_timeout: limit of the call with all its attempts and the pauses between them.
        schedule_to_start_timeout: limit of the wait for a worker.
        heartbeat_timeout: longest silence of a running attempt.
        retry_policy: how failed attempts are repeated.
        task_queue: name of the queue whose workers run it.
        priority: lower runs first; 0 is the default.
        fairness_key: waiting calls are taken from these keys in turn.
        abandon_on_cancel: a cancelled call returns at once instead of waiting for the attempt to end.
        isolation: ``"process"`` gives the attempt a process of its own; ``"shared"`` is the default.
    """

    start_to_close_timeout: float | timedelta | None
    schedule_to_close_timeout: float | timedelta | None
    schedule_to_start_timeout: float | timedelta | None
    heartbeat_timeout: float | timedelta | None
    retry_policy: RetryPolicy
    task_queue: str
    priority: int
    fairness_key: str
    abandon_on_cancel: bool
    isolation: Isolation


class OptionsScope:
    """Options in force in a dynamic scope, already merged with those of the scopes around it."""

    __slots__ = ("options",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options: Final = options


_WITHOUT_EFFECT = frozenset({"schedule_to_start_timeout", "heartbeat_timeout", "priority", "fairness_key", "isolation"})
_told: set[tuple[str, str]] = set()
_log = logging.getLogger("durablefuture_trio.authoring")

_scope: ContextVar[OptionsScope | None] = ContextVar("durablefuture_activity_options", default=None)
_configured: Mapping[str, Any] = {}


def current_scope() -> OptionsScope | None:
    """The innermost scope the calling task is in."""
    return _scope.get()


def configured_options() -> Mapping[str, Any]:
    """The defaults of the configuration, checked and in seconds."""
    return _configured


def configure_options(options: Mapping[str, Any]) -> None:
    """Take the configuration's defaults for all activities of this process; replaces earlier ones.

    Raises:
        TypeError, ValueError: as `checked_options`.
    """
    global _configured  # noqa: PLW0603 - one configuration for the process, set when it starts
    _configured = checked_options(options, "the configuration of activities")


@contextmanager
def activity_options(**options: Unpack[ActivityOptions]) -> Iterator[None]:
    """Options for every activity called in this dynamic scope, in tasks started within it too.

    They go before the activity's own; an inner scope goes before an outer one, field by field:

        with activity_options(task_queue="gpu", start_to_close_timeout=120):
            frames = await render(scene)

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value out of its range.
    """
    checked = checked_options(options, "activity_options")
    outer = _scope.get()
    token = _scope.set(OptionsScope(checked if outer is None else {**outer.options, **checked}))
    try:
        yield
    finally:
        _scope.reset(token)


def checked_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`options` with durations in seconds.

    Args:
        where: what they were given to, for the messages.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value out of its range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is None:
            raise TypeError(f"{where}: unknown option {name!r}; the options are {', '.join(_CHECKS)}")
        try:
            checked[name] = check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {name} {error}") from None
        if name in _WITHOUT_EFFECT and (where, name) not in _told:
            # Rather than let anybody rely on a limit that is not there.
            _told.add((where, name))
            _log.warning("%s: %s is accepted and has no effect in this version", where, name)
    return checked


def merged_record(*layers: Mapping[str, Any]) -> ActivityOptionsRecord:
    """The record of a call from checked layers of options, the weakest first."""
    fields: dict[str, Any] = {}
    for layer in layers:
        fields.update(layer)
    if fields.get("start_to_close_timeout") is None and fields.get("schedule_to_close_timeout") is None:
        fields["start_to_close_timeout"] = DEFAULT_START_TO_CLOSE_S
    return ActivityOptionsRecord(**fields)


def _duration(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise TypeError(f"must be seconds or a timedelta, not {value!r}")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"must be above 0 seconds and finite (None: no limit), not {value!r}")
    return seconds


def _instance_of(cls: type, words: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
            raise TypeError(f"must be {words}, not {value!r}")
        return value

    return check


def _task_queue(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be the name of a queue, not {value!r}")
    if not value:
        raise ValueError("must not be empty")
    return value


def _isolation(value: Any) -> str:
    if value not in ("shared", "process"):
        raise ValueError(f"must be 'shared' or 'process', not {value!r}")
    return str(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "start_to_close_timeout": _duration,
    "schedule_to_close_timeout": _duration,
    "schedule_to_start_timeout": _duration,
    "heartbeat_timeout": _duration,
    "retry_policy": _instance_of(RetryPolicy, "a RetryPolicy"),
    "task_queue": _task_queue,
    "priority": _instance_of(int, "an integer"),
    "fairness_key": _instance_of(str, "text"),
    "abandon_on_cancel": _instance_of(bool, "True or False"),
    "isolation": _isolation,
}
