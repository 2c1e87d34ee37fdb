"""Many lives, in several processes, and what they came to."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from simulator.life import Life
from simulator.scenario import scenario_of

CHUNK = 10


class Tally(msgspec.Struct):
    """What many lives came to."""

    lives: int = 0
    runs: int = 0
    attempts: int = 0
    virtual_s: float = 0.0
    faults: dict[str, int] = {}
    anomalies: dict[int, list[str]] = {}

    def add(self, other: Tally) -> None:
        """Add other lives."""
        self.lives += other.lives
        self.runs += other.runs
        self.attempts += other.attempts
        self.virtual_s += other.virtual_s
        self.faults = dict(Counter(self.faults) + Counter(other.faults))
        self.anomalies |= other.anomalies

    @property
    def injected(self) -> int:
        """Faults of all kinds."""
        return sum(self.faults.values())


def live_through(seeds: Iterable[int]) -> Tally:
    """One life for each seed."""
    tally = Tally()
    for seed in seeds:
        report = Life(scenario_of(seed)).live()
        found = {seed: report.anomalies} if report.anomalies else {}
        tally.add(Tally(1, report.runs, report.attempts, report.lasted_s, dict(report.injected), found))
    return tally


def tallies(first: int, count: int, jobs: int) -> Iterator[Tally]:
    """Lives in several processes, as they come in."""
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    if jobs == 1:
        yield from map(live_through, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(live_through, chunks)


def kind_of(anomalies: list[str]) -> str | None:
    """The first anomaly without its particulars; None: there is none."""
    if not anomalies:
        return None
    return "".join(char for char in anomalies[0].partition(": ")[2][:24] if not char.isdigit())
