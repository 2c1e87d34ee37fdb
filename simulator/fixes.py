"""Does each fix of the protocol matter? Each is taken out, and random lives go on until one shows what it was for.

python -m simulator.fixes [--seeds N] [--seconds S] [--markdown] [NAME ...]
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType

from simulator._fix import Fix, Patch, StaleSwitch
from simulator._fix_cluster import CLUSTER_FIXES
from simulator._fix_runs import RUN_FIXES
from simulator.life import Life
from simulator.scenario import scenario_of
from simulator.world import World

__all__ = ["FIXES", "Fix", "Search", "StaleSwitch", "live_without", "search"]

FIXES: dict[str, Fix] = {fix.name: fix for fix in (*CLUSTER_FIXES, *RUN_FIXES)}
"""Every fix, by name."""

DEFAULT_SEEDS = 2000
DEFAULT_SECONDS = 60.0

MAX_TURNS = 400_000
"""Of one life: healthy ones take 10,000 at most, those in which clients wait in vain 150,000."""

CIRCLES = "goes round in circles"

_FAULTS_OF_SWITCHES = re.compile(r"\b(TypeError|AttributeError|NameError|UnboundLocalError)\(")


@dataclass(frozen=True)
class Search:
    """What came of the lives without one fix.

    Attributes:
        lives: how many there were.
        seed: the first one that showed an anomaly; None: none did.
        anomaly: its first one.
        took_s: seconds of a processor.
    """

    fix: Fix
    lives: int
    seed: int | None
    anomaly: str
    took_s: float


def live_without(fix: Fix, seed: int) -> list[str]:
    """The anomalies of one life without this fix.

    Raises:
        StaleSwitch: the product has changed so that the switch of the fix does not fit any more.
    """
    with fix.removed() as parts:
        anomalies = Life(fix.scenario(scenario_of(seed)), parts).live().anomalies
    for anomaly in anomalies:
        if _FAULTS_OF_SWITCHES.search(anomaly):
            raise StaleSwitch(f"the switch of {fix.name!r} does not fit the product any more: {anomaly}")
    return anomalies


def search(fix: Fix, seeds: Iterable[int], *, seconds: float = DEFAULT_SECONDS) -> Search:
    """Live without this fix until an anomaly shows, the seeds are used up or the time is over.

    Raises:
        StaleSwitch: as `live_without`.
    """
    began = time.process_time()
    lives = 0
    with _Limit(seconds) as limit:
        for seed in seeds:
            try:
                limit.turns = 0
                anomalies = live_without(fix, seed)
            except _GoesRoundInCircles:
                anomalies = [CIRCLES]
            except _OutOfTimeError:
                break
            if limit.is_over:
                break
            lives += 1
            if wanted := [anomaly for anomaly in anomalies if fix.caught_by in anomaly]:
                return Search(fix, lives, seed, wanted[0], time.process_time() - began)
    return Search(fix, lives, None, "", time.process_time() - began)


class _OutOfTimeError(BaseException):
    """Not an Exception: nothing that lives may take it for a fault of its own."""


class _GoesRoundInCircles(BaseException):
    """A life does far more than lives do, and comes to no end."""


class _Limit:
    """Ends lives that go round in circles, and the one that goes on when the time is over."""

    PATIENCE_S = 5.0

    def __init__(self, seconds: float) -> None:
        self.turns = 0
        self.is_over = False
        self._over_at = time.process_time() + seconds
        self._patch = Patch(World, "_run_ready", self._run_ready)

    def __enter__(self) -> _Limit:
        self._stack = ExitStack()
        self._stack.enter_context(self._patch.applied())
        self._stack.callback(signal.signal, signal.SIGPROF, signal.signal(signal.SIGPROF, self._alarm))
        self._stack.callback(signal.setitimer, signal.ITIMER_PROF, 0)
        # For a life that is caught in one turn. Again and again: whatever it comes up in may swallow the first one.
        signal.setitimer(signal.ITIMER_PROF, self._over_at - time.process_time() + self.PATIENCE_S, 1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _run_ready(self, original: Callable[[World], None], world: World) -> None:
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise _GoesRoundInCircles
        if time.process_time() > self._over_at:
            self.is_over = True
            raise _OutOfTimeError
        original(world)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        self.is_over = True
        raise _OutOfTimeError


def main(arguments: list[str]) -> int:
    """The command; the exit code is 1 if a fix that lives are known to show was not shown."""
    parser = argparse.ArgumentParser(prog="python -m simulator.fixes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a fix, or a part of its name or of its holes")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="lives for each fix at most")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="time for each fix at most")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/reliability.md")
    options = parser.parse_args(arguments)
    chosen = [
        fix
        for fix in FIXES.values()
        if not options.names or any(name == fix.name or name in fix.holes.split(", ") for name in options.names)
    ]
    missed = 0
    for fix in chosen:
        found = search(fix, range(options.seeds), seconds=options.seconds)
        missed += bool(fix.caught_by) and found.seed is None
        print(_row(found) if options.markdown else _line(found), flush=True)
    return 1 if missed else 0


def _line(found: Search) -> str:
    fix = found.fix
    said = "not shown" if found.seed is None else f"seed {found.seed}: {found.anomaly[:160]}"
    return f"{fix.holes or '-':10} {fix.name:50} {found.lives:5} lives {found.took_s:6.1f} s  {said}"


def _row(found: Search) -> str:
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
