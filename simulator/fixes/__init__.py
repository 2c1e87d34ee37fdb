"""Does each fix of the protocol matter? Each is taken out, and random lives go on until one shows what it was for.

python -m simulator.fixes [--seeds N] [--seconds S] [--markdown] [NAME ...]
"""

from __future__ import annotations

import argparse
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from simulator.fixes.cluster import CLUSTER_FIXES
from simulator.fixes.findings import FINDINGS
from simulator.fixes.runs import RUN_FIXES
from simulator.fixes.switch import Fix, Patch, StaleSwitch
from simulator.life import PATIENCE_S, Life
from simulator.scenario import scenario_of
from simulator.world import World

__all__ = ["FIXES", "Fix", "Search", "StaleSwitch", "live_without", "search"]


def _together(name: str, *names: str) -> Fix:
    """Fixes that cover for each other."""
    fixes = [fix for fix in (*CLUSTER_FIXES, *RUN_FIXES) if fix.name in names]
    assert len(fixes) == len(names), f"{name}: not all of {names} exist"
    return Fix(
        name,
        ", ".join(dict.fromkeys(fix.holes for fix in fixes)),
        "; and ".join(fix.without for fix in fixes),
        tuple(patch for fix in fixes for patch in fix.patches),
    )


PAIRS = (
    _together(
        "gaps, and schedules that are armed again",
        "a gap in the deliveries means a new epoch",
        "overdue schedules are armed again",
    ),
    _together(
        "the time of a run, and the server's clock",
        "the time of a run never goes back",
        "owners go by the server's clock",
    ),
)

FIXES: dict[str, Fix] = {
    fix.name: replace(fix, **vars(FINDINGS[fix.name])) for fix in (*CLUSTER_FIXES, *RUN_FIXES, *PAIRS)
}
"""Every fix, by name."""

DEFAULT_SEEDS = 2000
DEFAULT_SECONDS = 60.0

MAX_TURNS = 400_000
"""Of one life: healthy ones take 10,000 at most, those in which clients wait in vain 150,000."""

LONGEST_S = 20.0
"""Of a processor, for one life; those in which clients wait in vain take 5."""

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


def live_without(fix: Fix, seed: int, *, patience_s: float = PATIENCE_S) -> list[str]:
    """The anomalies of one life without this fix.

    Args:
        patience_s: see `Life`.

    Raises:
        StaleSwitch: the product has changed so that the switch of the fix does not fit any more.
    """
    with fix.removed() as parts:
        anomalies = Life(fix.scenario(scenario_of(seed)), parts, patience_s=patience_s).live().anomalies
    for anomaly in anomalies:
        if _FAULTS_OF_SWITCHES.search(anomaly):
            raise StaleSwitch(f"the switch of {fix.name!r} does not fit the product any more: {anomaly}")
    return anomalies


def search(
    fix: Fix, seeds: Iterable[int], *, seconds: float = DEFAULT_SECONDS, patience_s: float = PATIENCE_S
) -> Search:
    """Live without this fix until an anomaly shows, the seeds are used up or the time is over.

    Raises:
        StaleSwitch: as `live_without`.
        AssertionError: the life that shows an anomaly shows one with the fix in place as well.
    """
    began = time.process_time()
    found = _search(fix, seeds, seconds, patience_s, began)
    if found.seed is not None:
        _check_healthy(fix, found.seed, patience_s)
    return found


def _search(fix: Fix, seeds: Iterable[int], seconds: float, patience_s: float, began: float) -> Search:
    lives = 0
    with _Limit(seconds) as limit:
        for seed in seeds:
            anomalies = limit.of_life(partial(live_without, fix, seed, patience_s=patience_s))
            if anomalies is None:
                break
            lives += 1
            if wanted := [anomaly for anomaly in anomalies if re.search(fix.caught_by, anomaly)]:
                return Search(fix, lives, seed, wanted[0], time.process_time() - began)
    return Search(fix, lives, None, "", time.process_time() - began)


def _check_healthy(fix: Fix, seed: int, patience_s: float) -> None:
    with fix.in_place() as parts:
        anomalies = Life(fix.scenario(scenario_of(seed)), parts, patience_s=patience_s).live().anomalies
    if anomalies:
        raise AssertionError(f"seed {seed} shows an anomaly also with {fix.name!r} in place: {anomalies[0]}")


