"""The application that runs in a storm: random programs, whose activities leave a line when they begin and then carry
out for real what simulated pools play: raise, hang, kill their own process.
"""

from __future__ import annotations

import os
import signal
import time
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from durablefuture_trio import activity
from simulator.programs import expected_outcome, generate, plan_of, program
from simulator.programs.behaviours import Behaviour, mix
from simulator.storm.witnesses import witnessed

if TYPE_CHECKING:
    from simulator.oracle import Outcome
    from simulator.programs import Program


@activity(name="work")
async def real_work(behaviour: Behaviour, value: int) -> int:
    """What programs call as ``work``."""
    with witnessed():
        plan = plan_of("work", (behaviour, value), _failed())
        await trio.sleep(plan.duration_s)
        if plan.how == "hang":
            if _variant(4) == 0:
                _hang_for_ever()  # heeds no cancel, and nobody else in the process goes on
            await trio.sleep_forever()
        _misbehave(plan.how, plan.error)
        return mix("work", value)


@activity(name="tally")
def real_tally(behaviour: Behaviour, values: list[int]) -> int:
    """What programs call as ``tally``, in a thread; one that hangs can only be ended with its process."""
    with witnessed():
        plan = plan_of("tally", (behaviour, values), _failed())
        time.sleep(plan.duration_s)
        if plan.how == "hang":
            _hang_for_ever()
        _misbehave(plan.how, plan.error)
        return mix("tally", *values)


def _failed() -> int:
    """Attempts that were lost to the storm count like those that failed by themselves."""
    return activity.info().attempt - 1


def _variant(count: int) -> int:
    """One of so many ways to do it, the same for an attempt wherever it runs."""
    info = activity.info()
    return mix(info.idempotency_key, info.attempt) % count


def _hang_for_ever() -> None:
    while True:
        time.sleep(60)


def _misbehave(how: str, error: Exception | None) -> None:
    if how == "crash":
        match _variant(3):
            case 0:
                os._exit(3)
            case 1:
                os.abort()
            case _:
                os.kill(os.getpid(), signal.SIGKILL)
    if error is not None:
        raise error


DEFINITIONS: tuple[Any, ...] = (real_work, real_tally, program)


def draw_program(rng: Random, longest_span_s: float) -> tuple[Program, Outcome]:
    """A program from a seed, and how its runs have to end.

    Args:
        longest_span_s: seconds it may take when nobody disturbs it.
    """
    while True:
        drawn = generate(rng)
        if drawn.span_s <= longest_span_s:
            return drawn, expected_outcome(drawn)
