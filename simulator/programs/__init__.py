"""Random workflow programs: structured concurrency as a tree of data, run by one workflow.

`generate` makes them from a seed, `program` runs them, `plan_of` says what the attempts of their activities do, and
`expected_outcome` what has to come of those that end the same way whatever is killed and lost meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.authoring import workflow
from durablefuture_trio.history.events import Event, WorkflowCompleted, WorkflowFailed, WorkflowStarted
from simulator.programs.apart import run_apart
from simulator.programs.behaviours import AttemptPlan, Behaviour, plan_of, tally, work
from simulator.programs.desk import Carried, Desk, Order, Seen, adjust, errand, nudge, seen
from simulator.programs.kinds import ACTIVITY, APPLICATION, BASIC, SLOW
from simulator.programs.kinds_futures import FUTURES
from simulator.programs.kinds_messages import MESSAGES
from simulator.programs.kinds_scopes import SCOPES
from simulator.programs.kinds_talking import TALKING
from simulator.programs.kinds_workflows import WORKFLOWS
from simulator.programs.nodes import (
    CHAPTERS,
    CHILD,
    CONTINUED,
    NOTHING,
    Budget,
    Fate,
    Interpreter,
    Kind,
    Maker,
    Node,
    fate_of_program,
    words_of,
)

if TYPE_CHECKING:  # the oracle knows programs, too
    from simulator.oracle import Outcome

__all__ = [
    "DEFINITIONS",
    "KINDS",
    "PLAIN_KINDS",
    "AttemptPlan",
    "Behaviour",
    "Further",
    "Node",
    "Program",
    "describe",
    "expected_of",
    "expected_outcome",
    "generate",
    "measure",
    "outcome_of",
    "plan_of",
    "program",
    "smaller",
    "tally",
    "work",
]

PLAIN_KINDS: dict[str, Kind] = {kind.name: kind for kind in (*BASIC, *SCOPES, *TALKING)}
"""What programs consist of that nobody talks to and that talk to nobody."""

KINDS: dict[str, Kind] = PLAIN_KINDS | {kind.name: kind for kind in (*FUTURES, *MESSAGES, *WORKFLOWS)}
"""Everything a program can consist of."""

FIRST_VALUE = 1


@workflow
async def program(tree: Node) -> int:
    """Run a program; the result is a digest of what its activities returned."""
    desk = Desk(workflow.info().run_id)
    desk.open()
    with desk.at_work():
        return await _interpreter(desk).run(tree, FIRST_VALUE)


@workflow(name="further")
class Further:
    """What a program goes on as when it continues as new: the rest of it."""

    def __init__(self) -> None:
        self.desk = Desk(workflow.info().run_id)

    async def run(self, tree: Node, carried: Carried) -> int:
        self.desk.go_on_from(carried.seen)
        with self.desk.at_work():
            return await _interpreter(self.desk).run(tree, carried.value)

    @seen.handler
    def on_seen(self) -> Seen:
        return self.desk.seen()

    @nudge.handler
    def on_nudge(self, tag: str) -> None:
        self.desk.nudges.append(tag)

    @errand.handler
    async def on_errand(self, tag: str) -> None:
        await self.desk.run_errand(tag)

    @adjust.handler
    async def on_adjust(self, order: Order) -> int:
        return await self.desk.carry_out(order)


def _interpreter(desk: Desk) -> Interpreter:
    # The class continues as itself, which is the other way to say it.
    running = workflow.info().workflow if workflow.in_workflow() else "program"
    return Interpreter(KINDS, desk, program, None if running == "further" else Further)


DEFINITIONS: tuple[Any, ...] = (work, tally, program, Further)
"""What a cluster has to know to run programs."""


@dataclass(frozen=True)
class Program:
    """A program and what is known of it.

    Attributes:
        tree: the argument of the workflow `program`.
    """

    tree: Node

    @cached_property
    def fate(self) -> Fate:
        """What is known of it without running it."""
        return fate_of_program(KINDS, self.tree)

    @property
    def deterministic(self) -> bool:
        """Whether its outcome is the same whatever the timing, the losses and the kills."""
        return self.fate.certain

    @property
    def span_s(self) -> float:
        """Seconds it takes at most when nothing is lost, roughly."""
        return self.fate.span


def generate(
    rng: Random, *, size: int = 16, deterministic: bool | None = None, kinds: dict[str, Kind] = PLAIN_KINDS
) -> Program:
    """A random program.

    Args:
        rng: decides everything.
        size: nodes it has, roughly; rather fewer.
        deterministic: True: only a deterministic one; False: whatever comes; None: half of them are made to be.
        kinds: what it may consist of.
    """
    steady = rng.random() < 0.42 if deterministic is None else deterministic
    fails = rng.random() < 0.3
    failures = {ACTIVITY, APPLICATION, SLOW, CHILD} if fails else set()
    if not steady:
        failures.add(CONTINUED)
    maker = Maker(rng, Budget(rng.randint(1, size)), kinds, steady, frozenset(failures))
    if rng.random() < 0.01:
        return Program(NOTHING)
    nodes: list[Node] = []
    while maker.budget.nodes > 0:
        nodes.append(maker.node())
    if "chapters" in kinds and rng.random() < CHAPTERS:
        cut = rng.randint(0, len(nodes))
        return Program(Node("chapters", tuple(Node("sequence", tuple(part)) for part in (nodes[:cut], nodes[cut:]))))
    return Program(Node("sequence", tuple(nodes)))


def describe(program: Program) -> str:
    """The program for people, a line for each node."""
    head = "deterministic" if program.deterministic else "free"
    return "\n".join((head, *_lines(program.tree, "", 1)))


def measure(program: Program) -> int:
    """The size by which the programs of `smaller` are smaller."""
    return _measure(program.tree)


def smaller(program: Program) -> Iterator[Program]:
    """Simpler programs to try when this one shows a fault, the boldest first; all are less by `measure`."""
    if program.tree != NOTHING:
        yield Program(NOTHING)
    yield from (Program(tree) for tree in _smaller(program.tree))


def outcome_of(event: Event) -> Outcome:
    """A terminal event of a run of `program` in the terms of `expected_outcome`."""
    if isinstance(event, WorkflowCompleted):
        return "completed", codec.decode_value(event.result, int)
    if isinstance(event, WorkflowFailed):
        return "failed", words_of(codec.exception_of(event.failure))
    return "any", None


def expected_outcome(program: Program, value: int = FIRST_VALUE) -> Outcome:
    """How a run of the program has to end.

    Args:
        value: the number that it passes on.

    Deterministic ones are run here, by the same interpreter on plain Trio with a clock that jumps, their activities
    without losses.
    """
    fate = program.fate
    if not fate.certain:
        return "any", None
    outcome = _run_apart(program.tree, value)
    return outcome if outcome[0] == "completed" or fate.which else ("failed", None)


def expected_of(started: WorkflowStarted) -> Outcome:
    """How a run that began like this has to end, whoever started it."""
    if started.workflow == program.name:
        (tree,) = codec.decode_arguments(started.arguments, (Node,))
        return expected_outcome(Program(tree))
    tree, carried = codec.decode_arguments(started.arguments, (Node, Carried))
    return expected_outcome(Program(tree), carried.value)


def _measure(node: Node) -> int:
    return KINDS[node.kind].measure(node) + sum(_measure(child) for child in node.children)


def _smaller(node: Node) -> Iterator[Node]:
    yield from KINDS[node.kind].smaller(node)
    for place, child in enumerate(node.children):
        yield from (node.with_child(place, simpler) for simpler in _smaller(child))


def _lines(node: Node, role: str, depth: int) -> Iterator[str]:
    kind = KINDS[node.kind]
    words = "nothing" if node == NOTHING else kind.describe(node)
    yield f"{'  ' * depth}{role and f'{role}: '}{words}"
    for place, child in enumerate(node.children):
        yield from _lines(child, kind.role(place), depth + 1)


def _run_apart(tree: Node, value: int) -> Outcome:
    # In a thread, for the caller may be inside a Trio program; joined, so that nothing happens at the same time.
    outcomes: list[Outcome] = []

    async def main() -> Outcome:
        try:
            return "completed", await run_apart(_interpreter, tree, value)
        except Exception as error:  # noqa: BLE001 - whatever the program raises is its outcome
            return "failed", words_of(error)

    def target() -> None:
        outcomes.append(trio.run(main, clock=MockClock(autojump_threshold=0)))

    shuffling = trio_run._r.getstate()  # a simulation's own order must not depend on whether this was asked
    thread = threading.Thread(target=target, name="expected outcome")
    thread.start()
    thread.join()
    trio_run._r.setstate(shuffling)
    if not outcomes:
        raise RuntimeError("the program could not be run outside of a workflow: see the traceback of that thread")
    return outcomes[0]