class _GivenUpError(BaseException):
    """Not an Exception: nothing that lives may take it for a fault of its own."""


class _Limit:
    """Ends lives that go round in circles, and the one that goes on when the time is over. In seconds of processor."""

    def __init__(self, seconds: float) -> None:
        self._over_at = time.process_time() + seconds
        self._turns = 0
        self._is_given_up = False
        self._patch = Patch(World, "_run_ready", self._run_ready)

    def __enter__(self) -> _Limit:
        self._stack = ExitStack()
        self._stack.enter_context(self._patch.applied())
        self._stack.callback(signal.signal, signal.SIGPROF, signal.signal(signal.SIGPROF, self._alarm))
        self._stack.callback(signal.setitimer, signal.ITIMER_PROF, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of_life(self, live: Callable[[], list[str]]) -> list[str] | None:
        """The anomalies of a life; None: it was not over in time."""
        self._turns, self._is_given_up = 0, False
        # For one that is caught in a single turn. Again and again: whatever it comes up in may swallow the first one.
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S, 1.0)
        try:
            anomalies = live()
        except _GivenUpError:
            anomalies = []
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if not self._is_given_up:
            return anomalies
        return None if time.process_time() > self._over_at and self._turns < MAX_TURNS else [CIRCLES]

    def _run_ready(self, original: Callable[[World], None], world: World) -> None:
        self._turns += 1
        if self._turns > MAX_TURNS or time.process_time() > self._over_at:
            self._alarm(0, None)
        original(world)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        self._is_given_up = True
        raise _GivenUpError


def main(arguments: list[str]) -> int:
    """The command; the exit code is 1 if a fix that lives are known to show was not shown."""
    parser = argparse.ArgumentParser(prog="python -m simulator.fixes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a fix, or the number of a hole; all others are left out"
    )
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="lives for each fix (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="processor time for each fix")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/reliability.md, without lives")
    options = parser.parse_args(arguments)
    chosen = [
        fix
        for fix in FIXES.values()
        if not options.names or any(name == fix.name or name in fix.holes.split(", ") for name in options.names)
    ]
    if options.markdown:
        print("\n".join(_table(chosen)))
        return 0
    missed = 0
    for fix in chosen:
        found = search(fix, range(options.seeds), seconds=options.seconds)
        missed += bool(fix.caught_by) and found.seed is None
        said = "not shown" if found.seed is None else f"seed {found.seed}: {found.anomaly[:160]}"
        print(f"{fix.holes or '-':10} {fix.name:55} {found.lives:5} lives {found.took_s:6.1f} s  {said}", flush=True)
    return 1 if missed else 0


def _table(fixes: list[Fix]) -> list[str]:
    shown = [fix for fix in fixes if fix.caught_by]
    lines = ["| Fix | Hole | Taken out | What lives showed | Lives |", "|---|---|---|---|--:|"]
    for fix in shown:
        lives = f"{fix.lives}, with {fix.focused}" if fix.focused else str(fix.lives)
        lines.append(f"| {fix.name} | {fix.holes} | {fix.without} | {_words(fix)} | {lives} |")
    lines += ["", "| Fix | Hole | Taken out | Why no life shows it |", "|---|---|---|---|"]
    lines += [f"| {fix.name} | {fix.holes} | {fix.without} | {fix.remark} |" for fix in fixes if not fix.caught_by]
    return lines


_WORDS = {
    "still wait": "clients and runs still wait 50 minutes after the last fault",
    "is listed as": "a closed run is listed as open",
    "refused to its client, and ran": "a refused start ran",
    "ran 2 times": "one attempt ran twice",
    "has no run": "clients were given runs that do not exist",
    "commits": "two commits under one number",
    "time went back": "time went back",
    "terminate": "what a client was told of a termination is not so",
    "KeyError": "histories with holes were taken for whole",
    "scheduled twice": "histories that do not replay",
    "never scheduled": "outcomes of one run in another",
    "left behind": "messages or listing records that nobody will ever look at",
    "again and again": "a timer fires without end",
    "goes round in circles": "owners go round in circles",
}
"""What the patterns of findings stand for, for people."""


def _words(fix: Fix) -> str:
    first = fix.caught_by.split("|")[0]
    return next(words for pattern, words in _WORDS.items() if first.startswith(pattern))
