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
from typing import Any, cast
from uuid import UUID

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from durablefuture_trio import codec
from durablefuture_trio.authoring import WorkflowInfo, workflow
from durablefuture_trio.authoring._runtime import WorkflowRuntime, current_run
from durablefuture_trio.engine.retry import backoff_s
from durablefuture_trio.errors import ActivityError, ApplicationError
from durablefuture_trio.history.events import Event, FailureReason, WorkflowCompleted, WorkflowFailed
from durablefuture_trio.history.options import ActivityOptionsRecord
from simulator._behaviours import ACTIVITIES, AttemptPlan, Behaviour, plan_of, tally, work
from simulator._kinds import ACTIVITY, APPLICATION, BASIC, SLOW
from simulator._kinds_scopes import SCOPES
from simulator._kinds_talking import TALKING
from simulator._nodes import NOTHING, Budget, Fate, Interpreter, Kind, Maker, Node, fate_of, words_of
from simulator.oracle import Outcome

__all__ = [
    "DEFINITIONS",
    "KINDS",
    "AttemptPlan",
    "Behaviour",
    "Node",
    "Program",
    "describe",
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

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*BASIC, *SCOPES, *TALKING)}
"""Everything a program can consist of."""

FIRST_VALUE = 1


@workflow
async def program(tree: Node) -> int:
    """Run a program; the result is a digest of what its activities returned."""
    return await Interpreter(KINDS).run(tree, FIRST_VALUE)


DEFINITIONS: tuple[Any, ...] = (work, tally, program)
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
        return fate_of(KINDS, self.tree)

    @property
    def deterministic(self) -> bool:
        """Whether its outcome is the same whatever the timing, the losses and the kills."""
        return self.fate.certain

    @property
    def span_s(self) -> float:
        """Seconds it takes at most when nothing is lost, roughly."""
        return self.fate.span


def generate(rng: Random, *, size: int = 16, deterministic: bool | None = None) -> Program:
    """A random program.

    Args:
        rng: decides everything.
        size: nodes it has, roughly; rather fewer.
        deterministic: True: only a deterministic one; False: whatever comes; None: half of them are made to be.
    """
    steady = rng.random() < 0.42 if deterministic is None else deterministic
    fails = rng.random() < 0.3
    maker = Maker(
        rng, Budget(rng.randint(1, size)), KINDS, steady, frozenset((ACTIVITY, APPLICATION, SLOW) if fails else ())
    )
    if rng.random() < 0.01:
        return Program(NOTHING)
    nodes: list[Node] = []
    while maker.budget.nodes > 0:
        nodes.append(maker.node())
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


def expected_outcome(program: Program) -> Outcome:
    """How a run of the program has to end.

    Deterministic ones are run here, by the same interpreter on plain Trio with a clock that jumps, their activities
    without losses.
    """
    fate = program.fate
    if not fate.certain:
        return "any", None
    outcome = _run_apart(program.tree)
    return outcome if outcome[0] == "completed" or fate.which else ("failed", None)


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


# --- the same program without durable execution -----------------------------------------------------------------------


class _Outside:
    """What a run offers to the code running in it, where nothing is recorded: attempts are made on the spot."""

    def __init__(self) -> None:
        self._random = Random(0)
        self.info = WorkflowInfo(workflow_id="outside", run_id="outside", workflow="program", started_at=0.0)

    def now(self) -> float:
        return trio.current_time()

    def random(self) -> Random:
        return self._random

    def uuid4(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    def replaying(self) -> bool:
        return False

    async def call_activity(
        self, name: str, arguments: tuple[Any, ...], options: ActivityOptionsRecord, result_type: Any
    ) -> Any:
        definition = ACTIVITIES[name]
        decoded = codec.decode_arguments(codec.encode_arguments(arguments), definition.parameter_hints)
        policy = options.retry_policy
        deadline = trio.current_time() + (options.schedule_to_close_timeout or float("inf"))
        failed = 0
        while True:
            ended = await _attempt(plan_of(name, decoded, failed), options)
            if ended is None:
                return await definition.fn(*decoded)
            failed += 1
            reason, cause = ended
            pause = backoff_s(policy, failed)
            if (
                (isinstance(cause, ApplicationError) and cause.non_retryable)
                or failed == policy.maximum_attempts
                or trio.current_time() + pause >= deadline
            ):
                raise ActivityError(
                    f"{name} {reason}", activity=name, activity_id=0, attempts=failed, reason=reason, cause=cause
                )
            await trio.sleep(pause)


async def _attempt(plan: AttemptPlan, options: ActivityOptionsRecord) -> tuple[FailureReason, BaseException] | None:
    limit = options.start_to_close_timeout or float("inf")
    await trio.sleep(min(plan.duration_s, limit) if plan.how != "hang" else limit)
    if plan.how == "hang" or plan.duration_s >= limit:
        return "timed_out", TimeoutError(f"after {limit:g} s")
    match plan.how:
        case "crash":
            return "crashed", RuntimeError("the process was killed")
        case "raise":
            assert plan.error is not None
            return "error", plan.error
        case _:
            return None


def _run_apart(tree: Node) -> Outcome:
    # In a thread, for the caller may be inside a Trio program; joined, so that nothing happens at the same time.
    outcomes: list[Outcome] = []

    async def main() -> Outcome:
        # A program calls activities and asks for time and chance; the rest of what a run offers is not needed.
        current_run.set(cast("WorkflowRuntime", _Outside()))
        try:
            value = await Interpreter(KINDS).run(tree, FIRST_VALUE)
        except Exception as error:  # noqa: BLE001 - whatever the program raises is its outcome
            return "failed", words_of(error)
        return "completed", value

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
