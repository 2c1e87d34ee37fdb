"""What a round of a storm is made of, drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from simulator.oracle import Outcome
from simulator.programs import Program
from simulator.storm.application import draw_program
from simulator.storm.clients import HABITS

STARTS_PER_S = 1.2
"""Two cores do about ten times that when nobody disturbs them."""

LONGEST_SPAN_S = 20.0
"""Programs take no longer than that, nor than the round, when nobody disturbs them."""

APART = 0.3
"""Share of the workflow ids whose clients are in a process that is killed, too."""


@dataclass(frozen=True)
class Assignment:
    """One workflow id: what runs under it, and how its clients treat it.

    Attributes:
        at_s: when the first client comes, seconds from the beginning of the round.
        expected: how each of its runs has to end.
        apart: its clients are in a process of their own.
        seed: of what the clients do.
    """

    workflow_id: str
    program: Program
    expected: Outcome
    at_s: float
    habit: str
    apart: bool
    seed: str

    @classmethod
    def drawn(cls, rng: Random, workflow_id: str, seconds: float, seed: str) -> Assignment:
        """For a round that long."""
        program, expected = draw_program(rng, min(seconds, LONGEST_SPAN_S))
        return cls(
            workflow_id=workflow_id,
            program=program,
            expected=expected,
            at_s=rng.uniform(0, 0.95 * seconds),
            habit=rng.choice(HABITS),
            apart=rng.random() < APART,
            seed=f"{seed} {workflow_id}",
        )


@dataclass(frozen=True)
class Plan:
    """One round.

    Attributes:
        seconds: how long it is disturbed.
        embedded: one supervisor with its own server; else all share one.
    """

    seed: str
    seconds: float
    supervisors: int
    embedded: bool
    lease_s: float
    shards: int
    replays: int
    workers: int
    concurrency: int
    cached_workflows: int
    assignments: tuple[Assignment, ...]

    @classmethod
    def drawn(cls, seed: str, seconds: float, *, supervisors: int | None, embedded: bool | None) -> Plan:
        """From a seed.

        Args:
            supervisors, embedded: instead of what the seed says.
        """
        rng = Random(f"plan {seed}")
        drawn_embedded, drawn_supervisors = rng.random() < 0.25, rng.randint(1, 3)
        if embedded is None:
            embedded = drawn_embedded and supervisors in (None, 1)
        figures = {
            "lease_s": rng.choice((2.0, 2.0, 5.0)),
            "shards": rng.choice((1, 4)),
            "replays": rng.randint(1, 2),
            "workers": rng.randint(2, 3),  # one alone is brought down all the time
            "concurrency": rng.choice((3, 50)),
            "cached_workflows": rng.choice((1, 5, 1000)),
        }
        numbers = range(max(5, round(seconds * STARTS_PER_S)))
        assignments = tuple(Assignment.drawn(rng, f"w{number}", seconds, seed) for number in numbers)
        return cls(
            seed=seed,
            seconds=seconds,
            supervisors=1 if embedded else supervisors or drawn_supervisors,
            embedded=embedded,
            assignments=assignments,
            lease_s=float(figures["lease_s"]),
            shards=int(figures["shards"]),
            replays=int(figures["replays"]),
            workers=int(figures["workers"]),
            concurrency=int(figures["concurrency"]),
            cached_workflows=int(figures["cached_workflows"]),
        )

    def __str__(self) -> str:
        server = "an embedded server" if self.embedded else "one server of their own"
        return (
            f"{self.supervisors} supervisors with {server}, lease {self.lease_s:g} s, {self.shards} shards, "
            f"{self.replays} replay and {self.workers} activity processes of {self.concurrency}, "
            f"{self.cached_workflows} cached, {len(self.assignments)} workflow ids"
        )
