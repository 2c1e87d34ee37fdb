"""What the activities of generated programs do, attempt by attempt, and the two activities themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal
from zlib import crc32

import msgspec

from durablefuture_trio.authoring import ActivityDefinition, activity
from durablefuture_trio.errors import ApplicationError
from durablefuture_trio.history.options import RetryPolicy

How = Literal["returns", "fails", "refuses", "crashes", "hangs"]

FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 2.0


class Behaviour(msgspec.Struct, frozen=True):
    """How the attempts of one call go. It travels as the call's first argument.

    Attributes:
        how: what the first attempts do: ``returns``; ``fails`` with an error that may be retried, ``refuses`` with one
            that may not; ``crashes``, its process with it; ``hangs`` until ``start_to_close``.
        times: so many attempts do that, those after them return; None: all attempts.
        seconds: how long an attempt takes.
        maximum_attempts, start_to_close, schedule_to_close: options of the call; None: no limit (and the default
            ``start_to_close``).
        abandon: ``abandon_on_cancel``.
    """

    how: How = "returns"
    times: int | None = None
    seconds: float = 0.0
    maximum_attempts: int | None = None
    start_to_close: float | None = None
    schedule_to_close: float | None = None
    abandon: bool = False

    @property
    def always_fails(self) -> bool:
        """Whether no attempt returns."""
        return self.how != "returns" and self.times is None

    @property
    def bounded(self) -> bool:
        """Whether lost attempts alone can make the call fail."""
        return self.maximum_attempts is not None or self.schedule_to_close is not None

    @property
    def may_fail(self) -> bool:
        """Whether the call can end in an `ActivityError`."""
        return self.always_fails or self.bounded

    @property
    def may_fail_when_cancelled(self) -> bool:
        """Whether a call that is cancelled can still end in an `ActivityError`: an attempt that answers with an error
        is the last one, where no attempt would be if nobody had cancelled it."""
        return self.may_fail or self.how == "fails"

    @property
    def certain(self) -> bool:
        """Whether it is the same with any timing, losses and kills if the call fails, and what it returns."""
        return self.always_fails or not self.bounded

    @property
    def certain_failure(self) -> bool:
        """Whether its failure is always the same one."""
        return self.how == "refuses" and not self.bounded

    @property
    def longest_s(self) -> float:
        """Roughly how long the call takes when nothing is lost."""
        tries = self.times if self.times is not None else (self.maximum_attempts or 1)
        tries = 0 if self.how == "returns" else 1 if self.how == "refuses" else tries
        each = self.start_to_close if self.how == "hangs" and self.start_to_close is not None else self.seconds
        longest = self.seconds + tries * (each + LONGEST_RETRY_S)
        return longest if self.schedule_to_close is None else max(longest, self.schedule_to_close)

    def calls(self, definition: ActivityDefinition[Any, int]) -> ActivityDefinition[Any, int]:
        """The activity with the options that belong to this behaviour."""
        policy = RetryPolicy(
            initial_interval=FIRST_RETRY_S, maximum_interval=LONGEST_RETRY_S, maximum_attempts=self.maximum_attempts
        )
        chosen = definition.with_options(retry_policy=policy)
        if self.start_to_close is not None:
            chosen = chosen.with_options(start_to_close_timeout=self.start_to_close)
        if self.schedule_to_close is not None:
            chosen = chosen.with_options(schedule_to_close_timeout=self.schedule_to_close)
        if self.abandon:
            chosen = chosen.with_options(abandon_on_cancel=True)
        return chosen

    def describe(self) -> str:
        """A few words."""
        words: list[str] = [self.how]
        if self.how != "returns":
            words.append("always" if self.times is None else f"{self.times} times")
        if self.seconds:
            words.append(f"after {self.seconds:g} s")
        limits = ("maximum_attempts", "start_to_close", "schedule_to_close")
        words += [f"{limit}={value:g}" for limit in limits if (value := getattr(self, limit)) is not None]
        if self.abandon:
            words.append("abandoned when cancelled")
        return " ".join(words)

    @property
    def complexity(self) -> int:
        """0 for the plain one; `simpler` goes down."""
        special = sum(
            value is not None for value in (self.maximum_attempts, self.start_to_close, self.schedule_to_close)
        )
        return (
            2 * special
            + (0 if self.how == "returns" else 5 + (self.times or 0))
            + (SECONDS.index(self.seconds) if self.seconds in SECONDS else len(SECONDS))
            + self.abandon
        )


SECONDS = (0.0, 0.01, 0.05, 0.3, 2.0, 20.0)
"""How long attempts take; the longest is below every ``start_to_close`` that a program sets around calls."""

PLAIN = Behaviour()


@dataclass(frozen=True)
class AttemptPlan:
    """What a pool has to do for one attempt.

    Attributes:
        duration_s: how long it takes until then; nothing for ``hang``.
        how: ``return``: run the activity's function; ``raise``: fail with `error`; ``crash``: the process is gone;
            ``hang``: nothing ever comes, so that the attempt's own limit ends it.
        error: for ``raise``.
    """

    duration_s: float
    how: Literal["return", "raise", "crash", "hang"]
    error: ApplicationError | None = None


def plan_of(activity_name: str, arguments: Sequence[Any], failed: int) -> AttemptPlan:
    """What the next attempt of a call does.

    Args:
        activity_name: registered name; activities of others just return.
        arguments: of the call, decoded as the activity's annotations say.
        failed: how many attempts of this call (run and activity id) have ended otherwise than by returning, in the
            world, whatever became of their outcomes.
    """
    if activity_name not in ACTIVITIES:
        return AttemptPlan(0.0, "return")
    behaviour, value = arguments
    assert isinstance(behaviour, Behaviour)
    if behaviour.how == "returns" or (behaviour.times is not None and failed >= behaviour.times):
        return AttemptPlan(behaviour.seconds, "return")
    if behaviour.how == "crashes":
        return AttemptPlan(behaviour.seconds, "crash")
    if behaviour.how == "hangs":
        return AttemptPlan(0.0, "hang")
    refused = behaviour.how == "refuses"
    error = ApplicationError(
        f"{activity_name} of {value}", type="Refused" if refused else "Failed", non_retryable=refused
    )
    return AttemptPlan(behaviour.seconds, "raise", error)


def mix(*parts: int | str) -> int:
    """A digest of values in their order, the same in every process."""
    return crc32(repr(parts).encode())


@activity
async def work(behaviour: Behaviour, value: int) -> int:
    """One value made of another."""
    return mix("work", value)


@activity
async def tally(behaviour: Behaviour, values: list[int]) -> int:
    """One value made of many."""
    return mix("tally", *values)


ACTIVITIES: dict[str, ActivityDefinition[Any, int]] = {item.name: item for item in (work, tally)}


def _seconds(rng: Random) -> float:
    return rng.choices(SECONDS, (30, 15, 20, 15, 8, 1))[0]


def _limit(rng: Random) -> float:
    return rng.choice((0.5, 0.7, 2.0))


RECIPES: dict[str, tuple[int, Callable[[Random], Behaviour]]] = {
    "plain": (30, lambda rng: Behaviour(seconds=_seconds(rng))),
    "flaky": (8, lambda rng: Behaviour("fails", rng.randint(1, 4), _seconds(rng))),
    "crashing": (6, lambda rng: Behaviour("crashes", rng.randint(1, 3), _seconds(rng))),
    "stalling": (3, lambda rng: Behaviour("hangs", rng.randint(1, 2), 0.05, start_to_close=_limit(rng))),
    "refusing": (5, lambda rng: Behaviour("refuses", None, _seconds(rng))),
    "failing": (5, lambda rng: Behaviour("fails", None, _seconds(rng), maximum_attempts=2)),
    "poisonous": (2, lambda rng: Behaviour("crashes", None, _seconds(rng), maximum_attempts=rng.randint(1, 3))),
    "hanging": (4, lambda rng: Behaviour("hangs", None, start_to_close=_limit(rng), maximum_attempts=2)),
    "expiring": (3, lambda rng: Behaviour("fails", None, 0.05, schedule_to_close=rng.choice((0.7, 3.0)))),
    "once": (5, lambda rng: Behaviour(seconds=_seconds(rng), maximum_attempts=1)),
    "failing once": (2, lambda rng: Behaviour("fails", None, _seconds(rng), maximum_attempts=1)),
    "lucky": (3, lambda rng: Behaviour("fails", 1, _seconds(rng), maximum_attempts=2)),
}  # fmt: skip


def make_behaviour(rng: Random, *, steady: bool, may_fail: bool, calm: bool = False) -> Behaviour:
    """A random behaviour.

    Args:
        steady: only those that are `Behaviour.certain`.
        may_fail: whether those that can make a call fail are among them.
        calm: only those that do not fail when they are cancelled.
    """
    drawn = [(weight, make(rng)) for weight, make in RECIPES.values()]
    fitting = [
        (weight, one)
        for weight, one in drawn
        if (may_fail or not one.may_fail) and (one.certain or not steady) and not (calm and one.may_fail_when_cancelled)
    ]
    chosen = rng.choices([one for _, one in fitting], [weight for weight, _ in fitting])[0]
    return msgspec.structs.replace(chosen, abandon=rng.random() < 0.1)
